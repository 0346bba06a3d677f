"""Ops of your own, written in Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from . import functions, graph
from .errors import DtypeError, ShapeError, TraceError, UsageError
from .graph import Op, Spec, Tensor


def register_op(
    name: str, forward: Callable[..., Any], vjp: Callable[..., Any] | None = None
) -> Callable[..., Tensor]:
    """Make an op of two functions.

    The op records in the graph like any other: `backward`, `jacobian`, `gradcheck`, `explain` and
    `draw` know it. A compiled training step does not: there it raises, and a loop of
    ``loss.backward()`` and ``optimizer.step(model)`` is the way.

    Parameters
    ----------
    name
        What errors and explanations call it; may not be that of a built-in op. Registering a name
        again gives a new op and leaves graphs of the old one alone.
    forward
        ``forward(*arrays, **options)`` gives a float ndarray; written with numpy.
    vjp
        ``vjp(g, y, *inputs, **options)`` gives what each input receives for the upstream gradient
        `g` of the result `y`: one Tensor, or a tuple with one for each input, None for none.
        Written with ops of Tensors, so that it can be differentiated again. None: backward
        through the op raises.

    Returns
    -------
    callable
        Takes Tensors, arrays and numbers, and the options as keywords.

    Examples
    --------
    >>> import numpy as np, chainrule as cr
    >>> cube = cr.register_op("cube", lambda x: x**3, lambda g, y, x: g * 3.0 * x**2)
    >>> cr.grad(cube)(2.0)
    array(12.)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise UsageError(f"register_op: expected an identifier as name, got {name!r}")
    if name in graph.TABLE:
        raise UsageError(f"register_op: {name!r} is a built-in op; choose another name")

    def rule(node: Tensor, g: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
        assert vjp is not None
        given = vjp(g, node, *node._inputs, **node.attrs)
        parts = list(given) if isinstance(given, tuple | list) else [given]
        if len(parts) != len(node._inputs):
            raise ShapeError(
                f"op {name!r}: its vjp gave {len(parts)} gradients for {len(node._inputs)} "
                "inputs: return one for each, None where there is none"
            )
        checked: list[Tensor | None] = []
        for i, (part, x) in enumerate(zip(parts, node._inputs, strict=True)):
            if part is None:
                checked.append(None)
                continue
            t = functions.as_tensor(part)
            if t.shape != x.shape:
                raise ShapeError(
                    f"op {name!r}: its vjp gave shape {t.shape} for input {i} of shape {x.shape}: "
                    "a gradient has the shape of its value"
                )
            checked.append(functions.cast(t, x.dtype))
        return [c if need else None for c, need in zip(checked, needs, strict=True)]

    def refuse(*specs: Spec, **options: Any) -> NoReturn:
        raise TraceError(
            f"op {name!r} is Python and cannot be compiled into a training step: train with "
            "loss.backward() and optimizer.step(model)"
        )

    op = Op(name, refuse, rule if vjp is not None else None, refuse)

    def call(*inputs: Any, **options: Any) -> Tensor:
        if graph.is_tracing():
            refuse()
        like = next((x for x in inputs if isinstance(x, Tensor)), None)
        operands = tuple(functions.as_tensor(x, like) for x in inputs)
        value = np.array(forward(*(t.data for t in operands), **options))
        if not np.issubdtype(value.dtype, np.floating):
            raise DtypeError(f"op {name!r}: forward gave dtype {value.dtype}, expected floats")
        value.flags.writeable = False
        needs = graph.is_recording() and any(t.requires_grad for t in operands)
        return Tensor(
            value,
            requires_grad=needs,
            op=op if needs else None,
            inputs=operands if needs else (),
            attrs=options,
        )

    call.__name__ = call.__qualname__ = name
    return call
