"""Optimizers against their published formulas, schedules, and their errors."""

import math

import numpy as np
import pytest

import chainrule as cr
from chainrule.optim import schedules


class Bowl(cr.nn.Module):
    """Minimised at 3."""

    def __init__(self, start):
        self.w = cr.parameter(np.asarray(start))

    def forward(self):
        return cr.sum(cr.square(self.w - 3.0)) * 0.5


def descend(rule, steps=5, start=(0.0, 1.0, 10.0)):
    model = Bowl(start)
    for _ in range(steps):
        model().backward()
        rule.step(model)
    return model.w.data


def expected(update, steps=5, start=(0.0, 1.0, 10.0)):
    w, state = np.array(start), {}
    for t in range(1, steps + 1):
        w = update(w, w - 3.0, state, t)
    return w


def adam(decay=0.0, decoupled=0.0):
    def update(w, g, s, t):
        g = g + decay * w
        w = w * (1 - 0.1 * decoupled)
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
        m, v = s["m"] / (1 - 0.9**t), s["v"] / (1 - 0.999**t)
        return w - 0.1 * m / (np.sqrt(v) + 1e-8)

    return update


def momentum(nesterov):
    def update(w, g, s, t):
        s["v"] = 0.9 * s.get("v", 0) + g
        return w - 0.1 * (g + 0.9 * s["v"] if nesterov else s["v"])

    return update


def rmsprop(w, g, s, t):
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g * g
    return w - 0.1 * g / (np.sqrt(s["v"]) + 1e-8)


def adagrad(w, g, s, t):
    s["v"] = s.get("v", 0) + g * g
    return w - 0.1 * g / (np.sqrt(s["v"]) + 1e-10)


def norm_clipped(w, g, s, t):
    return w - 0.1 * g * min(1.0, 2.0 / np.linalg.norm(g))


CASES = {
    "sgd": (lambda: cr.optim.SGD(0.1), lambda w, g, s, t: w - 0.1 * g),
    "decay": (
        lambda: cr.optim.SGD(0.1, weight_decay=0.2), lambda w, g, s, t: w - 0.1 * (g + 0.2 * w)
    ),
    "clip_value": (
        lambda: cr.optim.SGD(0.1, clip_value=1.5),
        lambda w, g, s, t: w - 0.1 * np.clip(g, -1.5, 1.5),
    ),
    "clip_norm": (lambda: cr.optim.SGD(0.1, clip_norm=2.0), norm_clipped),
    "momentum": (lambda: cr.optim.SGD(0.1, momentum=0.9), momentum(False)),
    "nesterov": (lambda: cr.optim.SGD(0.1, momentum=0.9, nesterov=True), momentum(True)),
    "adam": (lambda: cr.optim.Adam(0.1), adam()),
    "adam_decay": (lambda: cr.optim.Adam(0.1, weight_decay=0.3), adam(decay=0.3)),
    "adamw": (lambda: cr.optim.AdamW(0.1, weight_decay=0.3), adam(decoupled=0.3)),
    "rmsprop": (lambda: cr.optim.RMSProp(0.1), rmsprop),
    "adagrad": (lambda: cr.optim.Adagrad(0.1), adagrad),
    "schedule": (
        lambda: cr.optim.SGD(0.1, schedule=schedules.linear(10)),
        lambda w, g, s, t: w - 0.1 * (1 - (t - 1) / 10) * g,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_formula(name, backend):
    make, update = CASES[name]
    with cr.backend.use(backend):
        np.testing.assert_allclose(descend(make()), expected(update), rtol=1e-12)


def test_lr_can_be_set_between_steps():
    rule = cr.optim.SGD(0.1)
    model = Bowl([0.0])
    for lr in (0.1, 0.5):
        rule.lr = lr
        model().backward()
        rule.step(model)
    assert model.w.data[0] == pytest.approx(0.3 + 0.5 * 2.7)


def test_schedules():
    assert [schedules.linear(4)(i) for i in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for i in range(12):
        exact = 0.5 + 0.5 * math.cos(math.pi * min(i, 10) / 10)
        assert schedules.cosine(10)(i) == pytest.approx(exact, abs=1e-15)
    assert schedules.step(2, 0.5)(5) == 0.25
    assert [schedules.warmup(2, schedules.step(1, 0.5))(i) for i in range(4)] == [0.5, 1, 1, 0.5]
    assert schedules.constant()(7) == 1.0


def test_errors():
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        cr.optim.SGD(-1.0)
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        cr.optim.SGD(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="nesterov needs"):
        cr.optim.SGD(0.1, nesterov=True)
    with pytest.raises(ValueError, match="linear: expected a number of steps"):
        schedules.linear(0)
    with pytest.raises(ValueError, match="call backward"):
        cr.optim.SGD(0.1).step(Bowl([1.0]))
    rule = cr.optim.Adam(0.1)
    model = Bowl([1.0])
    model().backward()
    rule.step(model)
    other = Bowl([1.0, 2.0])
    other().backward()
    with pytest.raises(ValueError, match="belongs to another model"):
        rule.step(other)
