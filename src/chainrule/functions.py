"""The public spelling of the op table: functions of Tensors, arrays and numbers.

They settle what a row takes for granted: dtypes agree as NumPy has it, axes are counted from the
front, shapes are checked. `METHODS` and `NUMPY_FUNCTIONS` let Tensor's methods and NumPy's
functions find them.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from typing import cast as cast_type

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import graph, reference
from .errors import DtypeError, ShapeError, UsageError
from .graph import METHODS, NUMPY_FUNCTIONS, Tensor, apply, tensor

TensorLike = Tensor | ArrayLike

_BOOL = np.dtype(np.bool_)
_FLOAT64 = np.dtype(np.float64)


def as_tensor(value: TensorLike, like: Tensor | None = None) -> Tensor:
    """The Tensor of an operand; a Python number takes the dtype of `like`."""
    if isinstance(value, Tensor):
        return value
    if like is not None and isinstance(value, int | float) and not isinstance(value, bool):
        dtype = like.dtype
        if isinstance(value, float) and not np.issubdtype(dtype, np.floating):
            dtype = _FLOAT64
        return Tensor(np.asarray(value, dtype))
    constant = tensor(value)
    constant.requires_grad = False
    return constant


def _float(x: TensorLike, name: str) -> Tensor:
    t = as_tensor(x)
    if not np.issubdtype(t.dtype, np.floating):
        if t._op is not None or np.issubdtype(t.dtype, np.bool_):
            raise DtypeError(f"{name}: expected a float Tensor, got dtype {t.dtype}")
        t = cast(t, _FLOAT64)
    return t


def _pair(a: TensorLike, b: TensorLike) -> tuple[Tensor, Tensor]:
    """Two operands of one dtype, chosen as NumPy does (Python numbers are weak)."""
    if isinstance(a, Tensor):
        b = as_tensor(b, a)
    elif isinstance(b, Tensor):
        a = as_tensor(a, b)
    left, right = as_tensor(a), as_tensor(b)
    if left.dtype != right.dtype:
        dtype = np.result_type(left.dtype, right.dtype)
        left, right = cast(left, dtype), cast(right, dtype)
    return left, right


def _arithmetic(name: str) -> Callable[[TensorLike, TensorLike], Tensor]:
    def function(a: TensorLike, b: TensorLike) -> Tensor:
        left, right = _pair(a, b)
        if not np.issubdtype(left.dtype, np.floating):
            left, right = cast(left, _FLOAT64), cast(right, _FLOAT64)
        return apply(name, (left, right))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Elementwise ``{name}`` of two operands with broadcasting."
    return function


add = _arithmetic("add")
subtract = _arithmetic("subtract")
multiply = _arithmetic("multiply")
divide = _arithmetic("divide")
maximum = _arithmetic("maximum")
minimum = _arithmetic("minimum")


def _compare(name: str) -> Callable[[TensorLike, TensorLike], Any]:
    def function(a: TensorLike, b: TensorLike) -> Any:
        left, right = _pair(a, b)
        if not np.issubdtype(left.dtype, np.floating):
            left, right = cast(left, _FLOAT64), cast(right, _FLOAT64)
        result = apply(name, (left, right))
        return result if graph.is_tracing() else result.data

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Elementwise ``{name}``: a bool array (a Tensor while tracing)."
    return function


less = _compare("less")
less_equal = _compare("less_equal")
greater = _compare("greater")
greater_equal = _compare("greater_equal")
equal = _compare("equal")
not_equal = _compare("not_equal")


def _unary(name: str, text: str) -> Callable[[TensorLike], Tensor]:
    def function(x: TensorLike) -> Tensor:
        return apply(name, (_float(x, name),))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Elementwise {text}."
    return function


negative = _unary("negative", "-x")
exp = _unary("exp", "exponential")
log = _unary("log", "natural logarithm")
log1p = _unary("log1p", "log(1 + x)")
expm1 = _unary("expm1", "exp(x) - 1")
sqrt = _unary("sqrt", "square root")
square = _unary("square", "square")
abs = _unary("abs", "absolute value")
sign = _unary("sign", "sign: -1, 0 or 1")
erf = _unary("erf", "error function")


def _activation(name: str, text: str) -> Callable[[TensorLike], Tensor]:
    def function(x: TensorLike) -> Tensor:
        attrs = {"param": reference.ACTIVATIONS[name].param}
        return apply(name, (_float(x, name),), attrs)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Elementwise {text}."
    return function


sigmoid = _activation("sigmoid", "logistic function 1 / (1 + exp(-x))")
tanh = _activation("tanh", "hyperbolic tangent")
hard_tanh = _activation("hard_tanh", "clip of x to [-1, 1]")
relu = _activation("relu", "max(x, 0)")
softplus = _activation("softplus", "log(1 + exp(x))")
swish = _activation("swish", "x sigmoid(x)")


def leaky_relu(x: TensorLike, slope: float = 0.01) -> Tensor:
    """Elementwise x where positive, else ``slope * x``."""
    return activate(as_tensor(x), "leaky_relu", slope)


def elu(x: TensorLike, alpha: float = 1.0) -> Tensor:
    """Elementwise x where positive, else ``alpha * (exp(x) - 1)`` (Clevert et al., 2016)."""
    return activate(as_tensor(x), "elu", alpha)


def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """Elementwise ``x Phi(x)`` (Hendrycks and Gimpel, 2016).

    Parameters
    ----------
    x
        Operand.
    approximate
        ``"none"``, or ``"tanh"`` for the tanh form.
    """
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise UsageError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")
    return activate(as_tensor(x), names[approximate])


def activate(z: Tensor, name: str | None, param: float | None = None) -> Tensor:
    """The non-linearity of that row applied to z; z itself for None."""
    if name is None:
        return z
    row = reference.ACTIVATIONS.get(name)
    if row is None:
        known = ", ".join(sorted(reference.ACTIVATIONS))
        raise UsageError(f"activation: expected one of {known}, or None, got {name!r}")
    return apply(name, (_float(z, name),), {"param": _checked_param(name, param)})


def _checked_param(name: str, param: float | None) -> float:
    """A row's parameter. f' is found from y, whose sign must be that of z: none below 0."""
    value = reference.ACTIVATIONS[name].param if param is None else float(param)
    if not value >= 0.0:
        raise UsageError(f"{name}: expected a parameter from 0 up, got {param!r}")
    return value


def power(x: TensorLike, exponent: float) -> Tensor:
    """Elementwise ``x ** exponent`` for a number `exponent`."""
    if not isinstance(exponent, int | float):
        raise UsageError(
            f"**: expected a number as exponent, got {type(exponent).__name__}; "
            "write cr.exp(cr.log(x) * exponent)"
        )
    return apply("power", (_float(x, "power"),), {"exponent": float(exponent)})


def clip(x: TensorLike, low: float = -np.inf, high: float = np.inf) -> Tensor:
    """Elementwise ``min(max(x, low), high)`` for numbers `low` and `high`."""
    return apply("clip", (_float(x, "clip"),), {"low": float(low), "high": float(high)})


def where(condition: TensorLike, a: TensorLike, b: TensorLike) -> Tensor:
    """Elementwise `a` where `condition` is true, else `b`."""
    chosen = as_tensor(condition)
    if chosen.dtype != _BOOL:
        raise DtypeError(f"where: expected a bool condition, got {chosen.dtype}")
    return apply("where", (chosen, *_pair(a, b)))


def cast(x: TensorLike, dtype: DTypeLike) -> Tensor:
    """The values as another dtype; the Tensor itself where it has that dtype."""
    t, target = as_tensor(x), np.dtype(dtype)
    return t if t.dtype == target else apply("cast", (t,), {"dtype": target})


def stop_gradient(x: TensorLike) -> Tensor:
    """The value of x as a constant: no gradient flows through."""
    t = as_tensor(x)
    if not graph.is_tracing():
        return t.detach()
    with graph.no_grad():
        return apply("copy", (t,))


def _axis(axis: int, ndim: int, name: str) -> int:
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{name}: axis {axis} is out of range for {ndim} axes")
    return axis % ndim


def sum(x: TensorLike, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over one axis, several, or all (the last axis first)."""
    t = _float(x, "sum")
    axes = range(t.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    wanted = sorted((_axis(a, t.ndim, "sum") for a in axes), reverse=True)
    kept = tuple(1 if i in wanted else n for i, n in enumerate(t.shape))
    for a in wanted:
        t = apply("sum", (t,), {"axis": a})
    return reshape(t, kept) if keepdims else t


def mean(
    x: TensorLike, axis: int | tuple[int, ...] | None = None, keepdims: bool = False
) -> Tensor:
    """Arithmetic mean over one axis, several, or all."""
    t = _float(x, "mean")
    total = sum(t, axis, keepdims)
    return total / float(builtins.max(1, t.size // builtins.max(1, total.size)))


def var(
    x: TensorLike,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    ddof: int = 0,
) -> Tensor:
    """Variance over one axis, several, or all; divided by ``n - ddof``."""
    t = _float(x, "var")
    total = sum(square(t - mean(t, axis, keepdims=True)), axis, keepdims)
    return total / float(t.size // builtins.max(1, total.size) - ddof)


def _last(t: Tensor, axis: int, name: str) -> tuple[Tensor, tuple[int, ...] | None]:
    """`t` with `axis` swapped to the end, and the permutation that does (and undoes) it."""
    axis = _axis(axis, t.ndim, name)
    if axis == t.ndim - 1:
        return t, None
    axes = list(range(t.ndim))
    axes[axis], axes[-1] = axes[-1], axes[axis]
    return transpose(t, axes), tuple(axes)


def max(x: TensorLike, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Maximum over one axis or all; the gradient goes to the first of equals."""
    t = _float(x, "max")
    if axis is None:
        out = apply("max", (reshape(t, (-1,)),), {"axis": 0})
        return reshape(out, (1,) * t.ndim) if keepdims else out
    axis = _axis(axis, t.ndim, "max")
    rest = [a for a in range(t.ndim) if a != axis]
    moved = t if axis == t.ndim - 1 else transpose(t, (*rest, axis))
    out = apply("max", (moved,), {"axis": t.ndim - 1})
    return reshape(out, (*t.shape[:axis], 1, *t.shape[axis + 1 :])) if keepdims else out


def _along_axis(name: str, text: str) -> Callable[..., Tensor]:
    def function(x: TensorLike, axis: int = -1) -> Tensor:
        t, axes = _last(_float(x, name), axis, name)
        y = apply(name, (t,))
        return y if axes is None else transpose(y, axes)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{text} along one axis."
    return function


softmax = _along_axis("softmax", "Softmax ``exp(x) / sum(exp(x))``")
log_softmax = _along_axis("log_softmax", "Logarithm of the softmax")


def logsumexp(x: TensorLike, axis: int = -1, keepdims: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` along one axis, without overflow."""
    t = _float(x, "logsumexp")
    axis = _axis(axis, t.ndim, "logsumexp")
    rest = [a for a in range(t.ndim) if a != axis]
    moved = t if axis == t.ndim - 1 else transpose(t, (*rest, axis))
    out = apply("logsumexp", (moved,))
    return reshape(out, (*t.shape[:axis], 1, *t.shape[axis + 1 :])) if keepdims else out


def reshape(x: TensorLike, shape: int | Sequence[int], *rest: int) -> Tensor:
    """The same elements in another shape; one size may be -1."""
    t = as_tensor(x)
    wanted = (shape, *rest) if isinstance(shape, int) else tuple(shape)
    known = int(np.prod([n for n in wanted if n != -1], dtype=np.int64))
    if wanted.count(-1) == 1 and known and t.size % known == 0:
        wanted = tuple(t.size // known if n == -1 else n for n in wanted)
    if -1 in wanted or int(np.prod(wanted, dtype=np.int64)) != t.size:
        raise ShapeError(f"reshape: {t.shape} has {t.size} elements, which do not fill {wanted}")
    return t if wanted == t.shape else apply("reshape", (t,), {"shape": wanted})


def transpose(x: TensorLike, axes: Sequence[int] | None = None) -> Tensor:
    """The axes in another order; reversed by default."""
    t = as_tensor(x)
    order = (
        tuple(range(t.ndim))[::-1]
        if axes is None
        else tuple(_axis(a, t.ndim, "transpose") for a in axes)
    )
    if sorted(order) != list(range(t.ndim)):
        raise ShapeError(f"transpose: axes {axes} are no permutation of {t.ndim} axes")
    return t if order == tuple(range(t.ndim)) else apply("transpose", (t,), {"axes": order})


def broadcast_to(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    if t.shape == shape:
        return t
    return apply("add", (t, Tensor(np.zeros(shape, t.dtype))))


def concatenate(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join Tensors along an axis that they have."""
    tensors = [as_tensor(x) for x in xs]
    if not tensors:
        raise UsageError("concatenate: expected at least one Tensor")
    dtype = np.result_type(*[t.dtype for t in tensors])
    tensors = [cast(t, dtype) for t in tensors]
    axis = _axis(axis, tensors[0].ndim, "concatenate")
    while len(tensors) > 1:  # an instruction takes at most seven operands
        groups = [tensors[i : i + 7] for i in range(0, len(tensors), 7)]
        tensors = [apply("concatenate", tuple(g), {"axis": axis}) for g in groups]
    return tensors[0]


def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join Tensors of one shape along a new axis."""
    tensors = [as_tensor(x) for x in xs]
    if not tensors:
        raise UsageError("stack: expected at least one Tensor")
    axis = _axis(axis, tensors[0].ndim + 1, "stack")
    return concatenate([reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in tensors], axis)


def split(x: TensorLike, sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut along an axis into equal parts, or before the given positions."""
    t = as_tensor(x)
    axis = _axis(axis, t.ndim, "split")
    n = t.shape[axis]
    if isinstance(sections, int):
        if sections < 1 or n % sections:
            raise ShapeError(f"split: {n} elements do not divide into {sections} equal parts")
        cuts = list(range(0, n + 1, n // sections)) if n else [0] * (sections + 1)
    else:
        cuts = [0, *sections, n]
    return [_slice(t, axis, slice(a, b)) for a, b in pairwise(cuts)]


def _slice(t: Tensor, axis: int, s: slice) -> Tensor:
    start, stop, step = s.indices(t.shape[axis])
    if (start, stop, step) == (0, t.shape[axis], 1):
        return t
    return apply("slice", (t,), {"axis": axis, "start": start, "stop": stop, "step": step})


def take(x: TensorLike, ids: TensorLike, axis: int = 0) -> Tensor:
    """Elements of an axis by integer position: rows of a table for ``axis=0``.

    Raises
    ------
    DtypeError
        If `ids` are not integers.
    IndexError
        If one is out of range.
    """
    t, positions = as_tensor(x), as_tensor(ids)
    if not np.issubdtype(positions.dtype, np.integer):
        raise DtypeError(f"take: expected integer ids, got {positions.dtype}")
    axis = _axis(axis, t.ndim, "take")
    if axis:
        order = [axis, *(a for a in range(t.ndim) if a != axis)]
        taken = take(transpose(t, order), positions)
        k = positions.ndim
        back = [*range(k, k + axis), *range(k), *range(k + axis, taken.ndim)]
        return transpose(taken, back)
    if t.ndim == 2:
        return apply("take", (t, positions))
    flat = apply("take", (reshape(t, (t.shape[0], -1)), positions))
    return reshape(flat, positions.shape + t.shape[1:])


def take_along_axis(x: TensorLike, ids: TensorLike, axis: int = -1) -> Tensor:
    """For each position of the other axes, the element of `axis` that `ids` names.

    `ids` has the shape of `x` but for `axis`, where it has size 1 or more.
    """
    t, axes = _last(as_tensor(x), axis, "take_along_axis")
    positions, _ = _last(as_tensor(ids), axis, "take_along_axis")
    columns = [
        apply(
            "take_along_last",
            (t, reshape(_slice(positions, t.ndim - 1, slice(i, i + 1)), positions.shape[:-1])),
        )
        for i in range(positions.shape[-1])
    ]
    y = stack(columns, axis=-1)
    return y if axes is None else transpose(y, axes)


def getitem(t: Tensor, index: Any) -> Tensor:
    """``t[index]``: integers, slices, None, ..., and integer or bool arrays in front."""
    items = index if isinstance(index, tuple) else (index,)
    items = tuple(i.data if isinstance(i, Tensor) and i._op is None else i for i in items)
    if any(isinstance(i, np.ndarray | list | Tensor) for i in items):
        return _getitem_arrays(t, items)
    used = builtins.sum(1 for i in items if i is not None and i is not Ellipsis)
    if used > t.ndim:
        raise IndexError(f"too many indices: {used} for a Tensor of {t.ndim} axes")
    if Ellipsis not in items:
        items = (*items, Ellipsis)
    at = items.index(Ellipsis)
    items = (*items[:at], *[slice(None)] * (t.ndim - used), *items[at + 1 :])
    shape: list[int] = []
    axis = 0
    for i in items:
        if i is None:
            shape.append(1)
            continue
        if isinstance(i, slice):
            t = _slice(t, axis, i)
            shape.append(t.shape[axis])
        else:
            i = int(i.__index__())
            n = t.shape[axis]
            if not -n <= i < n:
                raise IndexError(f"index {i} is out of range for axis {axis} of size {n}")
            t = _slice(t, axis, slice(i % n, i % n + 1))
        axis += 1
    return reshape(t, shape)


def _getitem_arrays(t: Tensor, items: tuple[Any, ...]) -> Tensor:
    if any(isinstance(i, slice) or i is None or i is Ellipsis for i in items):
        raise UsageError("indexing: integer arrays do not mix with slices, None or ...; use take")
    if len(items) == 1 and isinstance(items[0], Tensor):
        return take(t, items[0])
    if any(isinstance(i, Tensor) for i in items):
        raise UsageError("indexing by several Tensors: use take_along_axis")
    arrays = [np.asarray(i) for i in items]
    if len(arrays) == 1 and arrays[0].dtype == _BOOL:
        arrays = list(np.nonzero(arrays[0]))
    for axis, ids in enumerate(arrays):
        n = t.shape[axis]
        if not np.issubdtype(ids.dtype, np.integer):
            raise DtypeError(f"indexing: expected integers, got {ids.dtype}")
        if ids.size and not (-n <= ids.min() and ids.max() < n):
            raise IndexError(f"index out of range for axis {axis} of size {n}")
    sizes = t.shape[: len(arrays)]
    wrapped = [np.where(i < 0, i + n, i) for i, n in zip(arrays, sizes, strict=True)]
    flat: NDArray[Any] = np.asarray(np.ravel_multi_index(np.broadcast_arrays(*wrapped), sizes))
    return take(reshape(t, (-1, *t.shape[len(arrays) :])), flat.astype(np.int64))


def matmul_flagged(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool) -> Tensor:
    return apply("matmul", (a, b), {"transpose_a": transpose_a, "transpose_b": transpose_b})


def _untransposed(t: Tensor) -> tuple[Tensor, bool]:
    """The matrix of which t is the transpose, where it is one: saves a copy."""
    if t._op is not None and t._op.name == "transpose" and t.ndim == 2:
        return t._inputs[0], True
    return t, False


def matmul(a: TensorLike, b: TensorLike) -> Tensor:
    """Matrix product ``a @ b`` of vectors and matrices; `a` may have leading axes."""
    left, right = _pair(a, b)
    left, right = _float(left, "matmul"), _float(right, "matmul")
    if not left.ndim or not right.ndim or right.ndim > 2:
        raise ShapeError(
            f"@: expected a vector or matrix on the right, got {left.shape} @ {right.shape}"
        )
    if left.shape[-1] != right.shape[0]:
        raise ShapeError(f"@: inner sizes differ, {left.shape} @ {right.shape}")
    shape = left.shape[:-1] + right.shape[1:]
    if right.ndim == 1:
        right = reshape(right, (-1, 1))
    if left.ndim != 2:
        left = reshape(left, (-1, left.shape[-1]))
    x, ta = _untransposed(left)
    y, tb = _untransposed(right)
    return reshape(matmul_flagged(x, y, ta, tb), shape)


def dense(
    x: TensorLike,
    w: TensorLike,
    b: TensorLike | None = None,
    activation: str | None = None,
    param: float | None = None,
) -> Tensor:
    """A layer in one pass, ``f(x W^T + b)``.

    Parameters
    ----------
    x
        (..., K).
    w
        (N, K).
    b
        (N), or None.
    activation
        Name of the non-linearity f, or None.
    param
        Its parameter (the slope of leaky_relu, the alpha of elu).

    Returns
    -------
    Tensor
        (..., N).
    """
    left, weights = _pair(_float(x, "dense"), w)
    operands = [reshape(left, (-1, left.shape[-1])) if left.ndim != 2 else left, weights]
    if b is not None:
        operands.append(cast(as_tensor(b, left), left.dtype))
    fused = None
    if activation is not None:
        row = reference.ACTIVATIONS.get(activation)
        if row is None:
            known = ", ".join(sorted(reference.ACTIVATIONS))
            raise UsageError(f"dense: expected activation {known}, or None, got {activation!r}")
        param = _checked_param(activation, param)
        fused = activation if row.residual == "y" else None
    y = apply("dense", operands, {"activation": fused, "param": param or 0.0})
    if activation is not None and fused is None:  # f' needs z, so z is a node of its own
        y = activate(y, activation, param)
    return reshape(y, (*left.shape[:-1], weights.shape[0]))


def softmax_cross_entropy(z: TensorLike, y: TensorLike) -> Tensor:
    """Cross entropy of each sample, ``logsumexp(z) - z[y]``.

    Parameters
    ----------
    z
        Scores (batch, classes).
    y
        Integer labels (batch,).
    """
    return apply("softmax_cross_entropy", (_float(z, "softmax_cross_entropy"), as_tensor(y)))


def dropout(x: TensorLike, rate: float, key: int, step: TensorLike) -> Tensor:
    """x / (1 - rate) with probability ``1 - rate``, else 0; the draw is (key, step, position)."""
    t = _float(x, "dropout")
    return apply("dropout", (t, as_tensor(step)), {"rate": float(rate), "key": key})


def scatter_rows(g: Tensor) -> Tensor:
    """The whole gradient of a table from the sums of its touched rows."""
    return apply("scatter_rows", (g,), {"n_rows": g._value.n_rows})


# -- Tensor's methods and NumPy's functions name rows too ----------------------------------------

METHODS.update(
    {
        f.__name__: f
        for f in (
            add, subtract, multiply, divide, power, matmul, negative, abs, exp, log, log1p, expm1,
            sqrt, square, erf, sign, sigmoid, tanh, hard_tanh, relu, leaky_relu, elu, softplus,
            swish, gelu, softmax, log_softmax, logsumexp, maximum, minimum, clip, sum, mean, var,
            max, reshape, transpose, take, take_along_axis, cast, getitem, less, less_equal,
            greater, greater_equal, equal, not_equal, scatter_rows,
        )
    }
)  # fmt: skip

METHODS["split"] = cast_type("Callable[..., Tensor]", split)  # the one that gives a list

NUMPY_FUNCTIONS.update(
    {
        np.add: add, np.subtract: subtract, np.multiply: multiply, np.divide: divide,
        np.power: power, np.matmul: matmul, np.dot: matmul, np.negative: negative,
        np.absolute: abs, np.exp: exp, np.log: log, np.log1p: log1p, np.expm1: expm1,
        np.sqrt: sqrt, np.square: square, np.sign: sign, np.tanh: tanh, np.maximum: maximum,
        np.minimum: minimum, np.less: less, np.less_equal: less_equal, np.greater: greater,
        np.greater_equal: greater_equal, np.equal: equal, np.not_equal: not_equal,
        np.where: where, np.clip: clip, np.sum: sum, np.mean: mean, np.var: var, np.max: max,
        np.amax: max, np.reshape: reshape, np.transpose: transpose,
        np.concatenate: concatenate, np.stack: stack, np.split: split, np.take: take,
        np.take_along_axis: take_along_axis,
    }
)  # fmt: skip
