"""The numpy backend by itself: it must be right before anything is compared with it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
from cases import CASES, coefficients, special_values

from chainrule import backend, graph, reference
from chainrule.reference import ACTIVATIONS, OPS

POINTS = np.linspace(-6, 6, 241) + 1e-3  # none within a step of a kink


def difference_quotient(f: Any, z: np.ndarray[Any, Any], h: float) -> Any:
    return (f(z + h) - f(z - h)) / (2 * h)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_is_the_limit_of_the_difference_quotient(name: str) -> None:
    row = ACTIVATIONS[name]
    for param in {row.param, 0.5}:
        numeric = difference_quotient(lambda z, p=param: row.f(z, p), POINTS, 1e-5)
        r = POINTS if row.residual == "z" else row.f(POINTS, param)
        np.testing.assert_allclose(row.df(r, param), numeric, rtol=1e-7, atol=1e-9)
        assert np.abs(row.df(r, param) + 1e-3 - numeric).min() > 1e-4  # the control


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_stable_everywhere(name: str, dtype: str) -> None:
    # without errstate: warnings are errors here
    row = ACTIVATIONS[name]
    z = special_values(dtype)
    y = row.f(z, row.param)
    slope = row.df(z if row.residual == "z" else y, row.param)
    assert y.dtype == slope.dtype == dtype
    assert np.isnan(y[np.isnan(z)]).all()
    assert not np.isnan(y[~np.isnan(z)]).any()
    assert np.isfinite(slope[~np.isnan(z)]).all()
    assert np.abs(slope[~np.isnan(z)]).max() < 1.2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_second_derivative_comes_from_recording_the_first(name: str) -> None:
    row = ACTIVATIONS[name]

    def first(z: Any) -> Any:
        return row.df(z if row.residual == "z" else row.f(z, row.param), row.param)

    with backend.use("numpy"):
        z = graph.tensor(POINTS)
        y = graph.apply(name, [z], {"param": row.param})
        (slope,) = graph.gradients(y, [z], record=True)
        np.testing.assert_array_equal(slope.data, first(POINTS))
        (second,) = graph.gradients(slope, [z]) if slope.requires_grad else [None]
    numeric = difference_quotient(first, POINTS, 1e-5)
    found = np.zeros_like(POINTS) if second is None else second.data
    np.testing.assert_allclose(found, numeric, rtol=1e-6, atol=1e-8)


# what each function is, by its definition, at high precision
EXACT: dict[str, Any] = {
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "hard_tanh": lambda z: min(max(z, mpmath.mpf(-1)), mpmath.mpf(1)),
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "swish": lambda z: z / (1 + mpmath.exp(-z)),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "gelu_tanh": lambda z: (
        z * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf("0.044715") * z**3))) / 2
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_what_its_definition_says(name: str) -> None:
    z = np.concatenate([np.linspace(-6, 6, 97), [-30.0, 30.0, 1e-8, -1e-8]])
    with mpmath.workprec(200):
        truth = [float(EXACT[name](mpmath.mpf(x))) for x in z.tolist()]
    np.testing.assert_allclose(ACTIVATIONS[name].f(z, ACTIVATIONS[name].param), truth, rtol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_stays_in_a_derivative(name: str) -> None:
    one, nan = np.ones(1), np.full(1, np.nan)
    assert np.isnan(OPS["d" + name](one, nan))
    assert np.isnan(OPS["d" + name](nan, one))
    assert np.isfinite(OPS["d" + name](one, one))


def test_relu_of_negative_zero_is_positive_zero() -> None:
    assert not np.signbit(OPS["relu"](np.float32([-0.0, 0.0, -1.0]))).any()


# --- fma -----------------------------------------------------------------------------------------


def rounded(exact: Fraction, dtype: str) -> float:
    """Round a fraction to the nearest number of `dtype`, ties to even."""
    real = np.dtype(dtype).type
    guess = real(float(exact))
    near = [np.nextafter(guess, real(-np.inf)), guess, np.nextafter(guess, real(np.inf))]
    bits = "int32" if dtype == "float32" else "int64"
    best = min(near, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(bits)) & 1))
    return float(best)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fma_rounds_once(dtype: str) -> None:
    rng = np.random.default_rng(0)
    n = 3000
    a, b = rng.normal(size=(2, n)).astype(dtype)
    cancelling = -(a * b) * (1 + rng.integers(-3, 4, n) * np.finfo(dtype).eps)
    noise = rng.normal(size=n) * 10.0 ** rng.integers(-30, 2, n)
    c = (cancelling * rng.integers(0, 2, n) + noise).astype(dtype)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in np.stack([a, b, c]).T.tolist()]
    truth = np.array([rounded(e, dtype) for e in exact])
    result = reference.fma(a, b, c)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, truth)
    assert (a * b + c != truth).any()  # the control: two roundings are not the same


def test_fma_halfway_cases_and_subnormals() -> None:
    one, half_ulp = np.float32(1), np.float32(2.0**-24)
    least = np.finfo(np.float32).smallest_subnormal
    assert reference.fma(one, one, half_ulp) == 1  # a tie goes to even
    assert reference.fma(half_ulp, one + np.float32(2.0**-23), one) == one + np.float32(2.0**-23)
    assert reference.fma(least, np.float32(0.5), np.float32(0)) == 0
    assert reference.fma(least, np.float32(0.75), np.float32(0)) == least
    assert np.isnan(reference.fma(np.inf, 1.0, -np.inf))
    assert reference.fma(1e308, 10.0, 1.0) == np.inf


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_known_answers(counter: int, key: int, words: tuple[int, ...]) -> None:
    block = np.array([counter], np.uint64)
    assert tuple(reference.philox(key, counter, block)[0].tolist()) == words


def test_philox_known_answer_of_pi() -> None:
    # the published third vector: counter and key are the digits of pi
    step, block, key = 0x0370734413198A2E, 0x85A308D3243F6A88, 0x299F31D0A4093822
    words = reference.philox(key, step, np.array([block], np.uint64))[0]
    assert [hex(w) for w in words.tolist()] == [
        "0xd16cfe09",
        "0x94fdcceb",
        "0x5001e420",
        "0x24126ea1",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_depend_on_their_position_only(dtype: str) -> None:
    long = reference.uniform(7, 3, 0, 1, (1001,), dtype)
    short = reference.uniform(7, 3, 0, 1, (10, 10), dtype)
    assert long.dtype == dtype
    np.testing.assert_array_equal(long[:100].reshape(10, 10), short)
    assert 0 <= long.min() < 0.01 < 0.99 < long.max() < 1
    assert abs(long.mean() - 0.5) < 0.05
    assert (reference.uniform(7, 4, 0, 1, (1001,), dtype) != long).mean() > 0.99
    assert (reference.uniform(8, 3, 0, 1, (1001,), dtype) != long).mean() > 0.99
    assert reference.uniform(7, 3, -2, -1, (1001,), dtype).max() <= -1


def test_permutation_is_a_fair_shuffle() -> None:
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        order = reference.permutation(1, epoch, 5)
        assert sorted(order.tolist()) == list(range(5))
        counts[np.arange(5), order] += 1
    assert np.abs(counts / 2000 - 0.2).max() < 0.05  # 5.6 standard deviations
    assert reference.permutation(1, 0, 0).shape == (0,)
    assert reference.permutation(1, 0, 1).tolist() == [0]


def test_dropout_keeps_its_mean() -> None:
    x = np.ones(20_000, np.float32)
    y = OPS["dropout"](x, np.array(5), rate=0.25, key=99)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.02


# --- ops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_results_are_new_and_inputs_unchanged(op: str) -> None:
    for case in CASES[op]:
        inputs = case.inputs()
        before = [x.copy() for x in inputs]
        results = OPS[op](*inputs, **case.attrs)
        for result in results if isinstance(results, tuple) else (results,):
            assert isinstance(result, np.ndarray)
            assert not any(np.shares_memory(result, x) for x in inputs), str(case)
        for x, old in zip(inputs, before, strict=True):
            np.testing.assert_array_equal(x, old, err_msg=str(case))


def test_cases_have_names_of_their_own() -> None:
    names = [str(case) for group in CASES.values() for case in group]
    assert len(names) == len(set(names))


def test_extreme_rows() -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[1e4, -1e4, 1e4], [-inf, -inf, -inf], [inf, 0, 1], [nan, 0, 1], [-inf, 0, 0]])
    np.testing.assert_array_equal(OPS["softmax"](x)[0], [0.5, 0, 0.5])
    np.testing.assert_array_equal(OPS["softmax"](x)[4], [0, 0.5, 0.5])
    logsumexp = OPS["logsumexp"](x)
    np.testing.assert_allclose(logsumexp, [1e4 + np.log(2), -inf, inf, nan, np.log(2)])
    np.testing.assert_allclose(OPS["log_softmax"](x)[4], [-inf, -np.log(2), -np.log(2)])


def test_cross_entropy_and_its_derivative() -> None:
    rng = np.random.default_rng(0)
    z, y, g = rng.normal(size=(4, 5)), rng.integers(0, 5, 4), rng.normal(size=4)
    losses = OPS["softmax_cross_entropy"](z, y)
    np.testing.assert_allclose(losses, OPS["logsumexp"](z) - z[np.arange(4), y])
    numeric = np.empty_like(z)
    for i, j in np.ndindex(z.shape):
        d = np.zeros_like(z)
        d[i, j] = 1e-6
        up, down = (OPS["softmax_cross_entropy"](z + s * d, y) for s in (1, -1))
        numeric[i, j] = (up - down) @ g / 2e-6
    np.testing.assert_allclose(OPS["dsoftmax_cross_entropy"](g, z, y), numeric, atol=1e-8)


def test_row_sums_and_scatter() -> None:
    ids, g = np.array([4, 2, 4, 0, 2]), np.arange(10.0).reshape(5, 2)
    rows, sums = OPS["row_sums"](ids, g, n_rows=6)
    np.testing.assert_array_equal(rows, [4, 2, 0, -1, -1])
    np.testing.assert_array_equal(sums, [[4, 6], [10, 12], [6, 7], [0, 0], [0, 0]])
    whole = np.zeros((6, 2))
    np.add.at(whole, ids, g)
    np.testing.assert_array_equal(OPS["scatter_rows"](rows, sums, n_rows=6), whole)


def test_slice_and_unslice_are_adjoint() -> None:
    x = np.arange(7.0)
    bounds = {"axis": 0, "start": 6, "stop": -1, "step": -2}  # range's meaning: down to element 0
    np.testing.assert_array_equal(OPS["slice"](x, **bounds), [6, 4, 2, 0])
    back = OPS["unslice"](np.array([6.0, 4, 2, 0]), **bounds, length=7)
    np.testing.assert_array_equal(back, [0, 0, 2, 0, 4, 0, 6])


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("take", (np.ones((3, 2)), np.array([0, 3])), {}),
        ("take", (np.ones((3, 2)), np.array([-1, 0])), {}),
        ("row_sums", (np.array([0, 3]), np.ones((2, 2))), {"n_rows": 3}),
        ("take_along_last", (np.ones((2, 3)), np.array([0, 3])), {}),
        ("put_along_last", (np.ones(2), np.array([0, 3])), {"size": 3}),
        ("softmax_cross_entropy", (np.ones((2, 3)), np.array([0, -1])), {}),
    ],
)
def test_an_index_out_of_range_is_an_error(op: str, inputs: Any, attrs: Any) -> None:
    with pytest.raises(IndexError, match="position"):
        OPS[op](*inputs, **attrs)


# --- updates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", reference.UPDATES)
def test_update_goes_downhill(update: str) -> None:
    w, states = np.array([1.0, -2.0]), [np.zeros(2)] * reference.UPDATES[update]
    for _ in range(300):
        w, *states = OPS["update"](w, 2 * w, *states, coefficients(update), update=update)
    assert (np.abs(w) < [0.7, 1.7]).all()


def test_adam_is_the_textbook_formula() -> None:
    w, g, m, v = (np.array([x]) for x in (0.5, 0.3, 0.1, 0.2))
    lr, b1, b2, eps, t = 0.01, 0.9, 0.999, 1e-8, 3  # as in cases.coefficients
    new = OPS["update"](w, g, m, v, coefficients("adam"), update="adam")
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    w = w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    np.testing.assert_allclose(np.array(new), [w, m, v], rtol=1e-13)


def test_clipping_and_decay() -> None:
    w, g = np.array([2.0]), np.array([100.0])
    (new,) = OPS["update"](w, g, coefficients("sgd", decay=0.1, clip=0.5), update="sgd")
    np.testing.assert_allclose(new, 2.0 - 0.01 * (0.5 + 0.1 * 2.0))
    (new,) = OPS["update"](w, np.array([np.nan]), coefficients("sgd", clip=0.5), update="sgd")
    assert np.isnan(new)
