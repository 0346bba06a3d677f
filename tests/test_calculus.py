"""The lecture's closed forms, roles of the nodes, checks of gradients, ops of one's own."""

import os
import subprocess
import sys

import numpy as np
import pytest

import chainrule as cr
from chainrule import cli, graph, selfcheck
from chainrule.expression import evaluate, read_values

RNG = np.random.default_rng(11)
Z = np.array([0.7, -1.3, 0.2, 1.9])
SLOPES = {
    "tanh": lambda z: 1 - np.tanh(z) ** 2,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)) * (1 - 1 / (1 + np.exp(-z))),
    "relu": lambda z: (z > 0).astype(float),
    "leaky_relu": lambda z: np.where(z > 0, 1.0, 0.01),
    "hard_tanh": lambda z: (np.abs(z) < 1).astype(float),
    "exp": np.exp,
    "softplus": lambda z: 1 / (1 + np.exp(-z)),
}


def central(f, x, eps=1e-6):
    """The Jacobian of f by central differences, outputs x inputs."""
    columns = []
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = eps
        columns.append(((f(x + step) - f(x - step)) / (2 * eps)).ravel())
    return np.stack(columns, axis=1)


def held(y_of, x, formula, *, exact=True):
    """The Jacobian of an op, its formula and central differences are one."""
    t = cr.tensor(x)
    found = cr.jacobian(y_of(t), t)
    if exact:
        np.testing.assert_array_equal(found, formula)
    else:
        np.testing.assert_allclose(found, formula, rtol=1e-14, atol=1e-15)
    numeric = central(lambda a: np.atleast_1d(y_of(cr.tensor(a)).data), x)
    np.testing.assert_allclose(found, numeric, rtol=1e-7, atol=1e-8)


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLOPES)
def test_an_elementwise_function_has_a_diagonal_jacobian(name):
    held(getattr(cr, name), Z, np.diag(SLOPES[name](Z)), exact=False)
    jacobian = cr.jacobian(getattr(cr, name)(t := cr.tensor(Z)), t)
    assert not jacobian[~np.eye(4, dtype=bool)].any()


def test_dz_dx_is_W_and_dz_db_is_I():
    W, b, x = RNG.normal(size=(3, 4)), RNG.normal(size=3), Z
    held(lambda t: W @ t + b, x, W)
    held(lambda t: W @ x + t, b, np.eye(3))


def test_ds_du_is_h_transposed_and_ds_dh_is_u_transposed():
    u, h = RNG.normal(size=4), np.tanh(Z)
    held(lambda t: t @ h, u, h[None])
    held(lambda t: u @ t, h, u[None])


def test_each_W_ij_feeds_only_z_i():
    W, x = RNG.normal(size=(3, 4)), Z
    held(lambda t: t @ x, W, np.kron(np.eye(3), x))
    t = cr.tensor(W)
    tensor = cr.jacobian(t @ x, t, form="tensor")
    assert tensor.shape == (3, 3, 4)
    for i in range(3):
        for k in range(3):
            np.testing.assert_array_equal(tensor[i, k], x if i == k else np.zeros(4))


def test_dW_is_the_outer_product_of_delta_and_x():
    W, b, u = cr.tensor(RNG.normal(size=(3, 4))), cr.tensor(RNG.normal(size=3)), RNG.normal(size=3)
    x = cr.tensor(Z)
    z = W @ x + b
    s = u @ cr.tanh(z)
    s.backward()
    delta = cr.jacobian(s, z)  # the row u.T diag(f'(z))
    np.testing.assert_allclose(delta[0], u * (1 - np.tanh(z.data) ** 2), rtol=1e-13)
    np.testing.assert_array_equal(W.grad, np.outer(delta[0], x.data))  # shape convention
    np.testing.assert_array_equal(W.grad.ravel(), cr.jacobian(s, W)[0])  # Jacobian form
    np.testing.assert_array_equal(b.grad, delta[0])
    np.testing.assert_allclose(x.grad, W.data.T @ delta[0], rtol=1e-13)
    np.testing.assert_allclose(cr.jacobian(s, x), cr.jacobian(s, z) @ cr.jacobian(z, x), rtol=1e-13)
    numeric = central(lambda w: np.atleast_1d(u @ np.tanh(w @ x.data + b.data)), W.data)
    np.testing.assert_allclose(W.grad.ravel(), numeric[0], rtol=1e-7, atol=1e-8)


def test_the_chain_rule_of_the_lecture():
    x = cr.tensor(2.0)
    y = x**2
    z = 3.0 * y
    z.backward()
    assert y.grad == 3.0
    assert x.grad == 6.0 * 2.0
    np.testing.assert_array_equal(cr.jacobian(z, x), cr.jacobian(z, y) @ cr.jacobian(y, x))


def test_tanh_is_a_stretched_sigmoid():
    np.testing.assert_allclose(
        cr.tanh(Z).data, 2 * cr.sigmoid(2 * cr.tensor(Z)).data - 1, rtol=1e-14, atol=1e-15
    )


def test_second_derivatives_pass_through_a_lookup():
    ids = np.array([2, 0, 2])

    def f(t):
        return cr.sum(cr.take(t, ids) ** 3) + cr.sum(t[1:] ** 3)

    x = RNG.normal(size=(3, 2))
    second = cr.grad(lambda t: cr.sum(cr.grad(f)(t)))(x)
    np.testing.assert_allclose(second, 6 * x * np.array([[1.0], [1.0], [3.0]]), rtol=1e-13)


# -- roles -----------------------------------------------------------------------------------------


def test_addition_distributes():
    x, y = cr.tensor(3.0), cr.tensor(4.0)
    (x + y).backward(7.0)
    assert x.grad == y.grad == 7.0


def test_max_routes():
    x, y = cr.tensor(3.0), cr.tensor(4.0)
    cr.maximum(x, y).backward(7.0)
    assert (x.grad, y.grad) == (0.0, 7.0)
    x, y = cr.tensor(4.0), cr.tensor(4.0)
    cr.maximum(x, y).backward(7.0)
    assert (x.grad, y.grad) == (7.0, 0.0)  # of equals, the first
    v = cr.tensor([1.0, 5.0, 5.0])
    v.max().backward(7.0)
    np.testing.assert_array_equal(v.grad, [0.0, 7.0, 0.0])


def test_multiplication_switches():
    x, y = cr.tensor(3.0), cr.tensor(4.0)
    (x * y).backward(7.0)
    assert (x.grad, y.grad) == (28.0, 21.0)


def test_a_branch_sums():
    x, y, z = cr.tensor(1.0), cr.tensor(2.0), cr.tensor(0.0)
    f = (x + y) * cr.maximum(y, z)
    f.backward()
    assert (f.item(), x.grad, y.grad, z.grad) == (6.0, 2.0, 5.0, 0.0)


# -- checking gradients ----------------------------------------------------------------------------


def test_kinks_are_skipped_and_named():
    report = cr.gradcheck(cr.relu, [0.0, 1.0, -2.0])
    assert report
    assert report.kinks == ("input 0 at (0,) (kink)",)
    assert "skipped 1 of 3" in str(report)
    assert cr.gradcheck(cr.relu, [1e-7, 1.0]).kinks  # within a step of the kink
    assert cr.gradcheck(cr.functions.sign, [0.0, 1.0]).kinks == ("input 0 at (0,) (jump)",)
    assert not cr.gradcheck(cr.exp, [0.0, 1.0, 3.0]).kinks
    assert not cr.gradcheck(lambda x: cr.exp(x * 30.0), [1.0]).kinks


def test_a_check_with_nothing_to_compare_is_no_success():
    report = cr.gradcheck(cr.relu, [0.0, 0.0])
    assert not report
    assert "nothing to compare" in str(report)


def test_a_gradient_beyond_both_slopes_of_a_kink_is_wrong():
    def f(x):
        return np.abs(x).sum()

    assert cr.gradcheck(f, [0.0, 1.0], grad=lambda x: np.array([0.3, 1.0]))
    assert not cr.gradcheck(f, [0.0, 1.0], grad=lambda x: np.array([3.0, 1.0]))
    report = cr.gradcheck(f, [0.5, 1.0], grad=lambda x: np.array([0.99, 1.0]))
    assert not report
    assert "input 0 at (0,)" in str(report)


def test_bad_functions_are_named():
    noise = np.random.default_rng(0)
    with pytest.raises(ValueError, match="another result"):
        cr.gradcheck(lambda x: cr.sum(x) * noise.random(), [1.0])
    with pytest.raises(ValueError, match="2 arrays for 1 inputs"):
        cr.gradcheck(lambda x: x.sum(), [1.0], grad=lambda x: (x, x))
    with pytest.raises(ValueError, match="dtype"):
        cr.gradcheck(cr.exp, [1.0], dtype="float16")


def test_the_float32_form_measures_the_shipped_kernel():
    x = np.linspace(-3.0, 3.0, 41)
    report = cr.gradcheck(cr.tanh, x, dtype="float32")
    assert report
    assert report.error <= 4.0
    with pytest.raises(ValueError, match="float64"):
        cr.gradcheck(lambda t: t + np.ones(41), x, dtype="float32")


def test_the_float32_form_sees_a_kernel_that_is_off(monkeypatch):
    from chainrule.backend import CBackend

    true = CBackend.evaluate

    def off(self, name, inputs, attrs, out):
        results = true(self, name, inputs, attrs, out)
        return [r * np.float32(1.0001) for r in results] if name == "exp" else results

    monkeypatch.setattr(CBackend, "evaluate", off)
    report = cr.gradcheck(cr.exp, np.linspace(-1.0, 1.0, 9), dtype="float32")
    assert not report
    assert "ULP" in str(report)


def test_every_rule_of_the_table_is_in_the_self_check(monkeypatch):
    seen = set()
    for check in selfcheck.checks():

        class Recorder(dict):
            def __getitem__(self, name):
                seen.add(name)
                return super().__getitem__(name)

        monkeypatch.setattr(graph, "TABLE", Recorder(graph.TABLE))
        assert cr.gradcheck(check.f, *check.inputs), check.name
        monkeypatch.undo()
    rules = {name for name, op in graph.TABLE.items() if op.vjp is not None}
    assert rules <= seen
    layers = {c.name.split(",")[0] for c in selfcheck.checks() if c.kind == "layer"}
    assert layers == {*cr.nn._LAYERS, "Sequential"}


# -- ops of one's own ------------------------------------------------------------------------------


def test_a_registered_op_is_like_any_other():
    cube = cr.register_op("cube", lambda x: x**3, lambda g, y, x: g * 3.0 * x**2)
    assert cr.grad(cube)(2.0) == 12.0
    assert cr.grad(cr.grad(cube))(2.0) == 12.0
    assert cr.gradcheck(cube, [1.0, -2.0])
    x = cr.tensor([1.0, 2.0])
    s = cube(x).sum()
    assert "cube(x)" in str(cr.explain(s)) and "cube" in cr.draw(s).svg
    s.backward()
    np.testing.assert_array_equal(x.grad, [3.0, 12.0])


def test_registered_ops_take_options_and_several_inputs():
    def forward(a, b, *, scale):
        return scale * a * b

    def vjp(g, y, a, b, *, scale):
        return g * b * scale, g * a * scale

    scaled = cr.register_op("scaled_product", forward, vjp)
    a, b = cr.tensor([1.0, 2.0]), cr.tensor([3.0, 4.0])
    scaled(a, b, scale=2.0).sum().backward()
    np.testing.assert_array_equal(a.grad, [6.0, 8.0])
    np.testing.assert_array_equal(b.grad, [2.0, 4.0])


@pytest.mark.parametrize(
    ("vjp", "message"),
    [
        (None, "'bad' has no gradient rule"),
        (lambda g, y, x: g.sum(), "'bad': its vjp gave shape"),
        (lambda g, y, x: (g, g), "'bad': its vjp gave 2 gradients for 1"),
    ],
)
def test_a_bad_rule_is_named(vjp, message):
    op = cr.register_op("bad", lambda x: x * 2.0, vjp)
    with pytest.raises(ValueError, match=message):
        op(cr.tensor([1.0, 2.0])).sum().backward()


def test_registering_refuses_what_cannot_work():
    with pytest.raises(ValueError, match="built-in"):
        cr.register_op("tanh", np.tanh)
    with pytest.raises(ValueError, match="identifier"):
        cr.register_op("not a name", np.tanh)
    with pytest.raises(TypeError, match="floats"):
        cr.register_op("ints", lambda x: x.astype(int))([1.0])
    op = cr.register_op("python_only", lambda x: x)
    with graph.tracing(), pytest.raises(TypeError, match="python_only"):
        op(np.ones(2))


# -- expressions on the command line ---------------------------------------------------------------


def test_an_expression_is_evaluated_as_ops():
    s, names = evaluate("(x + y) * max(y, z)", read_values(["x=1", "y=2", "z=0"]))
    assert s.item() == 6.0
    s.backward()
    assert [names[k].grad for k in "xyz"] == [2.0, 5.0, 0.0]
    words = ["W=[[1, 2], [3, 4]]", "v=[1, -1]"]
    s, names = evaluate("z = W @ v; sum(tanh(z)**2) / 2 - -v.T @ v", read_values(words))
    w, v = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, -1.0])
    np.testing.assert_allclose(s.data, np.sum(np.tanh(w @ v) ** 2) / 2 + 2.0, rtol=1e-14)
    assert names["z"].shape == (2,)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "x.data", "x.__class__", "[x for x in (1,)]", "x[0]",
        "lambda: x", "exec('1')", "x if x else x", "f'{x}'", "'a' * 3", "x ** x", "x ** 1e999",
        "tanh(x, x)", "tanh(x=x)", "x; import os", "max", "y + x", "", "x +", "x = 2; x",
        "x < 1", "x and x", "True", "1j", "sum(*x)", "(" * 500 + "x" + ")" * 500, "x" * 3000,
        "-" * 1500 + "x", "x\0",
    ],
)  # fmt: skip
def test_nothing_but_arithmetic_gets_through(text):
    with pytest.raises(cr.ChainruleError):
        evaluate(text, read_values(["x=1"]))


@pytest.mark.parametrize(
    "word", ["x", "=1", "1x=1", "x=a", "x=[1,[2]]", "x=1e999", "x='a'", "x=[]", "tanh=1", "x=1j"]
)
def test_bad_values(word):
    with pytest.raises(ValueError, match=r"expected|name of a function"):
        read_values([word])


def test_explain_command(capsys, tmp_path):
    assert cli.main(["explain"]) == 0
    out = capsys.readouterr().out
    assert "s = uᵀ h" in out and "v1 = W x" in out and "each evaluated once" in out
    page = tmp_path / "page.html"
    words = ["(x + y) * max(y, z)", "x=1", "y=2", "z=0", "--html", str(page)]
    assert cli.main(["explain", *words]) == 0
    out = capsys.readouterr().out
    assert "y branches into v1, v2: its gradients are summed: 5" in out
    assert "<svg" in page.read_text()
    assert cli.main(["explain", "x +", "x=1"]) == 2
    assert cli.main(["explain", "x * 2", "x=[1, 2]"]) == 2
    assert "use .sum() first" in capsys.readouterr().err


def test_explain_command_on_an_ascii_terminal():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "chainrule.cli", "explain"], env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_gradcheck_command(capsys, monkeypatch):
    assert cli.main(["gradcheck"]) == 0
    out = capsys.readouterr().out
    assert "all 9" in out and "LayerNorm" in out and "WRONG" not in out
    right = graph.TABLE["tanh"]
    wrong = graph.Op("tanh", right.shape, lambda node, g, needs: [g * 0.9], right.flops)
    monkeypatch.setitem(graph.TABLE, "tanh", wrong)
    assert cli.main(["gradcheck"]) == 2
    captured = capsys.readouterr()
    assert "WRONG" in captured.out and "are wrong" in captured.err
