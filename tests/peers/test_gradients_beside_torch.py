"""First and second derivatives of random expression graphs, beside PyTorch in float64.

`make test-peers` runs 2,000 graphs (CHAINRULE_GRAPHS): with branches, sharing and broadcasting,
over every differentiable function. Whatever would leave [1e-3, 1e3], or come within 1e-3 of a kink
or a tie, is left out of a graph.
"""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import chainrule as cr
from chainrule import graph
from chainrule.anatomy import as_array
from chainrule.graph import Tensor

torch = pytest.importorskip("torch")
F = torch.nn.functional

GRAPHS = int(os.environ.get("CHAINRULE_GRAPHS", "200"))
NEAR, SMALL, LARGE = 1e-3, 1e-3, 1e3
TOLERANCE = 1e-10
IDS = np.array([2, 0, 2])


def always(*arrays):
    return True


@dataclass(frozen=True)
class Fn:
    ours: Any
    theirs: Any
    fits: Any = always


def away(*points):
    return lambda x: all(np.abs(x - p).min() > NEAR for p in points)


def apart(a, b):
    return np.abs(a - b).min() > NEAR


def positive(x):
    return x.min() > 0


def no_tie(x):
    if x.ndim == 0 or x.shape[-1] < 2:
        return x.ndim > 0
    top = np.sort(x, axis=-1)
    return (top[..., -1] - top[..., -2]).min() > NEAR


def ranked(x):
    return x.ndim > 0


def matrix(x):
    return x.ndim == 2


UNARY = {
    "negative": Fn(lambda x: -x, lambda x: -x),
    "exp": Fn(cr.exp, torch.exp, lambda x: x.max() < 6),
    "log": Fn(cr.log, torch.log, positive),
    "log1p": Fn(cr.log1p, torch.log1p, positive),
    "expm1": Fn(cr.expm1, torch.expm1, lambda x: x.max() < 6),
    "sqrt": Fn(cr.sqrt, torch.sqrt, positive),
    "square": Fn(cr.square, torch.square),
    "abs": Fn(cr.abs, torch.abs),
    "erf": Fn(cr.erf, torch.erf),
    "sigmoid": Fn(cr.sigmoid, torch.sigmoid),
    "tanh": Fn(cr.tanh, torch.tanh),
    "hard_tanh": Fn(cr.hard_tanh, F.hardtanh, away(-1.0, 1.0)),
    "relu": Fn(lambda x: cr.relu(x) + 0.5, lambda x: F.relu(x) + 0.5),
    "leaky_relu": Fn(lambda x: cr.leaky_relu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "elu": Fn(lambda x: cr.elu(x, 0.7), lambda x: F.elu(x, 0.7)),
    "softplus": Fn(cr.softplus, lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "swish": Fn(cr.swish, F.silu),
    "gelu": Fn(cr.gelu, F.gelu),
    "gelu_tanh": Fn(
        lambda x: cr.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")
    ),
    "power": Fn(lambda x: x**3, lambda x: x**3),
    "power_fraction": Fn(lambda x: x**1.7, lambda x: x**1.7, positive),
    "clip": Fn(
        lambda x: cr.clip(x, -1.1, 0.9), lambda x: torch.clip(x, -1.1, 0.9), away(-1.1, 0.9)
    ),
    "softmax": Fn(cr.softmax, lambda x: torch.softmax(x, -1), ranked),
    "log_softmax": Fn(cr.log_softmax, lambda x: torch.log_softmax(x, -1), ranked),
    "logsumexp": Fn(cr.logsumexp, lambda x: torch.logsumexp(x, -1), ranked),
    "max": Fn(lambda x: cr.max(x, axis=-1), lambda x: torch.amax(x, -1), no_tie),
    "sum": Fn(lambda x: cr.sum(x, axis=0), lambda x: torch.sum(x, 0), ranked),
    "mean": Fn(
        lambda x: cr.mean(x, axis=-1, keepdims=True),
        lambda x: torch.mean(x, -1, keepdim=True),
        ranked,
    ),
    "var": Fn(cr.var, lambda x: torch.var(x, correction=0), lambda x: x.size > 1),
    "transpose": Fn(lambda x: x.T, lambda x: x.T, matrix),
    "reshape": Fn(lambda x: x.reshape(-1), lambda x: x.reshape(-1), ranked),
    "getitem": Fn(lambda x: x[1:], lambda x: x[1:], lambda x: x.ndim and x.shape[0] > 1),
    "take": Fn(lambda x: cr.take(x, IDS), lambda x: x[IDS], lambda x: x.ndim and x.shape[0] > 2),
    "take_along_axis": Fn(
        lambda x: cr.take_along_axis(x, np.ones((x.shape[0], 2), np.int64)),
        lambda x: torch.take_along_dim(x, torch.ones((x.shape[0], 2), dtype=torch.int64), -1),
        lambda x: x.ndim == 2 and x.shape[1] > 1,
    ),
    "split": Fn(
        lambda x: cr.split(x, [1], axis=0)[1],
        lambda x: torch.split(x, [1, x.shape[0] - 1])[1],
        lambda x: x.ndim and x.shape[0] > 1,
    ),
}
BINARY = {
    "add": Fn(lambda a, b: a + b, lambda a, b: a + b),
    "subtract": Fn(lambda a, b: a - b, lambda a, b: a - b),
    "multiply": Fn(lambda a, b: a * b, lambda a, b: a * b),
    "divide": Fn(lambda a, b: a / b, lambda a, b: a / b),
    "maximum": Fn(cr.maximum, torch.maximum, apart),
    "minimum": Fn(cr.minimum, torch.minimum, apart),
    "where": Fn(
        lambda a, b: cr.where(a.data > 0.3, a, b),
        lambda a, b: torch.where(a.detach() > 0.3, a, b),
        lambda a, b: away(0.3)(a),
    ),
    "matmul": Fn(
        lambda a, b: a @ b,
        lambda a, b: a @ b,
        lambda a, b: a.ndim and b.ndim and b.ndim < 3 and a.shape[-1] == b.shape[0],
    ),
    "dense": Fn(
        lambda a, b: cr.dense(a, b, activation="tanh"),
        lambda a, b: torch.tanh(F.linear(a, b)),
        lambda a, b: a.ndim == 2 and b.ndim == 2 and a.shape[1] == b.shape[1],
    ),
    "concatenate": Fn(
        lambda a, b: cr.concatenate([a, b]),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: a.ndim and a.ndim == b.ndim and a.shape[1:] == b.shape[1:],
    ),
    "stack": Fn(
        lambda a, b: cr.stack([a, b]),
        lambda a, b: torch.stack([a, b]),
        lambda a, b: a.shape == b.shape and a.ndim < 2,
    ),
}
NAMES = sorted(UNARY) + 2 * sorted(BINARY)
SHAPES = [(), (3,), (4, 3), (4, 1), (1, 3), (3, 3)]

steps = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 30), st.integers(0, 30)),
    min_size=4,
    max_size=24,
)
leaves = st.lists(st.sampled_from(SHAPES), min_size=2, max_size=4)
seen: Counter[str] = Counter()


def build(shapes, plan, seed):
    """The same graph twice: leaves and root of ours, leaves and root of theirs."""
    rng = np.random.default_rng(seed)
    arrays = [rng.uniform(0.2, 1.6, s) * rng.choice([-1.0, 1.0], s) for s in shapes]
    ours = [cr.tensor(a) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    mine, other = list(ours), list(theirs)
    for name, i, j in plan:
        picked = [len(mine) - 1 - i % min(len(mine), 8), j % len(mine)]
        fn = UNARY.get(name)
        if fn is not None:
            picked = picked[:1]
        else:
            fn = BINARY[name]
        operands = [mine[k] for k in picked]
        try:
            np.broadcast_shapes(*[t.shape for t in operands])
        except ValueError:
            if name not in ("matmul", "dense", "concatenate"):
                continue
        arrays = [t.data for t in operands]
        if not fn.fits(*arrays):
            continue
        value = fn.ours(*operands)
        size = np.abs(value.data)
        if not value.size or size.min() < SMALL or size.max() > LARGE or value.size > 200:
            continue
        mine.append(value)
        other.append(fn.theirs(*[other[k] for k in picked]))
        np.testing.assert_allclose(value.data, other[-1].detach().numpy(), rtol=1e-9)
        seen[name] += 1
    root = their_root = None
    for ours_last, theirs_last in zip(mine[-3:], other[-3:], strict=True):
        weights = rng.uniform(0.5, 1.5, ours_last.shape)
        part = cr.sum(ours_last * weights)
        their_part = torch.sum(theirs_last * torch.tensor(weights))
        root = part if root is None else root + part
        their_root = their_part if their_root is None else their_root + their_part
    return ours, root, theirs, their_root, rng


def gradients(root, wrt):
    """Gradients that can be differentiated again, and the largest contribution that was summed.

    Contributions cancel wherever a value branches, not at the sources alone, so it is the largest
    of the whole pass.
    """
    largest = 0.0

    def watch(node, parts):
        nonlocal largest
        for part in parts:
            if part is not None:
                largest = max(largest, float(np.max(np.abs(as_array(part)), initial=0.0)))

    found = dict.fromkeys(map(id, wrt))
    seed = Tensor(np.ones(root.shape))
    with graph.recording():
        for node, grad in graph._backpropagate(root, seed, frozenset(found), watch):
            if id(node) in found:
                found[id(node)] = graph._densify(grad)
    return [found[id(t)] for t in wrt], largest


def agree(ours, theirs, scale, what):
    for mine, other in zip(ours, theirs, strict=True):
        a = np.zeros(1) if mine is None else mine.data
        zero = other is None or other._is_zerotensor()  # which has no memory to read
        b = np.zeros(1) if zero else other.detach().numpy()
        error = np.max(np.abs(a - b), initial=0.0)
        bound = TOLERANCE * max(scale, float(np.max(np.abs(b), initial=0.0)))
        assert error <= bound, (what, error, bound, a, b)


@settings(
    max_examples=GRAPHS,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(leaves, steps, st.integers(0, 2**32 - 1))
def compare(shapes, plan, seed):
    ours, root, theirs, their_root, rng = build(shapes, plan, seed)
    first, scale = gradients(root, ours)
    their_first = torch.autograd.grad(their_root, theirs, create_graph=True, allow_unused=True)
    agree(first, their_first, scale, "first derivative")
    total = their_total = None
    for g, t in zip(first, their_first, strict=True):
        if g is None or t is None or not g.requires_grad or not t.requires_grad:
            continue
        v = rng.normal(size=g.shape)
        part, their_part = cr.sum(g * v), torch.sum(t * torch.tensor(v))
        total = part if total is None else total + part
        their_total = their_part if their_total is None else their_total + their_part
    if total is None:
        return
    second, scale = gradients(total, ours)
    their_second = torch.autograd.grad(their_total, theirs, allow_unused=True)
    agree(second, their_second, scale, "second derivative")
    seen["second derivatives"] += 1


def test_derivatives_agree_with_torch():
    compare()
    print(dict(sorted(seen.items())))
    missing = {*UNARY, *BINARY} - set(seen) if GRAPHS >= 2000 else set()
    assert not missing, f"never reached: {missing}"
    assert seen["second derivatives"] > GRAPHS // 2
