"""The numpy backend: every op as a plain formula, the arbiter of what the C core computes.

Nothing here is written for speed. The only formulas that are less than obvious are `fma` (numpy
has none, and the updates and the random numbers are defined with it) and Philox.

Shape letters: `B` rows of the minibatch, `K` inputs, `N` outputs, `C` classes, `V` table rows,
`D` columns of a table row, `n` ids.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

__all__ = [
    "ACTIVATIONS",
    "OPS",
    "UPDATES",
    "Activation",
    "Coefficients",
    "fma",
    "permutation",
    "philox",
    "uniform",
]


# --- functions that numpy does not have -----------------------------------------------------------


def _by_element(function: Callable[[float], float]) -> Callable[[Array], Array]:
    each = np.frompyfunc(function, 1, 1)

    def apply(x: Array) -> Array:
        return np.asarray(each(np.asarray(x, np.float64)), dtype=x.dtype)

    return apply


_erf = _by_element(math.erf)
_erfc = _by_element(math.erfc)


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))  # in (0, 1]: never overflows
    return np.asarray(np.where(z >= 0, 1, e) / (1 + e))


def _or_method(name: str, function: Callable[[Array], Array]) -> Callable[[Any], Any]:
    # whatever has a method of that name (a Tensor) is asked to record the op

    def call(x: Any) -> Any:
        method = getattr(x, name, None)
        return function(x) if method is None else method()

    return call


erf = _or_method("erf", _erf)
sigmoid = _or_method("sigmoid", _sigmoid)


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Array:
    """Return a * b + c rounded once.

    The sum is taken to twice the precision, its last bit is made odd where something was cut off,
    and only then rounded [1]_. Exact for float32; for float64 barring overflow and underflow of
    the partial results.

    Parameters
    ----------
    a, b, c : array_like
        Operands of one float type (float32 or float64), broadcast together.

    Returns
    -------
    ndarray
        Of the operands' type.

    References
    ----------
    .. [1] S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums: proved
       algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008.
    """
    a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
    dtype = np.result_type(a, b, c)
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    with np.errstate(all="ignore"):
        if dtype == np.float32:
            return _add_to_odd(a * b, c).astype(np.float32)  # 24 + 24 bits: the product is exact
        high, low = _two_product(a, b)
        t, t_rest = _two_sum(c, low)
        v, v_rest = _two_sum(high, t)
        exact = v + _add_to_odd(t_rest, v_rest)
        return np.asarray(np.where(np.isfinite(exact), exact, a * b + c))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    def split(x: Array) -> tuple[Array, Array]:
        t = x * 134217729.0  # 2^27 + 1
        high = t - (t - x)
        return high, x - high

    p = a * b
    (a1, a0), (b1, b0) = split(a), split(b)
    return p, ((a1 * b1 - p) + a1 * b0 + a0 * b1) + a0 * b0


def _add_to_odd(a: Array, b: Array) -> Array:
    # a + b; where that is inexact, the neighbour of the exact sum whose last bit is odd
    s, rest = _two_sum(a, b)
    bits = np.array(s, ndmin=1).view(np.int64).reshape(np.shape(s))
    fix = np.isfinite(s) & (rest != 0) & (bits & 1 == 0)
    step = np.where((rest > 0) == (s > 0), 1, -1)  # away from zero adds one to the bit pattern
    return np.asarray(bits + fix * step).view(np.float64)


# --- non-linearities ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """A non-linearity: one row of `ACTIVATIONS`.

    Attributes
    ----------
    f : callable
        ``f(z, param)``, elementwise, on arrays.
    df : callable
        ``df(r, param)``: the derivative of f, from the residual. Written with operators and numpy
        functions that the op table has, so that a Tensor records it: second derivatives are
        nothing but this.
    residual : {"y", "z"}
        What df wants: the function's value or its argument.
    param : float
        Default of the parameter (slope, alpha); functions without one ignore it.
    """

    f: Callable[[Any, float], Any]
    df: Callable[[Any, float], Any]
    residual: Literal["y", "z"]
    param: float = 0.0


def _one_where(condition: Any, r: Any, otherwise: float) -> Any:
    real = r.dtype.type  # where() promotes what has no type
    return np.where(condition, real(1), real(otherwise))


def _swish_df(z: Any, _: float) -> Any:
    z = np.clip(z, -800, 800)  # beyond, f' is 0 or 1 to the last bit, and inf * 0 would be NaN
    s = sigmoid(z)
    return s * (1 + z * (1 - s))


_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _gelu_df(z: Any, _: float) -> Any:
    z = np.clip(z, -40, 40)
    density = np.exp(-0.5 * z * z) * (_SQRT_HALF / math.sqrt(math.pi))
    return 0.5 * (1 + erf(z * _SQRT_HALF)) + z * density


def _gelu_tanh_f(z: Any, _: float) -> Any:
    z = np.maximum(z, -40)
    with np.errstate(over="ignore"):  # z^3 of the largest z is inf, and the sigmoid of it 1
        return z * sigmoid(2 * _SQRT_2_OVER_PI * (z + 0.044715 * z * z * z))  # 1 + tanh u = 2 s(2u)


def _gelu_tanh_df(z: Any, _: float) -> Any:
    z = np.clip(z, -40, 40)
    s = sigmoid(2 * _SQRT_2_OVER_PI * (z + 0.044715 * z * z * z))
    du = 2 * _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * z * z)
    return s + z * s * (1 - s) * du


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(
        f=lambda z, _: _sigmoid(z),
        df=lambda y, _: y * (1 - y),
        residual="y",
    ),
    "tanh": Activation(
        f=lambda z, _: np.tanh(z),
        df=lambda y, _: (1 - y) * (1 + y),  # 1 - y^2 would cancel near 1
        residual="y",
    ),
    "hard_tanh": Activation(
        f=lambda z, _: np.clip(z, -1, 1),
        df=lambda y, _: _one_where(np.abs(y) < 1, y, 0.0),
        residual="y",
    ),
    "relu": Activation(
        f=lambda z, _: np.where(z <= 0, 0.0, z),  # so asked, -0 gives +0 and NaN stays
        df=lambda y, _: _one_where(y > 0, y, 0.0),
        residual="y",
    ),
    "leaky_relu": Activation(
        f=lambda z, slope: np.where(z > 0, z, slope * z),
        df=lambda y, slope: _one_where(y > 0, y, slope),
        residual="y",
        param=0.01,
    ),
    "elu": Activation(
        f=lambda z, alpha: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0))),
        df=lambda y, alpha: np.where(y > 0, y.dtype.type(1), y + alpha),
        residual="y",
        param=1.0,
    ),
    "softplus": Activation(
        f=lambda z, _: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))),
        df=lambda z, _: sigmoid(z),
        residual="z",
    ),
    "swish": Activation(
        f=lambda z, _: np.maximum(z, -800) * _sigmoid(z),
        df=_swish_df,
        residual="z",
    ),
    "gelu": Activation(
        f=lambda z, _: np.maximum(z, -40) * (0.5 * _erfc(-z * _SQRT_HALF)),
        df=_gelu_df,
        residual="z",
    ),
    "gelu_tanh": Activation(
        f=_gelu_tanh_f,
        df=_gelu_tanh_df,
        residual="z",
    ),
}


# --- optimizers' updates --------------------------------------------------------------------------


class Coefficients(NamedTuple):
    """What an optimizer hands to one update step, in this order (COEF_* of csrc/ops.h)."""

    step: Any
    decay: Any
    beta1: Any
    one_beta1: Any
    beta2: Any
    one_beta2: Any
    eps: Any
    denom: Any
    clip: Any


def _decayed(c: Coefficients, w: Array, g: Array) -> Array:
    return fma(c.decay, w, g) if c.decay != 0 else g


# Each takes the weights, their gradient and the state and returns the new weights and state.


def _sgd(c: Coefficients, w: Array, g: Array) -> tuple[Array, ...]:
    return (fma(-c.step, _decayed(c, w, g), w),)


def _momentum(c: Coefficients, w: Array, g: Array, s1: Array) -> tuple[Array, ...]:
    s1 = fma(c.beta1, s1, _decayed(c, w, g))
    return fma(-c.step, s1, w), s1


def _nesterov(c: Coefficients, w: Array, g: Array, s1: Array) -> tuple[Array, ...]:
    g = _decayed(c, w, g)
    s1 = fma(c.beta1, s1, g)
    return fma(-c.step, fma(c.beta1, s1, g), w), s1


def _adam(c: Coefficients, w: Array, g: Array, s1: Array, s2: Array) -> tuple[Array, ...]:
    return _adam_step(c, w, _decayed(c, w, g), s1, s2)


def _adamw(c: Coefficients, w: Array, g: Array, s1: Array, s2: Array) -> tuple[Array, ...]:
    return _adam_step(c, fma(-c.decay, w, w), g, s1, s2)


def _adam_step(c: Coefficients, w: Array, g: Array, s1: Array, s2: Array) -> tuple[Array, ...]:
    s1 = fma(c.beta1, s1, c.one_beta1 * g)
    s2 = fma(c.beta2, s2, c.one_beta2 * (g * g))
    return fma(-c.step, s1 / (np.sqrt(s2) / c.denom + c.eps), w), s1, s2


def _rmsprop(c: Coefficients, w: Array, g: Array, s1: Array) -> tuple[Array, ...]:
    g = _decayed(c, w, g)
    s1 = fma(c.beta2, s1, c.one_beta2 * (g * g))
    return fma(-c.step, g / (np.sqrt(s1) + c.eps), w), s1


def _adagrad(c: Coefficients, w: Array, g: Array, s1: Array) -> tuple[Array, ...]:
    g = _decayed(c, w, g)
    s1 = fma(g, g, s1)
    return fma(-c.step, g / (np.sqrt(s1) + c.eps), w), s1


_UPDATE_FORMULAS: dict[str, tuple[int, Callable[..., tuple[Array, ...]]]] = {
    "sgd": (0, _sgd),
    "momentum": (1, _momentum),
    "nesterov": (1, _nesterov),
    "adam": (2, _adam),
    "adamw": (2, _adamw),
    "rmsprop": (1, _rmsprop),
    "adagrad": (1, _adagrad),
}

# update row -> number of state arrays
UPDATES: dict[str, int] = {name: states for name, (states, _) in _UPDATE_FORMULAS.items()}


# --- randomness: Philox4x32-10 --------------------------------------------------------------------

_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(key: int, step: int, blocks: npt.ArrayLike) -> Array:
    """Return the four random words of each block.

    Parameters
    ----------
    key : int
        64 bits; the generator's stream.
    step : int
        64 bits; the upper half of the counter.
    blocks : array_like of int, shape (n,)
        The lower half of the counter.

    Returns
    -------
    ndarray of uint64, shape (n, 4)
        32-bit words.

    References
    ----------
    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    block = np.asarray(blocks).astype(np.uint64)
    x0, x1 = block & _LOW32, block >> _32
    x2 = np.full_like(block, step & 0xFFFFFFFF)
    x3 = np.full_like(block, step >> 32 & 0xFFFFFFFF)
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (p1 >> _32) ^ x1 ^ np.uint64(k0), p1 & _LOW32
        x2, x3 = (p0 >> _32) ^ x3 ^ np.uint64(k1), p0 & _LOW32
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], axis=-1)


def _uniform_f32(key: int, step: int, n: int) -> Array:
    words = philox(key, step, np.arange((n + 3) // 4)).ravel()[:n]
    return ((words >> np.uint64(8)) * 2.0**-24).astype(np.float32)


def _uniform_f64(key: int, step: int, n: int) -> Array:
    words = philox(key, step, np.arange((n + 1) // 2)).reshape(-1, 2)[:n]
    return np.asarray(((words[:, 0] | words[:, 1] << _32) >> np.uint64(11)) * 2.0**-53)


def uniform(
    key: int, step: int, low: float, high: float, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Array:
    """Return random numbers, uniform in [low, high).

    Parameters
    ----------
    key, step : int
        64 bits each: the stream and the position in it.
    low, high : float
        Bounds, rounded to `dtype`.
    shape : tuple of int
        Shape of the result; element `e` in C order depends on `e` only.
    dtype : float32 or float64

    Returns
    -------
    ndarray
    """
    real: Any = np.dtype(dtype).type
    draw = _uniform_f32 if real is np.float32 else _uniform_f64
    u = draw(key, step, math.prod(shape))
    return fma(u, real(high) - real(low), real(low)).reshape(shape)


def permutation(key: int, epoch: int, n: int) -> Array:
    """Return a random permutation of range(n), by Fisher and Yates' shuffle.

    Parameters
    ----------
    key, epoch : int
        64 bits each.
    n : int
        Length, below 2^32.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    words = philox(key, epoch, np.arange(n))
    bound = np.arange(1, n + 1, dtype=np.uint64)
    # j = floor((w0 + 2^32 w1) bound / 2^64)
    swap = (words[:, 1] * bound + (words[:, 0] * bound >> _32)) >> _32
    order = list(range(n))
    for i, j in zip(range(n - 1, 0, -1), swap[:0:-1].tolist(), strict=True):
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)


# --- ops ------------------------------------------------------------------------------------------

# name -> fn(*inputs, **attributes) -> array or tuple of arrays, always new ones
OPS: dict[str, Callable[..., Any]] = {}


def _register(name: str, function: Callable[..., Any]) -> None:
    @functools.wraps(function)
    def op(*inputs: Any, **attributes: Any) -> Any:
        # IEEE results without warnings, as the C core gives them
        with np.errstate(all="ignore"):
            result = function(*(np.asarray(x) for x in inputs), **attributes)
        return tuple(map(np.asarray, result)) if isinstance(result, tuple) else np.asarray(result)

    OPS[name] = op


def _op(function: Callable[..., Any]) -> Callable[..., Any]:
    _register(function.__name__.removesuffix("_"), function)
    return function


def _checked(ids: Array, n: int) -> Array:
    bad = np.flatnonzero((ids < 0) | (ids >= n))
    if bad.size:
        raise IndexError(f"index {ids.flat[bad[0]]} at position {bad[0]} is not in [0, {n})")
    return ids.astype(np.int64)


# elementwise

for _name in (
    *("negative", "exp", "log", "log1p", "expm1", "sqrt", "square", "abs", "sign"),
    *("add", "subtract", "multiply", "divide"),
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "where"),
):
    _register(_name, getattr(np, _name))
_register("erf", _erf)


@_op
def copy(x: Array, *, shape: tuple[int, ...] | None = None) -> Array:
    return np.array(np.broadcast_to(x, x.shape if shape is None else shape))


@_op
def maximum(a: Array, b: Array) -> Array:
    return np.where((a >= b) | np.isnan(a), a, b)  # a tie (0 and -0) gives the first


@_op
def minimum(a: Array, b: Array) -> Array:
    return np.where((a <= b) | np.isnan(a), a, b)


@_op
def power(x: Array, *, exponent: float) -> Array:
    return x**exponent


@_op
def clip(x: Array, *, low: float, high: float) -> Array:
    return np.where(x < low, low, np.where(x > high, high, x))


@_op
def cast(x: Array, *, dtype: npt.DTypeLike) -> Array:
    return x.astype(dtype)


@_op
def dropout(x: Array, step: Array, *, rate: float, key: int) -> Array:
    keep = _uniform_f32(key, int(step), x.size).reshape(x.shape) >= rate
    return np.where(keep, x * x.dtype.type(1 / (1 - rate)), 0.0)


def _times_slope(g: Array, row: Activation, r: Array, param: float) -> Array:
    # a gate that compares would turn NaN into a number
    return np.where(np.isnan(r), r, g * row.df(r, param))


def _register_activation(name: str, row: Activation) -> None:
    def f(z: Array, *, param: float = row.param) -> Any:
        return row.f(z, param)

    def df(g: Array, r: Array, *, param: float = row.param) -> Any:
        return _times_slope(g, row, r, param)

    _register(name, f)
    _register("d" + name, df)


for _name, _row in ACTIVATIONS.items():
    _register_activation(_name, _row)


# reductions


@_op
def sum_(x: Array, *, axis: int) -> Any:
    return x.sum(axis)


@_op
def max_(x: Array, *, axis: int) -> Any:
    return x.max(axis)


@_op
def argmax(x: Array, *, axis: int) -> Any:
    return x.argmax(axis)


@_op
def sum_squares(x: Array) -> Any:
    return np.sum(np.square(x, dtype=np.float64))


@_op
def weighted_mean(losses: Array, w: Array) -> Any:
    w = w.astype(np.float64)
    total = np.sum(w)
    return np.sum(w * losses) / total if total else np.float64(0.0)


# rows


@_op
def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


@_op
def log_softmax(x: Array) -> Array:
    x = np.asarray(x - x.max(-1, keepdims=True))
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


@_op
def logsumexp(x: Array) -> Array:
    top = x.max(-1)
    shift = np.where(np.isinf(top), 0.0, top)[..., None]  # inf - inf is not the answer
    result = np.log(np.exp(x - shift).sum(-1)) + shift[..., 0]
    return np.asarray(np.where(np.isinf(top), top, result))


@_op
def softmax_cross_entropy(z: Array, y: Array) -> Array:
    y = _checked(y, z.shape[-1])
    return -np.take_along_axis(log_softmax(z), y[:, None], -1)[:, 0]


@_op
def dsoftmax_cross_entropy(g: Array, z: Array, y: Array) -> Array:
    one_hot = _checked(y, z.shape[-1])[:, None] == np.arange(z.shape[-1])
    return np.asarray(g[:, None] * (softmax(z) - one_hot))


# contractions


@_op
def matmul(a: Array, b: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    return (a.T if transpose_a else a) @ (b.T if transpose_b else b)


def _row_and_param(activation: str, param: float | None) -> tuple[Activation, float]:
    row = ACTIVATIONS[activation]
    return row, row.param if param is None else param


@_op
def dense(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    activation: str | None = None,
    param: float | None = None,
) -> tuple[Array, Array]:
    """Return y = f(z) and z = x w^T + b."""
    z = x @ w.T
    if b is not None:
        z = z + b
    if activation is None:
        return z, z.copy()
    row, param = _row_and_param(activation, param)
    return row.f(z, param), z


@_op
def matmul_dact(
    delta: Array,
    w: Array,
    r: Array,
    *,
    activation: str | None = None,
    param: float | None = None,
) -> Any:
    if activation is None:
        return delta @ w
    row, param = _row_and_param(activation, param)
    return _times_slope(delta @ w, row, r, param)


@_op
def matmul_update(delta: Array, x: Array, *rest: Array, update: str) -> tuple[Array, ...]:
    w, *states, coef = rest
    return _update(w, delta.T @ x, *states, coef, update=update)


# updates


def _update(w: Array, g: Array, *rest: Array, update: str) -> tuple[Array, ...]:
    *states, coef = rest
    n_states, formula = _UPDATE_FORMULAS[update]
    if len(states) != n_states:
        raise ValueError(f"update {update!r} has {n_states} states, got {len(states)}")
    c = Coefficients(*coef.astype(w.dtype))
    if c.clip < np.inf:
        g = clip(g, low=-c.clip, high=c.clip)
    return formula(c, w, g, *states)


_register("update", _update)


@_op
def update_rows(rows: Array, sums: Array, *rest: Array, update: str) -> tuple[Array, ...]:
    *values, coef = rest
    results = tuple(value.copy() for value in values)
    used = rows >= 0
    touched = _checked(rows[used], len(values[0]))
    w, *states = (value[touched] for value in values)
    for result, new in zip(
        results, _update(w, sums[used], *states, coef, update=update), strict=True
    ):
        result[touched] = new
    return results


# gather and scatter


@_op
def take(table: Array, ids: Array) -> Any:
    return table[_checked(ids, len(table))]


@_op
def row_sums(ids: Array, g: Array, *, n_rows: int) -> tuple[Array, Array]:
    _checked(ids[ids != -1], n_rows)
    rows, sums = np.full(ids.shape, -1, np.int64), np.zeros_like(g)
    slot: dict[int, int] = {}
    for row, g_row in zip(ids.tolist(), g, strict=True):
        if row == -1:  # no row: sums of sums have such places
            continue
        i = slot.setdefault(row, len(slot))
        rows[i] = row
        sums[i] += g_row
    return rows, sums


@_op
def scatter_rows(rows: Array, sums: Array, *, n_rows: int) -> Array:
    result = np.zeros((n_rows, *sums.shape[1:]), sums.dtype)
    used = rows >= 0
    result[_checked(rows[used], n_rows)] = sums[used]
    return result


@_op
def take_along_last(x: Array, ids: Array) -> Any:
    return np.take_along_axis(x, _checked(ids, x.shape[-1])[..., None], -1)[..., 0]


@_op
def put_along_last(g: Array, ids: Array, *, size: int) -> Array:
    result = np.zeros((*g.shape, size), g.dtype)
    np.put_along_axis(result, _checked(ids, size)[..., None], g[..., None], -1)
    return result


# copies


@_op
def transpose(x: Array, *, axes: Sequence[int]) -> Array:
    return x.transpose(axes).copy()


@_op
def reshape(x: Array, *, shape: Sequence[int]) -> Array:
    return x.reshape(shape).copy()


def _at(axis: int, start: int, stop: int, step: int) -> tuple[Any, ...]:
    # range's meaning of the bounds, not slicing's: with step < 0, stop = -1 includes element 0
    return (*(slice(None),) * axis, np.arange(start, stop, step))


@_op
def slice_(x: Array, *, axis: int, start: int, stop: int, step: int = 1) -> Any:
    return x[_at(axis, start, stop, step)]


@_op
def unslice(g: Array, *, axis: int, start: int, stop: int, step: int = 1, length: int) -> Array:
    result = np.zeros((*g.shape[:axis], length, *g.shape[axis + 1 :]), g.dtype)
    result[_at(axis, start, stop, step)] = g
    return result


@_op
def concatenate(*xs: Array, axis: int) -> Array:
    return np.concatenate(xs, axis)
