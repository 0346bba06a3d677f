"""The C core against the reference: every case, on every instruction set, with 1 and 3 threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from cases import ACTIVATIONS, CASES, MAP_OPS, UPDATES, Array, Case, Chain, Ulps, ulp

from chainrule import _core, backend, reference

ISAS = ("portable", "neon", "avx2", "avx512")
WIDE = {"float32": np.float64, "float64": np.longdouble}
PROGRAMS_ONLY = {"load", "store", "result"}

# ops that change some of their inputs, w and the states: where w stands
IN_PLACE = {"update": 0, "update_rows": 2, "matmul_update": 2}


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in _core.isas():
        pytest.skip(f"{request.param}: not in this build or not on this CPU")
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


on_every_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)


# --- names ---------------------------------------------------------------------------------------


def test_the_three_lists_of_nonlinearities_are_equal() -> None:
    rows = [(name, row.residual) for name, row in reference.ACTIVATIONS.items()]
    assert _core.activation_rows() == rows
    assert list(ACTIVATIONS) == [name for name, _ in rows]


def test_ops_and_updates_have_the_same_names() -> None:
    assert set(_core.op_names()) - PROGRAMS_ONLY == reference.OPS.keys()
    assert CASES.keys() == reference.OPS.keys()
    assert dict(_core.update_rows()) == reference.UPDATES == UPDATES


@on_every_isa
def test_the_isa_asked_for_is_the_one_that_runs(isa: str) -> None:
    assert _core.isa() == isa


# --- running a case ------------------------------------------------------------------------------


def run_c(case: Case, threads: int) -> list[Array]:
    """Run a case on the C core."""
    core, inputs = backend.get("c"), case.inputs()
    with backend.threads(threads):
        if case.op in IN_PLACE:
            w, n_states = IN_PLACE[case.op], UPDATES[case.attrs["update"]]
            changed = [w, *range(len(inputs) - 1 - n_states, len(inputs) - 1)]
            core.update(case.op, inputs, case.attrs, [inputs[i] for i in changed])
            return [inputs[i] for i in changed]
        return core.evaluate(case.op, inputs, case.attrs, out_specs(case))


@functools.cache
def _out_specs(name: str) -> Any:
    return [(y.shape, y.dtype) for y in in_own_type(_BY_NAME[name])]


_BY_NAME = {str(case): case for group in CASES.values() for case in group}


def out_specs(case: Case) -> Any:
    return _out_specs(str(case))


def in_own_type(case: Case) -> list[Array]:
    """Run a case on the reference."""
    results = reference.OPS[case.op](*case.inputs(), **case.attrs)
    return list(results if isinstance(results, tuple) else (results,))[: case.n_out]


def in_wide_type(case: Case) -> list[Array]:
    """Run a case on the reference in a wider type: nearly exact results."""
    wide, own = WIDE[case.dtype], np.dtype(case.dtype)
    inputs = [x.astype(wide) if x.dtype == own else x for x in case.inputs()]
    # parameters are rounded to the elements' type before they are used
    attrs = {k: float(own.type(v)) if type(v) is float else v for k, v in case.attrs.items()}
    results = reference.OPS[case.op](*inputs, **attrs)
    return list(results if isinstance(results, tuple) else (results,))


def chain(a: Array, b: Array) -> Array:
    """Return a @ b, each element one ascending chain of fused multiply-adds from +0."""
    acc = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for k in range(a.shape[1]):
        acc = reference.fma(a[:, k, None], b[k], acc)
    return acc


def by_chains(case: Case) -> list[Array]:
    """Return what a contraction must yield, bit for bit.

    The functions applied to the finished chains are the core's own ops: what is fused must not
    differ from what is not.
    """
    first, second, *rest = case.inputs()
    if case.op == "matmul":
        a = first.T if case.attrs["transpose_a"] else first
        return [chain(a, second.T if case.attrs["transpose_b"] else second)]
    if case.op == "matmul_update":
        *values, coef = rest
        g = chain(first.T, second)
        update = case.attrs["update"]
        return list(reference.OPS["update"](values[0], g, *values[1:], coef, update=update))
    z = chain(first, second if case.op == "matmul_dact" else second.T)
    name, attrs = case.attrs["activation"], {"param": case.attrs["param"]}
    spec = [(z.shape, z.dtype)]
    if case.op == "matmul_dact":
        if name is None:
            return [z]
        return backend.get("c").evaluate("d" + name, [z, rest[0]], attrs, spec)
    if rest:
        z = z + rest[0]
    y = z if name is None else backend.get("c").evaluate(name, [z], attrs, spec)[0]
    return [y, z][: case.n_out]


@functools.lru_cache(maxsize=1000)
def _expected(name: str) -> tuple[list[Array], list[Any]]:
    case = _BY_NAME[name]
    if isinstance(case.bound, Chain):
        truths = by_chains(case)
    else:
        truths = in_wide_type(case) if case.bound.wide else in_own_type(case)
    with np.errstate(all="ignore"):
        inputs = case.inputs()
        return truths, [case.bound.tolerance(truth, inputs, case.dtype) for truth in truths]


# --- comparing -----------------------------------------------------------------------------------


def misfit(got: Array, truth: Array, tolerance: Any) -> str:
    """Say where and how far `got` is off by more than `tolerance`; nothing if it is not."""
    if got.shape != truth.shape:
        return f"shape {got.shape}, expected {truth.shape}"
    with np.errstate(all="ignore"):
        right = got == truth.astype(got.dtype)
        if np.issubdtype(got.dtype, np.floating):
            distance = np.abs(got.astype(truth.dtype) - truth)
            right |= (distance <= tolerance) | (np.isnan(got) & np.isnan(truth))
            right &= np.isnan(got) == np.isnan(truth)
    wrong = np.argwhere(~right)
    if not len(wrong):
        return ""
    at = tuple(wrong[0].tolist())
    allowed = np.broadcast_to(tolerance, truth.shape)[at]
    return f"{len(wrong)} wrong, first at {at}: {got[at]!r}, expected {truth[at]!r} +- {allowed!r}"


def bits(y: Array) -> bytes:
    """Return an array's bytes; all NaN are one (their payload is not promised)."""
    if np.issubdtype(y.dtype, np.floating):
        y = np.where(np.isnan(y), y.dtype.type(np.nan), y)
    return y.tobytes()


def problems_of(case: Case) -> Iterator[str]:
    results = run_c(case, threads=1)
    truths, tolerances = _expected(str(case))
    for i, (got, truth, tolerance) in enumerate(zip(results, truths, tolerances, strict=True)):
        if wrong := misfit(got, truth, tolerance):
            yield f"{case}: output {i}: {wrong}"
    once = [bits(y) for y in results]
    if [bits(y) for y in run_c(case, threads=3)] != once:
        yield f"{case}: other bits with 3 threads"
    here = _core.isa()
    _core.set_isa("portable")
    if [bits(y) for y in run_c(case, threads=1)] != once:
        yield f"{case}: other bits than the portable variant"
    _core.set_isa(here)


@on_every_isa
@pytest.mark.parametrize("op", CASES)
def test_parity(op: str, isa: str) -> None:
    found = [problem for case in CASES[op] for problem in problems_of(case)]
    if found:
        pytest.fail(f"{len(found)} of {len(CASES[op])} cases:\n" + "\n".join(found[:20]))


# --- the comparison itself must be able to fail --------------------------------------------------


def test_a_planted_error_is_found() -> None:
    truth = np.linspace(1, 2, 9)
    two = Ulps(2).tolerance(truth, [], "float32")
    right = truth.astype(np.float32)
    assert not misfit(right, truth, two)
    assert misfit(right + np.float32(3 * 2.0**-23), truth, two)
    wrong = right.copy()
    wrong[3] = np.nan
    assert "(3,)" in misfit(wrong, truth, np.inf)
    assert misfit(right, np.where(truth == 1, np.nan, truth), np.inf)
    assert misfit(right[:-1], truth, np.inf)
    assert misfit(np.array([True, False]), np.array([True, True]), 0)
    assert not misfit(np.float32([np.inf]), np.array([1e300]), 0)
    assert bits(np.float32([0.0])) != bits(np.float32([-0.0]))


def test_another_order_of_the_chain_is_found() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(30, 30)).astype(np.float32) for _ in range(2))
    descending = chain(a[:, ::-1].copy(), b[::-1].copy())
    two_halves = chain(a[:, :15], b[:15]) + chain(a[:, 15:], b[15:])
    for other in (descending, two_halves, a @ b.astype(np.float64)):
        assert misfit(other.astype(np.float32), chain(a, b), 0)


def test_ulp_is_the_spacing_of_the_type() -> None:
    y = np.array([1.0, 1.9, 2.0, 0.0, 1e-45, 1e-39, 2.0**-126, 3e38])
    np.testing.assert_array_equal(ulp(y, "float32"), np.spacing(y.astype(np.float32)))
    y = np.array([1.0, 1.9, 2.0, 0.0, 5e-324, 1e-310, 2.0**-1022, 1e308])
    np.testing.assert_array_equal(ulp(y.astype(np.longdouble), "float64"), np.spacing(y))


# --- contractions: the error bound, on sizes that the blocking cuts -------------------------------

LARGE = ((35, 49, 4097), (200, 130, 1100), (1, 1000, 777), (513, 1, 1030), (97, 97, 97))


@on_every_isa
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize(("m", "n", "k"), LARGE)
def test_contraction_keeps_its_bound(m: int, n: int, k: int, dtype: str, isa: str) -> None:
    rng = np.random.default_rng(m + n + k)
    info = np.finfo(dtype)
    spread = 10.0 ** rng.uniform(-3, 3, size=k)  # terms of very different size
    a = (rng.normal(size=(m, k)) * spread).astype(dtype)
    b = rng.normal(size=(k, n)).astype(dtype)
    a[-1] *= info.smallest_normal  # a row among the subnormals
    (got,) = backend.get("c").evaluate(
        "matmul", [a, b], {"transpose_a": False, "transpose_b": False}, [((m, n), a.dtype)]
    )
    wide_a, wide_b = a.astype(WIDE[dtype]), b.astype(WIDE[dtype])
    gamma = k * info.eps / 2 / (1 - k * info.eps / 2)
    bound = gamma * (np.abs(wide_a) @ np.abs(wide_b)) + k * WIDE[dtype](info.smallest_subnormal) / 2
    assert (np.abs(got - wide_a @ wide_b) <= bound).all()
    # float64's chain is computed by a fma that does not know subnormals
    last = m if dtype == "float32" else m - 1
    rows, columns = np.arange(last)[-5:], np.unique(rng.integers(0, n, 5))
    np.testing.assert_array_equal(got[np.ix_(rows, columns)], chain(a[rows], b[:, columns]))


@on_every_isa
def test_nan_and_infinity_go_through_a_contraction(isa: str) -> None:
    a, b = np.ones((7, 20), np.float32), np.ones((20, 33), np.float32)
    a[3, 4], b[5, 6] = np.nan, np.inf
    (got,) = backend.get("c").evaluate(
        "matmul", [a, b], {"transpose_a": False, "transpose_b": False}, [((7, 33), a.dtype)]
    )
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, a @ b)


# --- sums: the order of N3 -----------------------------------------------------------------------


def chained(x: Array) -> Array:
    """Return the sum along axis 0, one addition after another, from +0."""
    return np.cumsum(x, axis=0, dtype=x.dtype)[-1] + x.dtype.type(0)


def down_the_rows(x: Array) -> Array:
    """Return the sum along axis 0: a chain within each 4096 rows, then a balanced tree."""
    parts = [chained(x[i : i + 4096]) for i in range(0, len(x), 4096)]
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


def along_features(x: Array) -> Array:
    """Return the sum along the last axis: 16 lanes (index mod 16), then a fixed tree."""
    padded = np.zeros((*x.shape[:-1], -x.shape[-1] // 16 * -16), x.dtype)
    padded[..., : x.shape[-1]] = x
    lanes = chained(np.moveaxis(padded.reshape(*x.shape[:-1], -1, 16), -2, 0))
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


@on_every_isa
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", WIDE)
def test_sums_are_made_in_the_order_of_the_contract(dtype: str, threads: int, isa: str) -> None:
    rng = np.random.default_rng(0)
    few = itertools.product((1, 2, 17, 100), (1, 15, 16, 17, 50, 257))
    for rows, columns in (*few, (4095, 3), (4096, 17), (4097, 3), (12_289, 2), (40_000, 1)):
        x = rng.normal(size=(rows, columns)).astype(dtype)
        for axis, order in ((0, down_the_rows), (1, along_features)):
            truth = order(x)
            with backend.threads(threads):
                out = [(truth.shape, x.dtype)]
                (got,) = backend.get("c").evaluate("sum", [x], {"axis": axis}, out)
            np.testing.assert_array_equal(got, truth, err_msg=f"{rows} x {columns} axis {axis}")


# --- strides, and memory that is not the result's -------------------------------------------------


def canary(shape: Sequence[int], dtype: Any, *, gaps: bool) -> tuple[Array, Array]:
    """Return an array inside a larger one, full of a pattern; with gaps between its elements."""
    step = 2 if gaps and shape else 1
    inner = [*shape[:-1], shape[-1] * step] if shape else []
    size = int(np.prod(inner, dtype=np.int64))
    itemsize = np.dtype(dtype).itemsize
    memory = np.full((size + 128) * itemsize, 0xA5, np.uint8)
    middle = memory.view(dtype)[64 : 64 + size].reshape(inner)
    return memory, middle[..., ::step] if shape else middle


@on_every_isa
@pytest.mark.parametrize("op", [op for op in CASES if op not in IN_PLACE])
def test_any_strides_and_nothing_written_outside(op: str, isa: str) -> None:
    # straight to the core: the backend would copy what is not contiguous
    strided = op in MAP_OPS
    found = []
    for case in CASES[op]:
        if case.layout != "C" and not strided:
            continue
        memory, outputs = zip(*(canary(*s, gaps=strided) for s in out_specs(case)), strict=True)
        ints, floats = backend.encode(op, case.attrs)
        inputs = tuple(case.inputs())
        _core.run(backend.OPCODES[op], inputs, outputs, ints, floats, 1)
        expected = run_c(case, threads=1)
        for whole, inside, truth in zip(memory, outputs, expected, strict=True):
            if bits(np.ascontiguousarray(inside)) != bits(truth):
                found.append(f"{case}: other bits when strided")
            inside[...] = 0
            if np.count_nonzero(whole != 0xA5) != inside.nbytes:
                found.append(f"{case}: wrote outside its output")
    assert not found, "\n".join(found[:20])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "numpy"])
@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("ids_type", ["int32", "int64"])
def test_an_index_out_of_range_is_an_error(name: str, bad: int, ids_type: str) -> None:
    x, g, v = np.ones((3, 3)), np.ones((2, 3)), np.ones(2)
    ids = np.array([0, bad], ids_type)
    f8, i8 = np.dtype(np.float64), np.dtype(np.int64)
    calls: list[tuple[str, list[Array], dict[str, Any], Any]] = [
        ("take", [x, ids], {}, [((2, 3), f8)]),
        ("row_sums", [ids, g], {"n_rows": 3}, [((2,), i8), ((2, 3), f8)]),
        ("take_along_last", [g, ids], {}, [((2,), f8)]),
        ("put_along_last", [v, ids], {"size": 3}, [((2, 3), f8)]),
        ("softmax_cross_entropy", [g, ids], {}, [((2,), f8)]),
        ("dsoftmax_cross_entropy", [v, g, ids], {}, [((2, 3), f8)]),
    ]
    for call in calls:
        if call[0] == "row_sums" and bad == -1:  # no row: passed over, and its place left free
            rows, sums = backend.get(name).evaluate(*call)
            assert (rows.tolist(), sums.tolist()) == ([0, -1], [[1.0] * 3, [0.0] * 3])
            continue
        with pytest.raises(IndexError):
            backend.get(name).evaluate(*call)


# --- randomness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", WIDE)
def test_uniform_numbers_have_the_same_bits(dtype: str) -> None:
    sizes = (0, 1, 2, 3, 4, 5, 7, 8, 9, 1000)
    keys = (0, 1, 0x0123456789ABCDEF, 2**64 - 1)
    for n, key, step, (low, high) in itertools.product(
        sizes, keys, (0, 2**40 + 1), ((0, 1), (-0.3, 0.7))
    ):
        out = np.empty(n, dtype)
        backend.uniform(key, step, low, high, out)
        truth = reference.uniform(key, step, low, high, (n,), dtype)
        assert bits(out) == bits(truth), (n, key, step, low, high)


def test_permutations_are_the_same() -> None:
    for n, key, epoch in itertools.product((0, 1, 2, 3, 17, 1000), (0, 2**64 - 1), (0, 1, 2**33)):
        truth = reference.permutation(key, epoch, n)
        np.testing.assert_array_equal(backend.permutation(key, epoch, n), truth)
