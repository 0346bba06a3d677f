"""Dense layers of many shapes beside numpy, one thread each (see `make bench`)."""

import numpy as np
import pytest
from contenders import in_turn, row

from chainrule import backend

SHAPES = [  # batch M, inputs K, outputs N
    (1, 250, 100), (32, 250, 100), (64, 64, 64), (128, 784, 128), (256, 512, 512),
    (512, 512, 512), (1024, 1024, 1024),
]  # fmt: skip


def operands(m, k, n, dtype):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=s).astype(dtype) for s in ((m, k), (n, k), (n,)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_forward(shape, dtype, report):
    m, k, n = shape
    x, w, b = operands(m, k, n, dtype)
    core, out = backend.get("c"), [((m, n), np.dtype(dtype))]

    def ours(inputs=(x, w, b), activation="tanh"):
        attrs = {"activation": activation, "param": 0.0}
        with backend.threads(1):
            return core.evaluate("dense", inputs, attrs, out)[0]

    def numpy():
        return np.tanh(x @ w.T + b)

    np.testing.assert_allclose(ours(), numpy(), rtol=0, atol=1e-4 if dtype == "float32" else 1e-12)
    report(row(f"dense {m}x{k}x{n} {dtype}", in_turn({"chainrule": ours, "numpy": numpy})))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matrix_product_512(dtype, report):
    """The product alone: 80% of numpy's rate is promised."""
    x, w, _ = operands(512, 512, 512, dtype)
    core, out = backend.get("c"), [((512, 512), np.dtype(dtype))]

    def ours():
        with backend.threads(1):
            return core.evaluate("dense", (x, w), {"activation": None, "param": 0.0}, out)[0]

    def numpy():
        return np.matmul(x, w.T)

    np.testing.assert_allclose(ours(), numpy(), rtol=0, atol=1e-3 if dtype == "float32" else 1e-11)
    times = in_turn({"chainrule": ours, "numpy": numpy})
    report(row(f"512 x 512 x 512 {dtype}", times, 2 * 512**3))
    assert times["chainrule"] <= times["numpy"] / 0.8
