"""Tracing and fusing: what a step becomes."""

import numpy as np
import pytest
from conftest import Window, table_data, window_data

import chainrule as cr


def compiled(model, optimizer, x, y):
    trainer = cr.Trainer(model, cr.losses.SoftmaxCrossEntropy(), optimizer, seed=1)
    trainer.step(x, y)
    (program, _), *_ = trainer._programs.values()
    return program


def mlp(activation="tanh"):
    return cr.nn.Sequential(cr.nn.Dense(9, 8, activation), cr.nn.Dense(8, 5))


def test_a_window_step_is_fifteen_instructions_and_no_gradient_array():
    ids, y = window_data(32)
    program = compiled(Window(), cr.optim.SGD(0.1), ids, y)
    ops = [ins.op for ins in program.instructions]
    assert ops.count("dense") == 2
    assert ops.count("matmul_dact") == 1
    assert ops.count("matmul_update") == 2
    assert ops.count("update_rows") == 1
    weights = {p.shape for p in Window().parameters().values() if len(p.shape) == 2}
    made = {program.buffers[b].spec.shape for i in program.instructions for b in i.outputs
            if program.buffers[b].kind == 0}  # fmt: skip
    assert not weights & made
    assert "matmul_update" in str(program)
    assert program.stats()["instructions"] == len(ops)


def test_delta_is_computed_once():
    x, y = table_data(32)
    program = compiled(mlp(), cr.optim.SGD(0.1), x, y)
    (hidden,) = (ins for ins in program.instructions if ins.op == "matmul_dact")
    users = [i.op for i in program.instructions if hidden.outputs[0] in i.inputs]
    assert sorted(users) == ["matmul_update", "sum"]


def test_a_non_linearity_joins_its_layer():
    x, _ = table_data(32)
    trainer = cr.Trainer(mlp("gelu"), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    trainer.predict(x)
    (program, _), *_ = trainer._programs.values()
    assert [i.op for i in program.instructions] == ["load", "dense", "dense", "store"]
    assert program.instructions[1].attrs["activation"] == "gelu"


def test_clipping_by_norm_materialises_what_it_needs():
    x, y = table_data(32)
    ops = [i.op for i in compiled(mlp(), cr.optim.SGD(0.1, clip_norm=1.0), x, y).instructions]
    assert "matmul_update" not in ops
    assert ops.count("sum_squares") == 4
    ops = [i.op for i in compiled(mlp(), cr.optim.SGD(0.1, clip_value=1.0), x, y).instructions]
    assert ops.count("matmul_update") == 2


def test_values_are_refused_while_tracing():
    x, y = table_data(32)

    class Peeks(cr.nn.Module):
        def __init__(self, peek):
            self.layer = cr.nn.Dense(9, 5)
            self.peek = peek

        def forward(self, t):
            out = self.layer(t)
            self.peek(out)
            return out

    for peek in (float, bool, np.asarray, lambda t: t.item(), lambda t: t.data):
        trainer = cr.Trainer(
            Peeks(peek), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1
        )
        with pytest.raises(cr.ChainruleError, match=r"'dense'.*traced"):
            trainer.step(x, y)


def test_captured_arrays_are_constants_and_parameters_are_not():
    x, y = table_data(32)

    class Scaled(cr.nn.Module):
        def __init__(self):
            self.layer = cr.nn.Dense(9, 5)
            self.scale = np.full(5, 0.5, "float32")

        def forward(self, t):
            return self.layer(t) * self.scale + cr.sum(cr.square(self.layer.bias)) * 0.0

    trainer = cr.Trainer(Scaled(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    first = trainer.step(x, y)
    assert trainer.step(x, y) < first
    expected = (x @ trainer.model.layer.weight.data.T + trainer.model.layer.bias.data) * 0.5
    np.testing.assert_allclose(trainer.predict(x), expected, rtol=1e-5, atol=1e-6)


def test_more_axes_than_a_program_has_are_refused():
    x, y = table_data(32)

    class Deep(cr.nn.Module):
        def __init__(self):
            self.layer = cr.nn.Dense(9, 5)

        def forward(self, t):
            return self.layer(t).reshape(32, 1, 1, 1, 5).reshape(32, 5)

    trainer = cr.Trainer(Deep(), cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(0.1), seed=1)
    with pytest.raises(cr.ChainruleError, match=r"'reshape': .* at most 4 axes"):
        trainer.step(x, y)
