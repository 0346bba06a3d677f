"""Derivatives of functions, Jacobians, and the gradient check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import backend, functions, graph
from .errors import DtypeError, ShapeError, UsageError
from .graph import Tensor

Array = NDArray[Any]


def _operands(args: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """The arguments as Tensors, and whether the results are to be Tensors too.

    A Tensor is stood in for by a copy, a node of its own: what else the function makes of the same
    Tensor, by closing over it or by another argument, is no part of this derivative.
    """
    operands = []
    for a in args:
        t = graph.tensor(a)
        if not np.issubdtype(t.dtype, np.floating):
            raise DtypeError(
                f"expected floats to differentiate by, got {t.dtype}: write 3.0 for 3, "
                "array.astype(float) for integers"
            )
        if isinstance(a, Tensor):
            with graph.recording():
                own = t if t.requires_grad else Tensor(t._value, requires_grad=True)
                t = graph.apply("copy", (own,))
        operands.append(t)
    return operands, any(isinstance(a, Tensor) for a in args)


def _result(gradient: Tensor | None, like: Tensor, nested: bool) -> Any:
    if gradient is None:
        gradient = Tensor(np.zeros(like.shape, like.dtype))
    gradient = graph._densify(gradient)
    return gradient if nested else gradient.data


def value_and_grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that gives the value of f and its gradient.

    Parameters
    ----------
    f
        A function of ops with a scalar result.
    argnums
        Which arguments to differentiate by.

    Returns
    -------
    callable
        With f's arguments; gives (value, gradient), the gradient a tuple where `argnums` is one:
        ndarrays for arrays, Tensors (which can be differentiated again) where an argument is one.
    """
    picked = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def wrapped(*args: Any) -> tuple[Any, Any]:
        operands, nested = _operands([args[i] for i in picked])
        full = list(args)
        for i, t in zip(picked, operands, strict=True):
            full[i] = t
        with graph.recording():
            value = functions.as_tensor(f(*full))
        if value.size != 1:
            raise ShapeError(
                f"grad: expected a function with a scalar result, got shape {value.shape}; "
                "use cr.vjp or cr.jacobian"
            )
        found = graph.gradients(value, operands, record=nested)
        grads = tuple(_result(g, t, nested) for g, t in zip(found, operands, strict=True))
        return (
            value if nested else value.data,
            grads[0] if isinstance(argnums, int) else grads,
        )

    return wrapped


def grad(f: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that gives the gradient of f; see `value_and_grad`."""
    both = value_and_grad(f, argnums)
    return lambda *args: both(*args)[1]


def vjp(f: Callable[..., Any], *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The value of f, and the function u -> u^T J for each argument.

    Parameters
    ----------
    f
        A function of functions.
    *args
        Where to differentiate.
    """
    operands, nested = _operands(args)
    with graph.recording():
        value = functions.as_tensor(f(*operands))

    def pull(upstream: Any) -> tuple[Any, ...]:
        inner = nested or isinstance(upstream, Tensor)
        seed = functions.as_tensor(upstream)
        if seed.shape != value.shape:
            raise ShapeError(f"vjp: expected an upstream of shape {value.shape}, got {seed.shape}")
        found = graph.gradients(value, operands, functions.cast(seed, value.dtype), record=inner)
        return tuple(_result(g, t, inner) for g, t in zip(found, operands, strict=True))

    return (value if nested else value.data), pull


def jvp(f: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of f and the directional derivative J t.

    u^T J is linear in u, so its derivative by u along t is J t: two backward passes.

    Parameters
    ----------
    f
        A function of functions.
    args, tangents
        Where, and in which direction, to differentiate.
    """
    operands, nested = _operands(args)
    with graph.recording():
        value = functions.as_tensor(f(*operands))
        dummy = Tensor(np.zeros(value.shape, value.dtype), requires_grad=True)
        pulled = graph.gradients(value, operands, dummy, record=True)
        total: Tensor | None = None
        for g, t, tangent in zip(pulled, operands, tangents, strict=True):
            if g is not None:
                direction = functions.cast(functions.as_tensor(tangent), t.dtype)
                if direction.shape != t.shape:
                    raise ShapeError(f"jvp: expected a tangent {t.shape}, got {direction.shape}")
                part = functions.sum(graph._densify(g) * direction)
                total = part if total is None else total + part
    found = None if total is None else graph.gradients(total, [dummy], record=nested)[0]
    return (value if nested else value.data), _result(found, value, nested)


def jacobian(y: Tensor, x: Tensor, form: str = "matrix") -> Array:
    """The Jacobian of one node by another.

    Parameters
    ----------
    y, x
        Nodes of one graph, y computed from x.
    form
        ``"matrix"``: (outputs, inputs), both flattened; ``"tensor"``: y.shape + x.shape.

    Returns
    -------
    ndarray
    """
    if form not in ("matrix", "tensor"):
        raise UsageError(f"jacobian: form is 'matrix' or 'tensor', got {form!r}")
    rows = np.zeros((y.size, x.size), y.dtype)
    for i in range(y.size):
        seed = np.zeros(y.size, y.dtype)
        seed[i] = 1.0
        (row,) = graph.gradients(y, [x], Tensor(seed.reshape(y.shape)))
        if row is not None:
            rows[i] = graph._densify(row).data.ravel()
    return rows if form == "matrix" else rows.reshape(y.shape + x.shape)


@dataclass(frozen=True)
class GradcheckReport:
    """What `gradcheck` found; true when every gradient is right.

    Attributes
    ----------
    ok : bool
    error : float
        The largest error: relative to ``max(1, |gradient|)`` of the input it occurred in; for
        float32 in units in the last place of that gradient's largest element.
    message : str
        Names the worst element, and what was skipped.
    kinks : tuple of str
        Elements that were not compared because the function bends or jumps there.
    """

    ok: bool
    error: float
    message: str
    kinks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.message


def gradcheck(
    f: Callable[..., Any],
    *inputs: ArrayLike,
    grad: Callable[..., Any] | None = None,
    eps: float = 1e-6,
    tolerance: float = 1e-6,
    dtype: str = "float64",
    ulps: float = 32.0,
) -> GradcheckReport:
    """Compare gradients with central differences, ``(f(x + eps) - f(x - eps)) / (2 eps)``.

    A result with several elements is contracted with fixed random weights first, which checks the
    whole vector-Jacobian product. An element at which f has a kink has no derivative to compare
    with: there the gradient must lie between the slopes on both sides, and the report names it.

    Parameters
    ----------
    f
        A function of ops; or of plain numpy where `grad` is given.
    *inputs
        Where to check; computed in float64.
    grad
        Your own gradient to check: with f's arguments, gives one array for each.
    eps
        Step of the differences.
    tolerance
        Largest error allowed, relative to ``max(1, |gradient|)``.
    dtype
        ``"float32"`` checks the float32 kernels instead: value and gradients, as they are shipped,
        against the float64 formulas of the numpy reference at the same (float32) inputs.
    ulps
        Largest error allowed then, in float32 units in the last place of the largest element of
        the value or gradient in question.

    Returns
    -------
    GradcheckReport
        Truthy when right; its message names the worst element when wrong.
    """
    if dtype not in ("float64", "float32"):
        raise UsageError(f"gradcheck: dtype is 'float64' or 'float32', got {dtype!r}")
    if dtype == "float32":
        if grad is not None:
            raise UsageError("gradcheck: dtype='float32' checks the kernels of ops, not a grad=")
        return _check_float32(f, [np.asarray(a, np.float32) for a in inputs], ulps)
    arrays = [np.array(a, np.float64) for a in inputs]
    first = np.asarray(_values(f, arrays), np.float64)
    if not np.array_equal(first, np.asarray(_values(f, arrays)), equal_nan=True):
        raise UsageError("gradcheck: f gives another result when called again; fix its randomness")
    weights = np.random.default_rng(0).uniform(0.5, 1.5, first.shape)
    if grad is None:
        _, pull = vjp(f, *arrays)
        found = [np.asarray(g) for g in pull(weights)]
    else:
        given = grad(*arrays)
        found = [np.asarray(g) for g in (given if isinstance(given, tuple | list) else (given,))]
        if first.size != 1:
            raise UsageError("gradcheck: with a gradient of your own, f must have a scalar result")
        weights = np.ones(first.shape)
        if len(found) != len(arrays):
            raise ShapeError(
                f"gradcheck: grad gave {len(found)} arrays for {len(arrays)} inputs: "
                "return one for each"
            )

    def value() -> float:
        return float(np.sum(weights * np.asarray(_values(f, arrays))))

    worst, message, compared = -1.0, "no inputs", 0
    kinks: list[str] = []
    for k, (array, analytic) in enumerate(zip(arrays, found, strict=True)):
        if analytic.shape != array.shape:
            raise ShapeError(
                f"gradcheck: the gradient of input {k} has shape {analytic.shape}, "
                f"expected {array.shape}"
            )
        if not array.size:
            continue
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            slope, kind = _slope(value, array, index, eps, tolerance, float(analytic[index]))
            if kind:
                kinks.append(f"{_element(k, index)} ({kind})")
                slope = float(analytic[index])
            else:
                compared += 1
            numeric[index] = slope
        scale = max(1.0, float(np.max(np.abs(numeric))))
        errors = np.abs(analytic - numeric) / scale
        at = _argworst(errors)
        error = float(errors[at])
        if not error <= worst:
            worst = error
            message = (
                f"{_element(k, at)}: gradient {analytic[at]:.10g}, "
                f"central difference {numeric[at]:.10g}, error {error:.3g} of {scale:.3g}"
            )
    if kinks and not compared:
        message = "every element is at a kink, so there is nothing to compare: move the inputs"
        return GradcheckReport(False, 0.0, message, tuple(kinks))
    ok = worst <= tolerance
    if kinks:
        shown = ", ".join(kinks[:4]) + (", ..." if len(kinks) > 4 else "")
        message += f"; skipped {len(kinks)} of {compared + len(kinks)} elements: {shown}"
    return GradcheckReport(
        ok, max(worst, 0.0), ("right: " if ok else "wrong: ") + message, tuple(kinks)
    )


def _element(k: int, index: tuple[Any, ...]) -> str:
    return f"input {k}" + (f" at {tuple(int(i) for i in index)}" if index else "")


def _argworst(errors: Array) -> tuple[Any, ...]:
    where = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    return tuple(int(i) for i in np.unravel_index(where, errors.shape))


def _slope(
    value: Callable[[], float],
    array: Array,
    index: tuple[int, ...],
    eps: float,
    tolerance: float,
    analytic: float,
) -> tuple[float, str]:
    """The central difference at one element, and what f has there: "", "kink" or "jump".

    Where f is smooth, the slopes on both sides differ by about ``eps f''`` and come together as
    the step shrinks; at a kink they do not, and at a jump they grow.
    """
    original = array[index]

    def sides(step: float) -> tuple[float, float, float]:
        array[index] = original + step
        above, up = value(), float(array[index] - original)
        array[index] = original - step
        below, down = value(), float(original - array[index])
        array[index] = original
        middle = value()
        return (middle - below) / down, (above - middle) / up, (above - below) / (up + down)

    left, right, central = sides(eps)
    scale = max(1.0, abs(central))
    bend = abs(right - left)
    if bend <= 10.0 * tolerance * scale and abs(central - analytic) <= tolerance * scale:
        return central, ""
    near_left, near_right, near = sides(eps / 16)
    near_bend = abs(near_right - near_left)
    slack = 100.0 * tolerance * scale
    if near_bend > 4.0 * max(bend, slack) or abs(near) > 4.0 * max(abs(central), slack):
        return central, "jump"
    if bend <= 10.0 * tolerance * scale:
        return central, ""
    if near_bend > 0.5 * bend:  # a kink at the element itself: any slope in between will do
        low, high = sorted((near_left, near_right))
        return central, "kink" if low - slack <= analytic <= high + slack else ""
    if near_bend < slack and abs(near - analytic) <= slack:  # a kink beside it, within eps
        return central, "kink" if abs(central - analytic) > tolerance * scale else ""
    return central, ""


def _check_float32(f: Callable[..., Any], inputs: Sequence[Array], ulps: float) -> GradcheckReport:
    value, pull = vjp(f, *inputs)
    if value.dtype != np.float32:
        raise UsageError(
            f"gradcheck: f gave {value.dtype} for float32 inputs: a float64 array among its "
            "constants makes it so; write Python numbers or float32 arrays"
        )
    weights = np.random.default_rng(0).uniform(0.5, 1.5, value.shape).astype(np.float32)
    found = [value, *pull(weights)]
    with backend.use("numpy"):
        exact, exact_pull = vjp(f, *[a.astype(np.float64) for a in inputs])
        expected = [exact, *exact_pull(weights.astype(np.float64))]
    worst, message = -1.0, "no elements"
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not a.size:
            continue
        largest = float(np.max(np.abs(b)))
        unit = max(float(np.spacing(np.float32(largest))), 2.0**-149)
        errors = np.abs(a.astype(np.float64) - b) / unit
        at = _argworst(errors)
        if not float(errors[at]) <= worst:
            worst = float(errors[at])
            what = "gradient of " + _element(k - 1, at) if k else f"value at {at}"
            message = f"{what}: {a[at]:.9g}, reference {b[at]:.9g}, error {worst:.3g} ULP"
    ok = worst <= ulps
    return GradcheckReport(ok, max(worst, 0.0), ("right: " if ok else "wrong: ") + message)


def _values(f: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    result = f(*[a.copy() for a in arrays])
    return result.data if isinstance(result, Tensor) else result
