"""Every op of the public table: values against numpy, gradients against central differences."""

import numpy as np
import pytest

import chainrule as cr
from chainrule import graph

RNG = np.random.default_rng(2)
POSITIVE = RNG.uniform(0.2, 2.0, (3, 4))
SIGNED = POSITIVE * np.where(RNG.random((3, 4)) < 0.5, -1.0, 1.0)

UNARY = {
    "exp": (np.exp, SIGNED),
    "log": (np.log, POSITIVE),
    "log1p": (np.log1p, POSITIVE),
    "expm1": (np.expm1, SIGNED),
    "sqrt": (np.sqrt, POSITIVE),
    "square": (np.square, SIGNED),
    "abs": (np.abs, SIGNED),
    "erf": (None, SIGNED),
    "tanh": (np.tanh, SIGNED),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), SIGNED),
    "hard_tanh": (lambda x: np.clip(x, -1, 1), SIGNED),
    "relu": (lambda x: np.maximum(x, 0), SIGNED),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), SIGNED),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), SIGNED),
    "softplus": (lambda x: np.log1p(np.exp(x)), SIGNED),
    "swish": (lambda x: x / (1 + np.exp(-x)), SIGNED),
    "gelu": (None, SIGNED),
    "softmax": (lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), SIGNED),
    "log_softmax": (lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), SIGNED),
    "logsumexp": (lambda x: np.log(np.exp(x).sum(-1)), SIGNED),
    "sum": (np.sum, SIGNED),
    "mean": (np.mean, SIGNED),
    "var": (np.var, SIGNED),
    "max": (np.max, SIGNED),
    "transpose": (np.transpose, SIGNED),
}


@pytest.mark.parametrize("name", sorted(UNARY))
def test_unary(name):
    f, x = getattr(cr, name), UNARY[name][1]
    if UNARY[name][0] is not None:
        np.testing.assert_allclose(f(x).data, UNARY[name][0](x), rtol=1e-13, atol=1e-15)
    report = cr.gradcheck(f, x)
    assert report, str(report)
    second = cr.gradcheck(lambda t: cr.grad(lambda a: cr.sum(f(a) * f(a)))(t), x, tolerance=1e-5)
    assert second, str(second)


FUNCTIONS = {
    "add": (lambda a, b: a + b, (3, 4), (4,)),
    "subtract": (lambda a, b: a - b, (3, 1), (3, 4)),
    "multiply": (lambda a, b: a * b, (3, 4), (3, 4)),
    "divide": (lambda a, b: a / b, (3, 4), ()),
    "maximum": (lambda a, b: cr.maximum(a, b), (3, 4), (3, 4)),
    "minimum": (lambda a, b: cr.minimum(a, b), (3, 4), (3, 4)),
    "matmul": (lambda a, b: a @ b, (3, 4), (4, 2)),
    "matmul_vector": (lambda a, b: a @ b, (3, 4), (4,)),
    "vector_matmul": (lambda a, b: a @ b, (4,), (4, 2)),
    "inner": (lambda a, b: a @ b, (4,), (4,)),
    "matmul_transposed": (lambda a, b: a.T @ b.T, (4, 3), (2, 4)),
    "matmul_stack": (lambda a, b: a @ b, (2, 3, 4), (4, 2)),
    "where": (lambda a, b: cr.where(np.eye(3, 4) > 0, a, b), (3, 4), (3, 4)),
    "concatenate": (lambda a, b: cr.concatenate([a, b], axis=1), (3, 4), (3, 2)),
    "stack": (lambda a, b: cr.stack([a, b, a], axis=1), (3, 4), (3, 4)),
    "dense": (lambda x, w: cr.dense(x, w, np.ones(2), "tanh"), (3, 4), (2, 4)),
    "dense_gelu": (lambda x, w: cr.dense(x, w, None, "gelu"), (3, 4), (2, 4)),
    "power": (lambda a, b: cr.abs(a) ** 1.5 + b**3 + cr.square(a) ** 0.5, (3, 4), (3, 4)),
    "clip": (lambda a, b: cr.clip(a, -0.9, 0.9) + b, (3, 4), (3, 4)),
    "getitem": (lambda a, b: a[1:, ::-2] * b[0, None, :2], (3, 4), (3, 4)),
    "getitem_arrays": (lambda a, b: a[np.array([0, 2, 2]), np.array([1, 1, 3])] + b, (3, 4), ()),
    "take": (lambda a, b: cr.take(a, np.array([[0, 1], [1, 1]])) * b, (3, 4), ()),
    "take_axis": (lambda a, b: cr.take(a, np.array([3, 0, 3]), axis=1) * b, (3, 4), ()),
    "take_along_axis": (
        lambda a, b: cr.take_along_axis(a, np.array([[1], [0], [3]])) * b, (3, 4), ()
    ),
    "split": (lambda a, b: cr.split(a, 2, axis=1)[1] + cr.split(b, [1], axis=1)[0], (3, 4), (3, 4)),
    "reshape": (lambda a, b: a.reshape(2, 6) * b.reshape(6), (3, 4), (6,)),
    "sum_axes": (lambda a, b: a.sum(axis=(0, 2)) + b.mean(axis=1), (2, 3, 4), (3, 5)),
    "max_axis": (lambda a, b: a.max(axis=0) * b.max(axis=1, keepdims=True), (3, 4), (3, 4)),
    "softmax_axis": (lambda a, b: cr.softmax(a, axis=0) * b, (3, 4), (3, 4)),
    "square_loss": (lambda a, b: cr.losses.MeanSquaredError()(a, b), (3, 4), (3, 4)),
    "absolute_loss": (lambda a, b: cr.losses.MeanAbsoluteError()(a, b), (3, 4), (3, 4)),
    "huber": (lambda a, b: cr.losses.Huber(0.7)(a, b), (3, 4), (3, 4)),
    "logistic": (lambda z, y: cr.losses.Logistic()(z, cr.sigmoid(y)), (3, 4), (3, 4)),
    "gaussian": (lambda m, v: cr.losses.GaussianNLL()((m, v), cr.tensor(np.ones(3))), (3,), (3,)),
    "cross_entropy": (
        lambda z, b: cr.losses.SoftmaxCrossEntropy()(z, cr.tensor([0, 3, 1])) * b, (3, 4), (3,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gradients(name):
    f, *shapes = FUNCTIONS[name]
    rng = np.random.default_rng(3)
    inputs = [rng.uniform(0.3, 1.7, s) * rng.choice([-1.0, 1.0], s) for s in shapes]
    report = cr.gradcheck(f, *inputs)
    assert report, str(report)


def test_every_differentiable_row_is_checked(monkeypatch):
    """A row with a rule that no test above records would go unchecked."""
    seen = set()

    class Recorder(dict):
        def __getitem__(self, name):
            seen.add(name)
            return super().__getitem__(name)

    monkeypatch.setattr(graph, "TABLE", Recorder(graph.TABLE))
    for name in UNARY:
        test_unary(name)
    for name in FUNCTIONS:
        test_gradients(name)
    test_scalar_rows_in_float64("sum_squares")
    test_scalar_rows_in_float64("weighted_mean")
    cr.gradcheck(lambda x: cr.gelu(x, approximate="tanh"), SIGNED)
    rules = {name for name, op in graph.TABLE.items() if op.vjp is not None}
    # copy is the identity; cast is tested below, dropout in test_nn.py
    assert rules - seen <= {"copy", "cast", "dropout"}


def test_a_gradient_has_the_dtype_of_its_value():
    x = cr.tensor(np.float32([1.0, 2.0]))
    (x * np.array([3.0, 0.1])).sum().backward()
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad, np.float32([3.0, 0.1]))


@pytest.mark.parametrize("name", ["sum_squares", "weighted_mean"])
def test_scalar_rows_in_float64(name):
    x = RNG.uniform(0.5, 1.5, 6)
    inputs = (x,) if name == "sum_squares" else (x, np.arange(1.0, 7.0))

    def f(t):
        others = [cr.functions.as_tensor(a) for a in inputs[1:]]
        return graph.apply(name, (cr.functions.as_tensor(t), *others))

    report = cr.gradcheck(f, x)
    assert report, str(report)


def test_a_planted_wrong_gradient_is_caught(monkeypatch):
    right = graph.TABLE["square"]
    wrong = graph.Op(
        "square", right.shape, lambda node, g, needs: [g * node._inputs[0] * 2.001], right.flops
    )
    assert cr.gradcheck(cr.square, SIGNED)
    monkeypatch.setitem(graph.TABLE, "square", wrong)
    report = cr.gradcheck(cr.square, SIGNED)
    assert not report
    assert "input 0 at" in str(report)


def test_gradcheck_of_a_students_own_numpy_function():
    def f(w, x):
        return np.tanh(w @ x).sum()

    def right(w, x):
        delta = 1 - np.tanh(w @ x) ** 2
        return np.outer(delta, x), w.T @ delta

    def wrong(w, x):
        dw, dx = right(w, x)
        dw[1, 2] += 0.01
        return dw, dx

    w, x = RNG.normal(size=(3, 4)), RNG.normal(size=4)
    assert cr.gradcheck(f, w, x, grad=right)
    report = cr.gradcheck(f, w, x, grad=wrong)
    assert not report
    assert "input 0 at (1, 2)" in str(report)


def test_ties_go_to_the_first():
    x = cr.tensor([1.0, 3.0, 3.0])
    x.max().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 1.0, 0.0])
    a, b = cr.tensor([1.0]), cr.tensor([1.0])
    cr.maximum(a, b).sum().backward()
    assert (a.grad, b.grad) == ([1.0], [0.0])


def test_higher_derivatives_and_jvp():
    assert cr.grad(cr.grad(lambda x: x**3))(2.0) == pytest.approx(12.0)
    value, tangent = cr.jvp(lambda x: cr.tanh(x) * x, [np.array([0.3])], [np.array([2.0])])
    assert value[0] == pytest.approx(np.tanh(0.3) * 0.3)
    assert tangent[0] == pytest.approx(2 * (np.tanh(0.3) + 0.3 * (1 - np.tanh(0.3) ** 2)))


def test_derivatives_that_close_over_or_repeat_a_tensor():
    x = cr.tensor(3.0)
    assert cr.grad(lambda a: a * x)(x).data == 3.0
    assert [g.data for g in cr.grad(lambda a, b: a * b * b, (0, 1))(x, x)] == [9.0, 18.0]
    assert cr.grad(lambda t: cr.grad(lambda a: t * a)(t))(3.0) == 1.0
    with pytest.raises(TypeError, match=r"write 3\.0 for 3"):
        cr.grad(lambda a: a**2)(3)


def test_hessian_vector_product():
    rng = np.random.default_rng(4)
    a, v = rng.normal(size=(3, 3)), rng.normal(size=3)

    def f(x):
        return x @ (cr.tensor(a) @ x)

    def along(x):
        return cr.sum(cr.grad(f)(x) * v)

    np.testing.assert_allclose(cr.grad(along)(rng.normal(size=3)), (a + a.T) @ v, rtol=1e-12)


def test_jacobians_of_the_lecture():
    rng = np.random.default_rng(5)
    w, x = cr.tensor(rng.normal(size=(3, 4))), cr.tensor(rng.normal(size=4))
    z = w @ x
    h = cr.tanh(z)
    np.testing.assert_array_equal(cr.jacobian(z, x), w.data)
    np.testing.assert_allclose(cr.jacobian(h, z), np.diag(1 - h.data**2), atol=1e-15)
    assert cr.jacobian(h, w, form="tensor").shape == (3, 3, 4)


def test_function_errors():
    for name in ("leaky_relu", "elu"):  # f' is found from y: a negative slope would be wrong
        with pytest.raises(ValueError, match="parameter from 0 up"):
            getattr(cr, name)(np.ones(2), -0.5)
    x = cr.tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match="axis 5"):
        x.sum(axis=5)
    with pytest.raises(ValueError, match="do not fill"):
        x.reshape(4)
    with pytest.raises(TypeError, match="integer"):
        cr.take(x, np.array([0.5]))
    with pytest.raises(IndexError):
        cr.take(x, np.array([2]))
    with pytest.raises(ValueError, match="expected activation"):
        cr.dense(x, np.ones((2, 3)), None, "nope")
    with pytest.raises(IndexError, match="out of range"):
        x[2]
