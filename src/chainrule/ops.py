"""The op table: every operation's name, shape rule, vector-Jacobian product and flop count.

Vector-Jacobian products are written with ops, so a backward pass is a graph like any other:
it can be differentiated again and compiled into a program.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import graph, reference
from .errors import ShapeError, UsageError
from .functions import (
    broadcast_to,
    cast,
    exp,
    matmul_flagged,
    maximum,
    reshape,
    sign,
    softmax,
    square,
    sum,
    transpose,
    where,
)
from .graph import TABLE, Op, Spec, Tensor, apply

Vjp = Callable[[Tensor, Tensor, Sequence[bool]], Sequence[Tensor | None]]

_BOOL = np.dtype(np.bool_)
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)


# -- shape rules ---------------------------------------------------------------------------------


def _broadcast(*specs: Spec) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*[s.shape for s in specs])
    except ValueError:
        shapes = " and ".join(str(s.shape) for s in specs)
        raise ShapeError(f"shapes {shapes} do not broadcast together") from None


def _same(*specs: Spec, **_: Any) -> list[Spec]:
    return [Spec(_broadcast(*specs), specs[0].dtype)]


def _comparison(*specs: Spec) -> list[Spec]:
    return [Spec(_broadcast(*specs), _BOOL)]


def _reduced(x: Spec, axis: int, dtype: np.dtype[Any] | None = None) -> list[Spec]:
    return [Spec(x.shape[:axis] + x.shape[axis + 1 :], dtype or x.dtype)]


def _matmul_shape(a: Spec, b: Spec, transpose_a: bool, transpose_b: bool) -> list[Spec]:
    m, k = a.shape[::-1] if transpose_a else a.shape
    k2, n = b.shape[::-1] if transpose_b else b.shape
    if k != k2:
        raise ShapeError(f"matmul: inner sizes differ, ({m}, {k}) @ ({k2}, {n})")
    return [Spec((m, n), a.dtype)]


def _dense_shape(x: Spec, w: Spec, b: Spec | None = None, **_: Any) -> list[Spec]:
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ShapeError(
            f"dense: expected x (batch, K) and w (N, K), got x {x.shape} and w {w.shape}"
        )
    if b is not None and b.shape != (w.shape[0],):
        raise ShapeError(f"dense: expected b ({w.shape[0]},), got {b.shape}")
    return [Spec((x.shape[0], w.shape[0]), x.dtype)]


def _sliced(x: Spec, axis: int, start: int, stop: int, step: int) -> list[Spec]:
    n = len(range(start, stop, step))
    return [Spec((*x.shape[:axis], n, *x.shape[axis + 1 :]), x.dtype)]


def _unsliced(g: Spec, axis: int, length: int, **_: Any) -> list[Spec]:
    return [Spec((*g.shape[:axis], length, *g.shape[axis + 1 :]), g.dtype)]


def _concatenated(*xs: Spec, axis: int) -> list[Spec]:
    first = xs[0].shape
    for x in xs:
        rest = x.shape[:axis] + x.shape[axis + 1 :]
        if len(x.shape) != len(first) or rest != first[:axis] + first[axis + 1 :]:
            shapes = ", ".join(str(x.shape) for x in xs)
            raise ShapeError(f"concatenate along axis {axis}: shapes {shapes} do not fit")
    n = builtins.sum(x.shape[axis] for x in xs)
    return [Spec((*first[:axis], n, *first[axis + 1 :]), xs[0].dtype)]


def _cross_entropy_shape(z: Spec, y: Spec) -> list[Spec]:
    if z.ndim != 2 or y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ShapeError(
            "softmax_cross_entropy: expected scores (batch, classes) and integer labels (batch,), "
            f"got {z.shape} and {y.dtype} {y.shape}"
        )
    return [Spec(y.shape, z.dtype)]


# -- vector-Jacobian products --------------------------------------------------------------------


def _scaled(factor: Callable[[Tensor, Tensor], Tensor]) -> Vjp:
    """The vjp of a function of one variable: g times factor(x, y)."""

    def vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        return [g * factor(node._inputs[0], node)]

    return vjp


def _binary(left: Any, right: Any) -> Vjp:
    """The vjp of a function of two variables from its two rules (g, a, b, y) -> gradient."""

    def vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        a, b = node._inputs
        return [
            left(g, a, b, node) if needs[0] else None,
            right(g, a, b, node) if needs[1] else None,
        ]

    return vjp


def _zeros_like(t: Tensor) -> Tensor:
    return Tensor(np.zeros((), t.dtype))


def _routed(condition: Callable[[Any, Any], Any]) -> Vjp:
    """The vjp of a choice between two values: the gradient goes where the value came from."""
    return _binary(
        lambda g, a, b, y: where(condition(a, b), g, _zeros_like(g)),
        lambda g, a, b, y: where(condition(a, b), _zeros_like(g), g),
    )


def _where_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    condition, zero = node._inputs[0], _zeros_like(g)
    return [
        None,
        where(condition, g, zero) if needs[1] else None,
        where(condition, zero, g) if needs[2] else None,
    ]


def _clip_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    x = node._inputs[0]
    zero = _zeros_like(g)
    inside = where(x >= node.attrs["low"], g, zero)
    return [where(x <= node.attrs["high"], inside, zero)]


def _power_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    n = node.attrs["exponent"]
    if n == 0:
        return [g * 0.0]
    return [g * (node._inputs[0] ** (n - 1.0) * n)]


def _matmul_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    a, b = node._inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]
    da = db = None
    if needs[0]:
        da = matmul_flagged(b, g, tb, True) if ta else matmul_flagged(g, b, False, not tb)
    if needs[1]:
        db = matmul_flagged(g, a, True, ta) if tb else matmul_flagged(a, g, not ta, False)
    return [da, db]


def _dense_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    x, w = node._inputs[:2]
    name, param = node.attrs["activation"], node.attrs["param"]
    # The error signal: computed once, used for each of dx, dw and db.
    delta = g if name is None else apply(f"d{name}", (g, node), {"param": param})
    grads = [
        matmul_flagged(delta, w, False, False) if needs[0] else None,
        matmul_flagged(delta, x, True, False) if needs[1] else None,
    ]
    if len(needs) == 3:
        grads.append(sum(delta, axis=0) if needs[2] else None)
    return grads


def _activation_vjp(name: str, residual: str) -> Vjp:
    def vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        r = node if residual == "y" else node._inputs[0]
        return [apply(f"d{name}", (g, r), node.attrs)]

    return vjp


def _derivative_vjp(name: str) -> Vjp:
    """The vjp of d<name>(g, r) = g f'(r): linear in g; f'' by differentiating f' itself."""
    df = reference.ACTIVATIONS[name].df

    def vjp(node: Tensor, u: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        g, r = node._inputs
        dg = apply(f"d{name}", (u, r), node.attrs) if needs[0] else None
        dr = None
        if needs[1]:
            record = graph.is_recording()
            with graph.recording():
                slope = df(r, node.attrs["param"])
            if isinstance(slope, Tensor) and slope.requires_grad:
                (dr,) = graph.gradients(slope, [r], u * g, record=record)
        return [dg, dr]

    return vjp


def _softmax_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    return [node * (g - sum(g * node, axis=-1, keepdims=True))]


def _log_softmax_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    return [g - exp(node) * sum(g, axis=-1, keepdims=True)]


def _logsumexp_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    return [reshape(g, (*g.shape, 1)) * softmax(node._inputs[0])]


def _sum_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    x, axis = node._inputs[0], node.attrs["axis"]
    spread = reshape(g, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return [broadcast_to(spread, x.shape)]


def _max_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    x = node._inputs[0]
    first = apply("argmax", (x,), node.attrs)
    return [apply("put_along_last", (g, first), {"size": x.shape[-1]})]


def _sum_squares_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    x = node._inputs[0]
    return [x * cast(g * 2.0, x.dtype)]


def _weighted_mean_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    losses, weights = node._inputs
    if needs[1]:
        raise UsageError("weighted_mean has no gradient with respect to the weights")
    wide = cast(weights, _FLOAT64)
    share = wide / maximum(sum(wide), 5e-324)  # weights that are all 0 give 0
    return [cast(g * share, losses.dtype), None]


def _cross_entropy_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    return [apply("dsoftmax_cross_entropy", (g, *node._inputs)), None]


def _dcross_entropy_vjp(node: Tensor, u: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    g, z, y = node._inputs
    p = softmax(z)
    along = sum(u * p, axis=-1)
    dg = along - apply("take_along_last", (u, y)) if needs[0] else None
    dz = reshape(g, (-1, 1)) * (p * (u - reshape(along, (-1, 1)))) if needs[1] else None
    return [dg, dz, None]


def _take_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    table, ids = node._inputs
    attrs = {"n_rows": table.shape[0]}
    return [apply("row_sums", (reshape(ids, (-1,)), reshape(g, (ids.size, -1))), attrs), None]


def _row_sums_vjp(node: Tensor, u: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    return [None, apply("take", (u, node._inputs[0]))]  # u has the table's shape


def _row_sums_shape(ids: Spec, g: Spec, n_rows: int) -> list[Spec]:
    return [Spec(ids.shape, _INT64), g]


def _slice_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    length = node._inputs[0].shape[node.attrs["axis"]]
    return [apply("unslice", (g,), {**node.attrs, "length": length})]


def _unslice_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    attrs = {k: v for k, v in node.attrs.items() if k != "length"}
    return [apply("slice", (g,), attrs)]


def _concatenate_vjp(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    axis, start = node.attrs["axis"], 0
    grads: list[Tensor | None] = []
    for x, need in zip(node._inputs, needs, strict=True):
        stop = start + x.shape[axis]
        attrs = {"axis": axis, "start": start, "stop": stop, "step": 1}
        grads.append(apply("slice", (g,), attrs) if need else None)
        start = stop
    return grads


# -- the table -----------------------------------------------------------------------------------


def _size(*specs: Spec, **_: Any) -> int:
    return Spec(_broadcast(*specs), specs[0].dtype).size


def _none(*specs: Spec, **_: Any) -> int:
    return 0


def _dense_flops(x: Spec, w: Spec, *rest: Spec, **_: Any) -> int:
    return 2 * x.shape[0] * w.size + (len(rest) + 1) * x.shape[0] * w.shape[0]


def _matmul_flops(a: Spec, b: Spec, transpose_a: bool, transpose_b: bool) -> int:
    return 2 * a.size * b.shape[0 if transpose_b else 1]


def _row(name: str, shape: Any, vjp: Vjp | None, flops: Callable[..., int] = _size) -> None:
    TABLE[name] = Op(name, shape, vjp, flops)


_row("copy", _same, lambda node, g, needs: [g], _none)
_row("negative", _same, lambda node, g, needs: [-g])
_row("exp", _same, _scaled(lambda x, y: y))
_row("log", _same, lambda node, g, needs: [g / node._inputs[0]])
_row("log1p", _same, lambda node, g, needs: [g / (node._inputs[0] + 1.0)])
_row("expm1", _same, _scaled(lambda x, y: y + 1.0))
_row("sqrt", _same, lambda node, g, needs: [g / (node * 2.0)])
_row("square", _same, _scaled(lambda x, y: x * 2.0))
_row("abs", _same, _scaled(lambda x, y: sign(x)))
_row("sign", _same, lambda node, g, needs: [g * 0.0])
_row("erf", _same, _scaled(lambda x, y: exp(-square(x)) * 1.1283791670955126))
_row("add", _same, _binary(lambda g, a, b, y: g, lambda g, a, b, y: g))
_row("subtract", _same, _binary(lambda g, a, b, y: g, lambda g, a, b, y: -g))
_row("multiply", _same, _binary(lambda g, a, b, y: g * b, lambda g, a, b, y: g * a))
_row("divide", _same, _binary(lambda g, a, b, y: g / b, lambda g, a, b, y: -(g * y) / b))
_row("maximum", _same, _routed(lambda a, b: a >= b))
_row("minimum", _same, _routed(lambda a, b: a <= b))
_row("power", _same, _power_vjp)
_row("clip", _same, _clip_vjp)
for _name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    _row(_name, _comparison, None)
_row("where", lambda c, a, b: [Spec(_broadcast(c, a, b), a.dtype)], _where_vjp, _none)
_row(
    "cast",
    lambda x, dtype: [Spec(x.shape, dtype)],
    lambda node, g, needs: [cast(g, node._inputs[0].dtype)],
    _none,
)
_row(
    "dropout",
    lambda x, step, rate, key: [x],
    lambda node, g, needs: [apply("dropout", (g, node._inputs[1]), node.attrs), None],
)
_row("sum", _reduced, _sum_vjp)
_row("max", _reduced, _max_vjp)
_row("argmax", lambda x, axis: _reduced(x, axis, _INT64), None)
_row("sum_squares", lambda x: [Spec((), _FLOAT64)], _sum_squares_vjp, lambda x: 2 * x.size)
_row(
    "weighted_mean", lambda x, w: [Spec((), _FLOAT64)], _weighted_mean_vjp, lambda x, w: 3 * x.size
)
_row("softmax", _same, _softmax_vjp, lambda x: 5 * x.size)
_row("log_softmax", _same, _log_softmax_vjp, lambda x: 5 * x.size)
_row("logsumexp", lambda x: _reduced(x, x.ndim - 1), _logsumexp_vjp, lambda x: 4 * x.size)
_row("softmax_cross_entropy", _cross_entropy_shape, _cross_entropy_vjp, lambda z, y: 5 * z.size)
_row("dsoftmax_cross_entropy", lambda g, z, y: [z], _dcross_entropy_vjp, lambda g, z, y: 5 * z.size)
_row("matmul", _matmul_shape, _matmul_vjp, _matmul_flops)
_row("dense", _dense_shape, _dense_vjp, _dense_flops)
_row("take", lambda table, ids: [Spec(ids.shape + table.shape[1:], table.dtype)], _take_vjp, _none)
_row("row_sums", _row_sums_shape, _row_sums_vjp, lambda ids, g, n_rows: g.size)
_row("scatter_rows", lambda g, n_rows: [g], lambda node, u, needs: [u], _none)
_row(
    "take_along_last",
    lambda x, ids: [Spec(ids.shape, x.dtype)],
    lambda node, g, needs: [
        apply("put_along_last", (g, node._inputs[1]), {"size": node._inputs[0].shape[-1]}),
        None,
    ],
    _none,
)
_row(
    "put_along_last",
    lambda g, ids, size: [Spec((*g.shape, size), g.dtype)],
    lambda node, g, needs: [apply("take_along_last", (g, node._inputs[1])), None],
    _none,
)
_row(
    "transpose",
    lambda x, axes: [Spec(tuple(x.shape[a] for a in axes), x.dtype)],
    lambda node, g, needs: [transpose(g, tuple(np.argsort(node.attrs["axes"]).tolist()))],
    _none,
)
_row(
    "reshape",
    lambda x, shape: [Spec(shape, x.dtype)],
    lambda node, g, needs: [reshape(g, node._inputs[0].shape)],
    _none,
)
_row("slice", _sliced, _slice_vjp, _none)
_row("unslice", _unsliced, _unslice_vjp, _none)
_row("concatenate", _concatenated, _concatenate_vjp, _none)

# Rows that only programs have: a minibatch comes in, results go out, parameters change in place.
_row("load", lambda spec, source: [spec], None, _none)
_row("store", lambda x, output: [x], None, _none)
_row("result", lambda x, column: [x], None, _none)
_row("update", lambda w, g, *rest, update: [w], None, lambda w, *rest, update: 2 * w.size)
_row("update_rows", lambda w, g, *rest, update: [w], None, lambda w, g, *rest, update: 2 * g.size)

for _name, _activation in reference.ACTIVATIONS.items():
    _row(_name, _same, _activation_vjp(_name, _activation.residual))
    _row(f"d{_name}", _same, _derivative_vjp(_name))
