"""Steps whose gradient is made elsewhere: the bits of fit, structures, accumulation, errors."""

import numpy as np
import pytest
from conftest import Window, table_data, weight_hash, window_data

import chainrule as cr


def mlp(dropout=0.0, dtype="float32"):
    return cr.nn.Sequential(
        cr.nn.Dense(9, 33, "tanh", dtype=dtype),
        cr.nn.LayerNorm(33, dtype=dtype),
        cr.nn.Dropout(dropout),
        cr.nn.Dense(33, 17, "gelu", dtype=dtype),
        cr.nn.Dense(17, 5, dtype=dtype),
    )


def upstream_of(loss, outputs, y):
    """The derivative of a minibatch's loss by the outputs."""
    z = cr.tensor(outputs)
    losses = loss(z, cr.tensor(y))
    ones = cr.graph.Tensor(np.ones(len(y), losses.dtype))
    cr.graph.apply("weighted_mean", (losses, ones)).backward()
    return z.grad


OPTIMIZERS = {
    "sgd": lambda: cr.optim.SGD(0.1),
    "adam": lambda: cr.optim.Adam(0.01),
    "adam_norm": lambda: cr.optim.Adam(0.01, clip_norm=0.3),
    "groups": lambda: cr.optim.AdamW(0.01, groups={"*.bias": {"weight_decay": 0.0}}),
}


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize(
    ("make", "data"),
    [(lambda: mlp(0.3), table_data), (Window, window_data)],
    ids=["mlp", "window"],
)
def test_both_halves_have_the_bits_of_fit(make, data, optimizer):
    x, y = data(96)
    loss = cr.losses.SoftmaxCrossEntropy()
    whole = cr.Trainer(make(), loss, OPTIMIZERS[optimizer](), seed=4)
    whole.fit(x, y, epochs=2, batch_size=32, shuffle=False)
    for threads in (1, 2):
        halves = cr.Trainer(make(), loss, OPTIMIZERS[optimizer](), seed=4, threads=threads)
        for i in (0, 32, 64) * 2:
            outputs, finish = halves.begin_step(x[i : i + 32])
            finish(upstream_of(loss, outputs, y[i : i + 32]))
        assert weight_hash(halves.model) == weight_hash(whole.model)


@pytest.mark.parametrize("name", ["c", "numpy"])
def test_the_derivative_by_x_is_that_of_the_graph(name):
    x, _ = table_data(20, dtype="float64")
    model = mlp(dtype="float64")
    trainer = cr.Trainer(model, cr.losses.MeanSquaredError(), cr.optim.SGD(0.1), seed=4,
                         backend=name)  # fmt: skip
    upstream = np.random.default_rng(0).normal(size=(20, 5))
    t = cr.tensor(x)
    outputs, finish = trainer.begin_step(x)
    expected = model(t)
    np.testing.assert_allclose(outputs, expected.data, rtol=1e-12)
    expected.backward(upstream)
    np.testing.assert_allclose(finish(upstream), t.grad, rtol=1e-10, atol=1e-13)


class ActorCritic(cr.nn.Module):
    def __init__(self):
        self.city = cr.nn.Embedding(7, 3)
        self.body = cr.nn.Dense(12, 8, "tanh")
        self.pi, self.v = cr.nn.Dense(8, 4), cr.nn.Dense(8, 1)

    def forward(self, x):
        h = self.body(cr.concatenate([x["numbers"], self.city(x["city"])], axis=1))
        return {"pi": self.pi(h), "v": self.v(h)[:, 0]}


def test_structures_go_in_and_come_out():
    numbers, _ = table_data(16)
    x = {"numbers": numbers, "city": np.arange(16) % 7}
    x = {"unused": np.ones((16, 2)), **x, "too": np.ones(16)}
    trainer = cr.Trainer(ActorCritic(), cr.losses.MeanSquaredError(), cr.optim.Adam(0.05), seed=1)
    first, finish = trainer.begin_step(x)
    assert first["pi"].shape == (16, 4)
    assert first["v"].shape == (16,)
    before = trainer.model.pi.weight.data.copy()
    dx = finish({"pi": None, "v": first["v"] - 1.0})
    np.testing.assert_array_equal(trainer.model.pi.weight.data, before)
    assert dx["numbers"].shape == (16, 9)
    assert dx["city"] is None
    assert dx["unused"] is None
    for _ in range(200):
        outputs, finish = trainer.begin_step(x)
        finish(0.1 * outputs["pi"], outputs["v"] - 1.0)  # in the order of the outputs
    assert np.abs(outputs["v"] - 1.0).max() < 0.1
    assert np.abs(outputs["pi"]).max() < np.abs(first["pi"]).max()


@pytest.mark.parametrize(
    ("make", "data"), [(mlp, table_data), (Window, window_data)], ids=["mlp", "window"]
)
def test_without_update_the_gradients_add_up(make, data):
    x, y = data(60)
    loss = cr.losses.SoftmaxCrossEntropy()
    trainer = cr.Trainer(make(), loss, cr.optim.SGD(0.1, momentum=0.9), seed=4)
    twin = make().init(4)
    before = weight_hash(trainer.model)
    for rows in (slice(0, 30), slice(30, 60)):
        outputs, finish = trainer.begin_step(x[rows])
        finish(upstream_of(loss, outputs, y[rows]), update=False)
        cr.mean(loss(twin(x[rows]), cr.tensor(y[rows]))).backward()
    assert weight_hash(trainer.model) == before
    assert trainer.optimizer.steps == 0
    theirs = twin.parameters()
    for path, p in trainer.model.parameters().items():
        np.testing.assert_allclose(p.grad, theirs[path].grad, rtol=1e-4, atol=1e-7)
    trainer.optimizer.step(trainer.model)
    assert weight_hash(trainer.model) != before
    assert all(p.grad is None for p in trainer.model.parameters().values())


def test_two_steps_may_be_under_way():
    x, _ = table_data(40)
    up = np.full((20, 5), 0.01, "float32")
    hashes = []
    for interleaved in (True, False):
        trainer = cr.Trainer(mlp(), cr.losses.MeanSquaredError(), cr.optim.SGD(0.1), seed=4)
        _, first = trainer.begin_step(x[:20])
        if interleaved:
            trainer.begin_step(x[20:])
        first(up)
        hashes.append(weight_hash(trainer.model))
    assert hashes[0] == hashes[1]


def test_bad_gradients_are_named():
    numbers, _ = table_data(16)
    x = {"numbers": numbers, "city": np.arange(16) % 7}
    trainer = cr.Trainer(ActorCritic(), cr.losses.MeanSquaredError(), cr.optim.Adam(0.05), seed=1)
    outputs, finish = trainer.begin_step(x)
    before = weight_hash(trainer.model)
    for upstream, message in (
        ((outputs["pi"],), r"each of outputs\['pi'\], outputs\['v'\]"),
        (({"pi": outputs["pi"], "value": outputs["v"]},), r"outputs\['v'\], got upstream\['pi'\]"),
        ((outputs["pi"], outputs["v"][:, None]), r"gradient of outputs\['v'\], \(16,\) float32"),
        ((outputs["pi"], outputs["v"] * np.nan), r"gradient of outputs\['v'\] holds a value"),
    ):
        with pytest.raises(cr.ChainruleError, match=message):
            finish(*upstream)
    assert weight_hash(trainer.model) == before
    finish(outputs["pi"], outputs["v"])
    with pytest.raises(cr.ChainruleError, match="called already"):
        finish(outputs["pi"], outputs["v"])
    with pytest.raises(cr.ChainruleError, match=r"x: 'city' was asked for, .* 'numbers', 'town'"):
        trainer.begin_step({"numbers": numbers, "town": np.arange(16) % 7})
    with pytest.raises(cr.ChainruleError, match=r"x\['city'\]: row 3 is 7"):
        trainer.begin_step({**x, "city": np.where(np.arange(16) == 3, 7, 0)})
