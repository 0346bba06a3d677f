"""Derivatives of functions, Jacobians, and the gradient check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import functions, graph
from .errors import ShapeError, UsageError
from .graph import Tensor

Array = NDArray[Any]


def _operands(args: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """The arguments as Tensors, and whether the results are to be Tensors too."""
    nested = any(isinstance(a, Tensor) for a in args)
    return [a if isinstance(a, Tensor) else graph.tensor(a) for a in args], nested


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
        The largest error, relative to ``max(1, |gradient|)`` of the input it occurred in.
    message : str
        Names the worst element.
    """

    ok: bool
    error: float
    message: str

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
) -> GradcheckReport:
    """Compare gradients with central differences, ``(f(x + eps) - f(x - eps)) / (2 eps)``.

    A result with several elements is contracted with fixed random weights first, which checks the
    whole vector-Jacobian product.

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

    Returns
    -------
    GradcheckReport
        Truthy when right; its message names the worst element when wrong.
    """
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
    worst, message = -1.0, "no inputs"
    for k, (array, analytic) in enumerate(zip(arrays, found, strict=True)):
        if analytic.shape != array.shape:
            raise ShapeError(
                f"gradcheck: the gradient of input {k} has shape {analytic.shape}, "
                f"expected {array.shape}"
            )
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            original = array[index]
            array[index] = original + eps
            above = np.sum(weights * np.asarray(_values(f, arrays)))
            array[index] = original - eps
            below = np.sum(weights * np.asarray(_values(f, arrays)))
            array[index] = original
            numeric[index] = (above - below) / (2.0 * eps)
        if not array.size:
            continue
        scale = max(1.0, float(np.max(np.abs(numeric))))
        errors = np.abs(analytic - numeric) / scale
        at = np.unravel_index(
            int(np.argmax(np.where(np.isnan(errors), np.inf, errors))), array.shape
        )
        error = float(errors[at])
        if not error <= worst:
            where = f"input {k}" + (f" at {tuple(int(i) for i in at)}" if at else "")
            worst = error
            message = (
                f"{where}: gradient {analytic[at]:.10g}, central difference {numeric[at]:.10g}, "
                f"error {error:.3g} of {scale:.3g}"
            )
    ok = worst <= tolerance
    return GradcheckReport(ok, max(worst, 0.0), ("right: " if ok else "wrong: ") + message)


def _values(f: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    result = f(*[a.copy() for a in arrays])
    return result.data if isinstance(result, Tensor) else result
