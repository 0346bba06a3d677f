"""Modules, their parameters and their initial values."""

import numpy as np
import pytest
from conftest import Window, weight_hash

import chainrule as cr


def mlp():
    return cr.nn.Sequential(cr.nn.Dense(4, 8, "relu"), cr.nn.Dense(8, 3))


def test_paths_are_those_of_pytorch():
    class Policy(cr.nn.Module):
        def __init__(self):
            self.pi = mlp()
            self.scale = cr.parameter(np.ones(3))

    assert list(Policy().parameters()) == [
        "scale", "pi.0.weight", "pi.0.bias", "pi.1.weight", "pi.1.bias",
    ]  # fmt: skip


def test_a_seed_fixes_the_values_and_no_seed_does_not():
    assert weight_hash(mlp().init(1)) == weight_hash(mlp().init(1))
    assert weight_hash(mlp().init(1)) != weight_hash(mlp().init(2))
    assert weight_hash(mlp().init()) != weight_hash(mlp().init())
    model = mlp().init(1)
    a, b = (p.data for k, p in model.parameters().items() if k.endswith("weight"))
    assert not np.array_equal(a.ravel()[:8], b.ravel()[:8])


def test_initial_values_are_uniform_within_their_limits():
    he = cr.nn.Dense(100, 300, "relu").init(0)
    glorot = cr.nn.Dense(100, 300, "tanh").init(0)
    for layer, limit in ((he, np.sqrt(6 / 100)), (glorot, np.sqrt(6 / 400))):
        values = layer.weight.data
        assert np.abs(values).max() <= limit
        assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
        assert (layer.bias.data == 0).all()


def test_a_module_draws_its_values_when_first_called():
    layer = cr.nn.Dense(3, 2)
    with pytest.raises(cr.ChainruleError, match="no value yet"):
        layer.weight.data  # noqa: B018
    assert layer(np.ones((1, 3))).shape == (1, 2)


def test_errors_name_the_layer_and_the_way_out():
    model = mlp().init(0)
    with pytest.raises(
        ValueError, match=r"Dense '0' expects \(batch, 4\), got \(4,\): use x\[None\]"
    ):
        model(np.ones(4, "float32"))
    with pytest.raises(TypeError, match="integer ids"):
        cr.nn.Embedding(3, 2)(np.ones((2, 2)))
    with pytest.raises(ValueError, match="expected activation"):
        cr.nn.Dense(3, 2, "nope")
    with pytest.raises(ValueError, match="n_in from 1 up"):
        cr.nn.Dense(0, 2)
    with pytest.raises(TypeError, match="float32 or float64"):
        cr.nn.Dense(3, 2, dtype="float16")
    with pytest.raises(ValueError, match="forward"):
        cr.nn.Module()(1)


def test_copy_assign_and_shared_parameters():
    model = mlp().init(0)
    clone = model.copy()
    assert weight_hash(clone) == weight_hash(model)
    clone[0].weight.data += 1.0
    assert weight_hash(clone) != weight_hash(model)
    target = mlp().init(9)
    half = (target[0].weight.data + model[0].weight.data) / 2
    target.assign(model, tau=0.5)
    np.testing.assert_allclose(target[0].weight.data, half, rtol=1e-6)
    assert weight_hash(target.assign(model)) == weight_hash(model)
    with pytest.raises(cr.ChainruleError, match="one of the two modules only"):
        target.assign(cr.nn.Dense(4, 8))

    class Tied(cr.nn.Module):
        def __init__(self):
            self.a = cr.nn.Dense(3, 3)
            self.b = cr.nn.Dense(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    tied = Tied().init(0)
    assert "b.weight" not in tied.parameters()
    twin = tied.copy()
    assert twin.b.weight is twin.a.weight
    x = np.ones((2, 3), "float32")
    tied(x).sum().backward()
    w = tied.a.weight.data
    expected = np.ones((3, 1)) @ (x @ w.T).sum(0)[None] + (w.sum(0)[:, None] @ np.ones((1, 3))) * 2
    np.testing.assert_allclose(tied.a.weight.grad, expected, rtol=1e-5)


def test_embedding_flatten_layernorm_dropout():
    table = cr.nn.Embedding(5, 2, init=np.arange(10.0).reshape(5, 2))
    ids = np.array([[0, 4], [2, 2]])
    np.testing.assert_array_equal(table(ids).data, np.arange(10.0).reshape(5, 2)[ids])
    assert cr.nn.Flatten()(table(ids)).shape == (2, 4)
    norm = cr.nn.LayerNorm(6, dtype="float64")
    y = norm(np.random.default_rng(0).normal(size=(3, 6))).data
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-4)
    drop = cr.nn.Dropout(0.25).init(0)
    kept = drop(np.ones((100, 100), "float32")).data
    assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (kept == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert not np.array_equal(drop(np.ones((100, 100), "float32")).data, kept)
    x = cr.tensor(np.ones((4, 5)))
    y = drop(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, y.data)
    assert drop.eval()(x) is x


def test_embedding_gradient_sums_its_occurrences():
    for sparse in (True, False):
        table = cr.nn.Embedding(4, 3, sparse=sparse, dtype="float64").init(0)
        weights = np.random.default_rng(0).normal(size=(5, 3))
        (table(np.array([1, 3, 1, 1, 0])) * weights).sum().backward()
        expected = np.zeros((4, 3))
        np.add.at(expected, [1, 3, 1, 1, 0], weights)
        np.testing.assert_allclose(table.weight.grad, expected, rtol=1e-14)


def test_summary_counts_parameters():
    lines = Window().summary().splitlines()
    assert lines[0].split() == ["embed.weight", "(40,", "6)", "240"]
    assert lines[-1].split() == ["total", str(240 + 18 * 10 + 10 + 10 * 4 + 4)]
