"""The one table of cases: op x shapes x dtype x attributes, each with its bound and flop count.

Parity tests, gradient checks and benchmarks read it. Sizes straddle the vector and the tile
(-1, 0, +1) and include 0 and 1. Inputs are generated from a seed that is a case's own name.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chainrule import reference
from chainrule.graph import TABLE, Spec

Array = NDArray[Any]
Shape = tuple[int, ...]

FLOATS = ("float32", "float64")


# --- bounds: how far a result may be from the truth -----------------------------------------------


@dataclass(frozen=True)
class Exact:
    """Equal to the reference computed in the case's own dtype."""

    wide = False

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return 0


@dataclass(frozen=True)
class Ulps:
    """Within `n` units in the last place of the exact result."""

    n: float
    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return self.n * ulp(truth, dtype)


@dataclass(frozen=True)
class Near:
    """Within `n` units of rounding of 1 + |exact|: for results that cancel to something small."""

    n: float
    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return self.n * np.finfo(dtype).eps * (1 + np.abs(truth))


@dataclass(frozen=True)
class Derivative:
    """Within `n` units of rounding of the upstream gradient, the first input."""

    n: float
    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        info = np.finfo(dtype)
        g = np.abs(inputs[0]).reshape(inputs[0].shape + (1,) * (truth.ndim - inputs[0].ndim))
        return self.n * (info.eps * g + info.smallest_subnormal)


@dataclass(frozen=True)
class Sum:
    """A sum along `axis` (None: of everything), of at most `chain` additions in a row."""

    axis: int | None
    chain: int = 4096 + 32
    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        x = inputs[0]
        n = x.size if self.axis is None else x.shape[self.axis]
        size = np.abs(x, dtype=np.longdouble).sum(self.axis)
        return min(n, self.chain) * np.finfo(dtype).eps / 2 * size


@dataclass(frozen=True)
class Chain:
    """Bit for bit the ascending chain of fused multiply-adds, computed by the test."""

    wide = False

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return 0


Bound = Any  # one of these classes


def ulp(y: Array, dtype: str) -> Array:
    """Return the unit in the last place, in `dtype`, of exact results given in a wider type."""
    info = np.finfo(dtype)
    exponent = np.frexp(np.abs(np.where(np.isfinite(y), y, 1)))[1] - 1
    lowest = np.where(y == 0, info.minexp, np.maximum(exponent, info.minexp))
    return np.ldexp(np.ones_like(y), lowest - info.nmant)


# --- a case ---------------------------------------------------------------------------------------

Maker = Callable[["Case", np.random.Generator], list[Array]]


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Attributes
    ----------
    op : str
        Name in the op table.
    shapes : tuple of shapes
        Shapes of the inputs.
    dtype : str
        Of the float inputs.
    bound : Bound
        How far the C core may be from the truth.
    make : callable
        Generates the inputs.
    attrs : mapping
        The op's attributes.
    layout : {"C", "F", "step", "reversed"}
        Strides of the inputs.
    n_out : int or None
        How many of the op's results are asked for; None: all.
    note : str
        What is special about the inputs.
    """

    op: str
    shapes: tuple[Shape, ...]
    dtype: str
    bound: Bound
    make: Maker
    attrs: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "C"
    n_out: int | None = None
    note: str = ""

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, s)) or "()" for s in self.shapes)
        attrs = " ".join(f"{k}={v}" for k, v in self.attrs.items())
        n_out = "" if self.n_out is None else f"n_out={self.n_out}"
        parts = (self.op, self.dtype, shapes, attrs, n_out, self.layout, self.note)
        return " ".join(part for part in parts if part)

    @property
    def flops(self) -> int:
        """Operations, as the op table counts them."""
        if self.op in ("matmul_dact", "matmul_update"):  # in programs only; both are products
            (rows, inner), (_, columns) = self.shapes[:2]
            return 2 * rows * inner * columns
        specs = [Spec(x.shape, x.dtype) for x in self.inputs()]
        return int(TABLE[self.op].flops(*specs, **self.attrs))

    def inputs(self) -> list[Array]:
        """Generate the inputs: the same ones each time."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        return [_laid_out(x, self.layout) for x in self.make(self, rng)]


def _laid_out(x: Array, layout: str) -> Array:
    if x.ndim == 0 or layout == "C":
        return x
    if layout == "F":
        return np.asfortranarray(x)
    if layout == "reversed":
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    assert layout == "step"
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype)
    wide[..., 1::2] = x
    return wide[..., 1::2]


# --- generators of inputs -------------------------------------------------------------------------


def between(low: float, high: float) -> Maker:
    """Generate every input uniformly from [low, high)."""

    def make(case: Case, rng: np.random.Generator) -> list[Array]:
        return [rng.uniform(low, high, s).astype(case.dtype) for s in case.shapes]

    return make


def small_integers(case: Case, rng: np.random.Generator) -> list[Array]:
    """Generate values that often tie."""
    return [rng.integers(-2, 3, s).astype(case.dtype) for s in case.shapes]


def special_values(dtype: str) -> Array:
    """Return zeros, infinities, NaN, the ends of the range and of the subnormal numbers."""
    info = np.finfo(dtype)
    tiny, least, huge = info.smallest_normal, info.smallest_subnormal, info.max
    positive = [0.0, least, 7 * least, tiny, tiny / 2, info.eps, 0.5, 1.0, 1 + info.eps, 1.5, 2.0]
    positive += [10.0, 40.0, 87.0, 88.5, 89.0, 103.0, 104.0, 700.0, 709.5, 745.0, 746.0, 1e6, 1e30]
    positive += [huge, np.inf]
    return np.array([*positive, *(-x for x in positive), np.nan], dtype=dtype)


def specials(case: Case, rng: np.random.Generator) -> list[Array]:
    """Generate every pair of special values (for one input: every value)."""
    values = special_values(case.dtype)
    grids = np.meshgrid(*[values] * len(case.shapes), indexing="ij")
    return [np.ascontiguousarray(g) for g in grids]


def indices(case: Case, rng: np.random.Generator, n: int, shape: Shape) -> Array:
    """Generate ids below `n`; int32 in the float32 cases, int64 in the others."""
    return rng.integers(0, n, shape).astype("int32" if case.dtype == "float32" else "int64")


# --- elementwise ----------------------------------------------------------------------------------

LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1023, 4097)
MATRICES: tuple[Shape, ...] = ((), (3, 0), (1, 1), (7, 17), (16, 16), (33, 5), (2, 3, 4, 5))
PAIRS: tuple[tuple[Shape, Shape], ...] = (
    ((), ()),
    ((0,), (1,)),
    ((17,), ()),
    ((), (33,)),
    ((5, 17), (17,)),
    ((17,), (5, 17)),
    ((5, 1), (1, 16)),
    ((5, 15), (5, 1)),
    ((0, 3), (3,)),
    ((3, 1, 7), (5, 1)),
    ((2, 3, 4, 5), (4, 1)),
    ((2, 1, 4, 1), (3, 1, 65)),
    ((1000, 3), (1, 3)),
)
LAYOUTS = ("F", "step", "reversed")

N_SPECIAL = special_values("float32").size

# op: inputs between, bound
UNARY: dict[str, tuple[float, float, Bound]] = {
    "copy": (-4, 4, Exact()),
    "negative": (-4, 4, Exact()),
    "exp": (-20, 20, Ulps(2)),
    "log": (1e-3, 1e3, Ulps(2)),
    "log1p": (-0.99, 100, Ulps(2)),
    "expm1": (-20, 20, Ulps(2)),
    "sqrt": (0, 100, Exact()),
    "square": (-4, 4, Exact()),
    "abs": (-4, 4, Exact()),
    "erf": (-5, 5, Ulps(2)),
    "sign": (-4, 4, Exact()),
}

BINARY = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum"),
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
)

# non-linearity: bound of f, bound of its derivative, parameters to try
ACTIVATIONS: dict[str, tuple[Bound, Bound, tuple[float, ...]]] = {
    "sigmoid": (Ulps(2), Ulps(3), (0.0,)),
    "tanh": (Ulps(2), Ulps(2), (0.0,)),
    "hard_tanh": (Exact(), Exact(), (0.0,)),
    "relu": (Exact(), Exact(), (0.0,)),
    "leaky_relu": (Exact(), Exact(), (0.01, 0.2)),
    "elu": (Ulps(4), Derivative(2), (1.0, 0.5)),
    "softplus": (Ulps(4), Ulps(3), (0.0,)),
    "swish": (Ulps(4), Derivative(8), (0.0,)),
    "gelu": (Ulps(4), Derivative(8), (0.0,)),
    "gelu_tanh": (Ulps(4), Derivative(8), (0.0,)),
}
# the reference is no more than a double here, and its own error shows in the tails
_ROUGH_REFERENCE = {"erf": Ulps(4), "gelu": Near(4), "gelu_tanh": Near(4)}


def _elementwise(
    op: str,
    shapes: Sequence[Shape],
    dtype: str,
    bound: Bound,
    make: Maker,
    **more: Any,
) -> Case:
    return Case(op, tuple(shapes), dtype, bound, make, **more)


def _unary(op: str, make: Maker, bound: Bound, dtype: str, **attrs: Any) -> Iterator[Case]:
    if dtype == "float64":
        bound = _ROUGH_REFERENCE.get(op, bound)
    for shape in (*((n,) for n in LENGTHS), *MATRICES):
        yield _elementwise(op, [shape], dtype, bound, make, attrs=attrs)
    for layout in LAYOUTS:
        yield _elementwise(op, [(19, 33)], dtype, bound, make, attrs=attrs, layout=layout)
    shape = (N_SPECIAL,)
    yield _elementwise(op, [shape], dtype, bound, specials, attrs=attrs, note="special")


def _map_cases(dtype: str) -> Iterator[Case]:
    for op, (low, high, bound) in UNARY.items():
        yield from _unary(op, between(low, high), bound, dtype)
    for op in BINARY:
        for pair in (*(((n,), (n,)) for n in LENGTHS), *PAIRS):
            yield _elementwise(op, pair, dtype, Exact(), between(-4, 4))
        for layout in LAYOUTS:
            make = between(-4, 4)
            yield _elementwise(op, ((9, 33), (33,)), dtype, Exact(), make, layout=layout)
        yield _elementwise(op, ((65,), (65,)), dtype, Exact(), small_integers, note="ties")
        shapes = ((N_SPECIAL, N_SPECIAL),) * 2
        yield _elementwise(op, shapes, dtype, Exact(), specials, note="special")
    for exponent in (0, 1, 2, 3, 5, -1, -2, 0.5, -0.5, 1.5, 2.75, -3.25):
        bound = Exact() if exponent in (0, 1, 2, 0.5) else Ulps(8)
        make = between(-4, 4) if exponent == int(exponent) else between(1e-2, 10)
        yield from _unary("power", make, bound, dtype, exponent=exponent)
    for low, high in ((-1.0, 1.0), (0.1, 0.7), (-np.inf, 2.0), (0.0, np.inf)):
        yield from _unary("clip", between(-4, 4), Exact(), dtype, low=low, high=high)
    yield from _where_cases(dtype)
    yield from _cast_cases(dtype)
    yield from _dropout_cases(dtype)


def _where_cases(dtype: str) -> Iterator[Case]:
    def make(case: Case, rng: np.random.Generator) -> list[Array]:
        condition, *operands = (rng.normal(size=s).astype(dtype) for s in case.shapes)
        return [np.asarray(condition > 0), *operands]

    triples = [((n,),) * 3 for n in LENGTHS]
    triples += [
        ((5, 1), (17,), ()),
        ((17,), (5, 17), (5, 1)),
        ((), (3, 9), (9,)),
        ((0, 3), (3,), ()),
    ]
    for shapes in triples:
        yield _elementwise("where", shapes, dtype, Exact(), make)
    for layout in LAYOUTS:
        yield _elementwise("where", ((9, 33),) * 3, dtype, Exact(), make, layout=layout)


def _cast_cases(dtype: str) -> Iterator[Case]:
    kinds = ("float32", "float64", "int32", "int64", "bool")

    def from_kind(kind: str) -> Maker:
        def make(case: Case, rng: np.random.Generator) -> list[Array]:
            x = rng.uniform(-3e4, 3e4, case.shapes[0])
            x[rng.random(x.shape) < 0.2] = 0
            return [x.astype(kind)]

        return make

    for source, target in itertools.product(kinds, kinds):
        if dtype not in (source, target) and dtype != "float32":
            continue  # once is enough for casts among the others
        for shape in ((0,), (1,), (17,), (65,), (3, 7), ()):
            yield _elementwise(
                "cast",
                [shape],
                dtype,
                Exact(),
                from_kind(source),
                attrs={"dtype": target},
                note=source,
            )
    bound = Exact()
    for target in FLOATS:
        attrs = {"dtype": target}
        yield _elementwise(
            "cast", [(N_SPECIAL,)], dtype, bound, specials, attrs=attrs, note="special"
        )


def _dropout_cases(dtype: str) -> Iterator[Case]:
    def at_step(step: int) -> Maker:
        def make(case: Case, rng: np.random.Generator) -> list[Array]:
            return [rng.normal(size=case.shapes[0]).astype(dtype), np.array(step, np.int64)]

        return make

    attrs = {"rate": 0.3, "key": 0x9E3779B97F4A7C15}
    for shape in ((0,), (1,), (3,), (4,), (5,), (17,), (100,), (7, 33), (2, 3, 5), ()):
        for step in (0, 1, 2**40):
            yield _elementwise(
                "dropout",
                (shape, ()),
                dtype,
                Exact(),
                at_step(step),
                attrs=attrs,
                note=f"at {step}",
            )
    for layout in LAYOUTS:
        yield _elementwise(
            "dropout", ((9, 33), ()), dtype, Exact(), at_step(3), attrs=attrs, layout=layout
        )
    for rate in (0.0, 0.5, 0.9):
        attrs = {"rate": rate, "key": 1}
        yield _elementwise("dropout", ((65,), ()), dtype, Exact(), at_step(3), attrs=attrs)


def _activation_cases(dtype: str) -> Iterator[Case]:
    for name, (f_bound, df_bound, params) in ACTIVATIONS.items():
        for param in params:
            yield from _unary(name, between(-6, 6), f_bound, dtype, param=param)
            yield from _derivative_cases(name, df_bound, param, dtype)


def _derivative_cases(name: str, bound: Bound, param: float, dtype: str) -> Iterator[Case]:
    def make(case: Case, rng: np.random.Generator) -> list[Array]:
        g, z = (rng.uniform(-3, 3, s).astype(dtype) for s in case.shapes)
        return [g, residual_of(name, z, param)]

    attrs = {"param": param}
    for n in LENGTHS:
        yield _elementwise("d" + name, ((n,), (n,)), dtype, bound, make, attrs=attrs)
    for shape in ((), (3, 0), (7, 17), (2, 3, 4, 5)):
        yield _elementwise("d" + name, (shape, shape), dtype, bound, make, attrs=attrs)
    for layout in LAYOUTS:
        shapes = ((9, 33), (9, 33))
        yield _elementwise("d" + name, shapes, dtype, bound, make, attrs=attrs, layout=layout)

    def at_specials(case: Case, rng: np.random.Generator) -> list[Array]:
        z = special_values(dtype)
        g = np.linspace(-2, 2, z.size).astype(dtype)
        return [g, residual_of(name, z, param)]

    shapes = ((N_SPECIAL,), (N_SPECIAL,))
    yield _elementwise("d" + name, shapes, dtype, bound, at_specials, attrs=attrs, note="special")


def residual_of(name: str, z: Array, param: float) -> Array:
    """Return what the derivative of a non-linearity wants: its value or its argument."""
    row = reference.ACTIVATIONS[name]
    if row.residual == "z":
        return z
    return np.asarray(reference.OPS[name](z, param=param))


# --- reductions and rows --------------------------------------------------------------------------

REDUCED: tuple[Shape, ...] = (
    *((n,) for n in (1, 2, 15, 16, 17, 100, 4097)),
    *((1, 1), (3, 5), (15, 17), (16, 16), (17, 15), (33, 64), (64, 33), (1, 65), (65, 1)),
    *((4095, 3), (4096, 2), (4097, 3), (8193, 2), (12289, 1), (2, 3, 5), (7, 1, 33), (2, 3, 4, 5)),
)


def _reduce_cases(dtype: str) -> Iterator[Case]:
    for shape in REDUCED:
        for axis in range(len(shape)):
            more = {"attrs": {"axis": axis}}
            yield Case("sum", (shape,), dtype, Sum(axis), between(-1, 1), **more)
            for op in ("max", "argmax"):
                yield Case(op, (shape,), dtype, Exact(), between(-1, 1), **more)
                yield Case(op, (shape,), dtype, Exact(), small_integers, note="ties", **more)
                yield Case(op, (shape,), dtype, Exact(), _some_nan, note="NaN", **more)
    for shape in ((0, 3), (3, 0), (0,)):
        for axis in range(len(shape)):
            yield Case("sum", (shape,), dtype, Sum(axis), between(-1, 1), attrs={"axis": axis})
    for layout in LAYOUTS:
        for op, bound in (("sum", Sum(1)), ("max", Exact()), ("argmax", Exact())):
            yield Case(op, ((33, 65),), dtype, bound, between(-1, 1), {"axis": 1}, layout=layout)
    for shape in ((0,), (1,), (17,), (4097,), (33, 65), (2, 3, 5), ()):
        yield Case("sum_squares", (shape,), dtype, SquareSum(), between(-1, 1))
    for n in (1, 2, 15, 16, 17, 100, 1024, 4097):
        yield Case("weighted_mean", ((n,), (n,)), dtype, Mean(), between(0, 2))


def _some_nan(case: Case, rng: np.random.Generator) -> list[Array]:
    (x,) = between(-1, 1)(case, rng)
    x[rng.random(x.shape) < 0.1] = np.nan
    return [x]


@dataclass(frozen=True)
class SquareSum:
    """A sum of squares in float64, whatever the dtype."""

    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return max(inputs[0].size, 1) * 2.0**-52 * np.abs(truth)


@dataclass(frozen=True)
class Mean:
    """A mean of positive numbers with positive weights in float64, whatever the dtype."""

    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        return (inputs[0].size + 4) * 2.0**-52 * np.abs(truth)


@dataclass(frozen=True)
class Exponentials:
    """A quotient of sums of exp(x - max): the rounding of x - max is a relative error."""

    n: float
    wide = True

    def tolerance(self, truth: Array, inputs: Sequence[Array], dtype: str) -> Any:
        x = inputs[0].astype(np.float64)
        below = np.nan_to_num(x.max(-1, keepdims=True) - x).clip(0, 750)
        info = np.finfo(dtype)
        return (self.n + below) * info.eps * np.abs(truth) + 4 * info.smallest_subnormal


ROWS: tuple[Shape, ...] = (
    *((b, c) for b in (1, 3, 33) for c in (1, 2, 5, 15, 16, 17, 33, 64, 65, 257)),
    *((0, 5), (7,), (2, 3, 5), (2, 3, 4, 17)),
)


def _row_cases(dtype: str) -> Iterator[Case]:
    bounds: dict[str, Bound] = {
        "softmax": Exponentials(16),
        "log_softmax": Near(8),
        "logsumexp": Near(8),
    }
    for op, bound in bounds.items():
        for shape in ROWS:
            for size in (1, 30):
                make = between(-size, size)
                yield Case(op, (shape,), dtype, bound, make, note=f"within {size}")
        for layout in LAYOUTS:
            yield Case(op, ((9, 33),), dtype, bound, between(-3, 3), layout=layout)
        yield Case(op, ((13, 5),), dtype, bound, _extreme_rows, note="extreme")

    def with_classes(*, upstream: bool) -> Maker:
        def make(case: Case, rng: np.random.Generator) -> list[Array]:
            z = rng.uniform(-5, 5, case.shapes[-2]).astype(dtype)
            y = indices(case, rng, z.shape[1], (z.shape[0],))
            g = rng.uniform(0, 1, z.shape[0]).astype(dtype)
            return [g, z, y] if upstream else [z, y]

        return make

    for shape in (s for s in ROWS if len(s) == 2):
        batch = (shape[0],)
        make = with_classes(upstream=False)
        op = "softmax_cross_entropy"
        yield Case(op, (shape, batch), dtype, Near(8), make)
        make = with_classes(upstream=True)
        op = "dsoftmax_cross_entropy"
        yield Case(op, (batch, shape, batch), dtype, Derivative(16), make)


def _extreme_rows(case: Case, rng: np.random.Generator) -> list[Array]:
    huge = float(np.finfo(case.dtype).max)
    inf, nan = np.inf, np.nan
    rows = [
        [0, 0, 0, 0, 0],
        [huge, huge, 0, 0, -huge],
        [-huge, -huge, -huge, -huge, -huge],
        [1e4, -1e4, 1e4, 0, 1],
        [-1e30, -1e30, 0, 1e-30, 0],
        [-inf, 0, 1, 2, 3],
        [-inf, -inf, -inf, -inf, 0],
        [-inf, -inf, -inf, -inf, -inf],
        [inf, 0, 0, 0, 0],
        [inf, inf, 0, 0, -inf],
        [nan, 0, 0, 0, 0],
        [0, 0, 0, 0, nan],
        [80, 90, 100, 110, 120],
    ]
    return [np.array(rows, case.dtype)]


# --- contractions ---------------------------------------------------------------------------------

# (M, N, K): rows, columns, length of the chain
PRODUCTS: tuple[tuple[int, int, int], ...] = (
    (7, 17, 9),
    *((0, 3, 4), (3, 0, 4), (1, 1, 0), (5, 17, 0), (1, 1, 1), (1, 1, 2), (2, 3, 5)),
    *((m, 17, 9) for m in (1, 4, 5, 6, 8, 11, 12, 13, 14, 15, 16, 17, 27, 28, 29, 31, 32, 33)),
    *((7, n, 9) for n in (1, 2, 3, 4, 7, 8, 9, 15, 16, 31, 32, 33, 47, 48, 49, 63, 64, 65)),
    *((6, 18, k) for k in (3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 255, 256, 257)),
    *((3, 17, 513), (13, 33, 511), (1, 100, 250), (32, 100, 250), (32, 5, 100), (1, 5, 1025)),
    *((100, 250, 32), (97, 49, 33), (193, 15, 20), (65, 130, 64), (1, 300, 3), (300, 1, 3)),
)


def _matmul_inputs(case: Case, rng: np.random.Generator) -> list[Array]:
    return [rng.normal(size=s).astype(case.dtype) for s in case.shapes]


def _contract_cases(dtype: str) -> Iterator[Case]:
    for m, n, k in PRODUCTS:
        for ta, tb in itertools.product((False, True), repeat=2):
            shapes = ((k, m) if ta else (m, k), (n, k) if tb else (k, n))
            attrs = {"transpose_a": ta, "transpose_b": tb}
            yield Case("matmul", shapes, dtype, Chain(), _matmul_inputs, attrs)
        for bias in (False, True):
            shapes = ((m, k), (n, k), (n,)) if bias else ((m, k), (n, k))
            for activation, n_out in ((None, 1), (None, 2), ("tanh", 1), ("swish", 2)):
                attrs = {"activation": activation, "param": 0.0}
                yield Case("dense", shapes, dtype, Chain(), _matmul_inputs, attrs, n_out=n_out)
        shapes = ((m, k), (k, n), (m, n))  # delta (B, N), w (N, K), r (B, K)
        for activation in (None, "tanh", "gelu"):
            attrs = {"activation": activation, "param": 0.0}
            yield Case("matmul_dact", shapes, dtype, Chain(), _matmul_inputs, attrs)
        for update in ("sgd", "adam"):
            yield _matmul_update(m, n, k, update, dtype)
    for name, (_, _, params) in ACTIVATIONS.items():
        attrs = {"activation": name, "param": params[-1]}
        shapes = ((5, 20), (33, 20), (33,))
        yield Case("dense", shapes, dtype, Chain(), _matmul_inputs, attrs, n_out=2)
        shapes = ((5, 20), (20, 33), (5, 33))
        yield Case("matmul_dact", shapes, dtype, Chain(), _matmul_inputs, attrs)
    for update in UPDATES:
        yield _matmul_update(5, 33, 20, update, dtype)
    for layout in LAYOUTS:
        attrs = {"transpose_a": False, "transpose_b": False}
        shapes = ((9, 20), (20, 33))
        yield Case("matmul", shapes, dtype, Chain(), _matmul_inputs, attrs, layout=layout)


# --- updates --------------------------------------------------------------------------------------

UPDATES = {
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "adam": 2,
    "adamw": 2,
    "rmsprop": 1,
    "adagrad": 1,
}


def coefficients(update: str, *, decay: float = 0.0, clip: float = np.inf) -> Array:
    """Return the coefficients of the third step of an optimizer, in the order of csrc/ops.h."""
    step, beta1, beta2, t = 0.01, 0.9, 0.999, 3
    denom = 1.0
    if update.startswith("adam"):
        step, denom = step / (1 - beta1**t), math.sqrt(1 - beta2**t)
    return np.array([step, decay, beta1, 1 - beta1, beta2, 1 - beta2, 1e-8, denom, clip])


def _states(update: str, shape: Shape, rng: np.random.Generator, dtype: str) -> list[Array]:
    # positive, as the second moment must be
    return [rng.uniform(0.01, 1, shape).astype(dtype) for _ in range(UPDATES[update])]


def _matmul_update(m: int, n: int, k: int, update: str, dtype: str) -> Case:
    def make(case: Case, rng: np.random.Generator) -> list[Array]:
        delta, x, w = (rng.normal(size=s).astype(dtype) for s in case.shapes[:3])
        return [delta, x, w, *_states(update, w.shape, rng, dtype), coefficients(update, decay=0.1)]

    states = ((m, n),) * UPDATES[update]
    shapes = ((k, m), (k, n), (m, n), *states, (9,))  # the batch is what the chain runs over
    return Case("matmul_update", shapes, dtype, Chain(), make, {"update": update})


def _update_cases(dtype: str) -> Iterator[Case]:
    def plain(decay: float, clip: float) -> Maker:
        def make(case: Case, rng: np.random.Generator) -> list[Array]:
            update = case.attrs["update"]
            w, g = (rng.normal(size=s).astype(dtype) for s in case.shapes[:2])
            coef = coefficients(update, decay=decay, clip=clip)
            return [w, g, *_states(update, w.shape, rng, dtype), coef]

        return make

    for update, n in UPDATES.items():
        attrs = {"update": update}
        for shape in (*((n,) for n in LENGTHS), (), (7, 33), (2, 3, 5)):
            shapes = (*(shape,) * (2 + n), (9,))
            for decay, clip in ((0.0, np.inf), (0.1, 0.5)):
                note = f"decay {decay} clip {clip}"
                make = plain(decay, clip)
                yield Case("update", shapes, dtype, Exact(), make, attrs, note=note)


# --- gather and scatter ---------------------------------------------------------------------------


def _gather_cases(dtype: str) -> Iterator[Case]:
    def table_and_ids(case: Case, rng: np.random.Generator) -> list[Array]:
        table, ids = case.shapes
        values = rng.normal(size=table).astype(dtype)
        return [values, indices(case, rng, max(table[0], 1), ids)]

    for d, ids in itertools.product((1, 7, 16, 50, 65), ((0,), (1,), (17,), (33, 5), (2, 3, 4))):
        yield Case("take", ((30, d), ids), dtype, Exact(), table_and_ids)
    yield Case("take", ((30,), (17, 3)), dtype, Exact(), table_and_ids)
    yield Case("take", ((30, 3, 5), (17,)), dtype, Exact(), table_and_ids)

    def ids_and_grads(case: Case, rng: np.random.Generator) -> list[Array]:
        ids, g = case.shapes
        values = rng.normal(size=g).astype(dtype)
        return [indices(case, rng, case.attrs["n_rows"], ids), values]

    def rows_and_sums(case: Case, rng: np.random.Generator) -> list[Array]:
        (n,), sums = case.shapes[:2]
        rows = np.full(n, -1, np.int64)
        used = min(n - n // 4, case.attrs.get("n_rows", 40))
        rows[:used] = rng.permutation(case.attrs.get("n_rows", 40))[:used]
        values = rng.normal(size=sums).astype(dtype)
        values[used:] = 0
        return [rows, values]

    for n, d, v in itertools.product((0, 1, 2, 17, 64, 500), (1, 7, 16, 50), (1, 40, 1000)):
        attrs = {"n_rows": v}
        shapes = ((n,), (n, d))
        yield Case("row_sums", shapes, dtype, Exact(), ids_and_grads, attrs)
        yield Case("scatter_rows", shapes, dtype, Exact(), rows_and_sums, attrs)

    def rows_and_weights(case: Case, rng: np.random.Generator) -> list[Array]:
        w = rng.normal(size=case.shapes[2]).astype(dtype)
        update = case.attrs["update"]
        coef = coefficients(update, decay=0.1, clip=1.5)
        return [*rows_and_sums(case, rng), w, *_states(update, w.shape, rng, dtype), coef]

    for (update, states), n, d in itertools.product(UPDATES.items(), (0, 1, 33), (1, 16, 50)):
        shapes = ((n,), (n, d), *((40, d),) * (1 + states), (9,))
        attrs = {"update": update}
        yield Case("update_rows", shapes, dtype, Exact(), rows_and_weights, attrs)

    def along_last(case: Case, rng: np.random.Generator) -> list[Array]:
        x, ids = case.shapes
        values = rng.normal(size=x).astype(dtype)
        size = case.attrs["size"] if "size" in case.attrs else x[-1]
        return [values, indices(case, rng, size, ids)]

    for lead, c in itertools.product(((), (1,), (17,), (0,), (2, 3)), (1, 5, 33)):
        yield Case("take_along_last", ((*lead, c), lead), dtype, Exact(), along_last)
        attrs = {"size": c}
        yield Case("put_along_last", (lead, lead), dtype, Exact(), along_last, attrs)


# --- copies ---------------------------------------------------------------------------------------


def _copy_cases(dtype: str) -> Iterator[Case]:
    def case(op: str, shapes: Sequence[Shape], **more: Any) -> Case:
        return Case(op, tuple(shapes), dtype, Exact(), between(-4, 4), **more)

    for shape in ((), (5,), (0, 3), (1, 17), (16, 16), (33, 65), (2, 3, 5), (2, 3, 4, 5)):
        for axes in itertools.permutations(range(len(shape))):
            yield case("transpose", [shape], attrs={"axes": axes})
    for layout in LAYOUTS:
        yield case("transpose", [(9, 33)], attrs={"axes": (1, 0)}, layout=layout)
        yield case("reshape", [(9, 33)], attrs={"shape": (33, 9)}, layout=layout)
    reshapes: list[tuple[Shape, Shape]] = [
        *(((), (1, 1)), ((1,), ()), ((6,), (2, 3)), ((2, 3), (6,)), ((4, 5, 6), (4, 30))),
        *(((4, 30), (4, 5, 6)), ((33, 2), (11, 6)), ((0, 3), (0,)), ((2, 3, 4, 5), (6, 20))),
    ]
    for shape, new in reshapes:
        yield case("reshape", [shape], attrs={"shape": new})
    for bounds in (
        (0, 17, 1),
        (3, 9, 1),
        (16, 17, 1),
        (5, 5, 1),
        (1, 17, 3),
        (16, -1, -1),
        (14, 2, -4),
    ):
        names = dict(zip(("start", "stop", "step"), bounds, strict=True))
        n = len(range(*bounds))
        for shape, axis in (
            ((17,), 0),
            ((17, 5), 0),
            ((5, 17), 1),
            ((2, 17, 3), 1),
            ((2, 3, 17), 2),
        ):
            small = (*shape[:axis], n, *shape[axis + 1 :])
            yield case("slice", [shape], attrs={"axis": axis, **names})
            yield case("unslice", [small], attrs={"axis": axis, **names, "length": 17})
    for axis, many in itertools.product(
        (0, 1, 2), ((3,), (1, 4), (0, 2, 5), (1, 2, 3, 4, 5, 6, 7))
    ):
        shapes = [tuple(n if i == axis else 3 + i for i in range(3)) for n in many]
        yield case("concatenate", shapes, attrs={"axis": axis})
    yield case("concatenate", [(16,), (17,), (1,)], attrs={"axis": 0})
    yield case("concatenate", [(33, 16), (33, 1)], attrs={"axis": 1})


# --- the table ------------------------------------------------------------------------------------

_GROUPS = (
    _map_cases,
    _activation_cases,
    _reduce_cases,
    _row_cases,
    _contract_cases,
    _update_cases,
    _gather_cases,
    _copy_cases,
)


def _by_op() -> dict[str, list[Case]]:
    table: dict[str, list[Case]] = {}
    for dtype, group in itertools.product(FLOATS, _GROUPS):
        for case in group(dtype):
            table.setdefault(case.op, []).append(case)
    return table


# op -> its cases
CASES: dict[str, list[Case]] = _by_op()

# elementwise ops: the core takes their operands with any strides
MAP_OPS = {
    case.op
    for group in (_map_cases, _activation_cases)
    for dtype in FLOATS
    for case in group(dtype)
}
