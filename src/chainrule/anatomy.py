"""A computation graph as a person reads it: named values, steps, and one watched backward pass.

The graph that a program runs has plumbing in it: ``u @ h`` is two reshapes, a matmul and a reshape.
`dissect` folds that into one step ``s = uᵀ h``, gives every value a name, runs backward once under
a counting backend, and keeps what each step gave to each of its operands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import backend, graph
from .errors import DtypeError, UsageError
from .graph import RowSums, Tensor
from .lessons import Lesson, lesson

Array = NDArray[Any]

_FOLLOWED = ("matmul", "dense", "take", "sum", "max", "logsumexp", "slice")  # by a reshape


class Counter:
    """A backend that hands every call on and counts calls and floating point operations."""

    def __init__(self, inner: backend.Backend) -> None:
        self.name = inner.name
        self._inner = inner
        self.calls = 0
        self.flops = 0

    def evaluate(
        self,
        name: str,
        inputs: Sequence[Array],
        attrs: backend.Attrs,
        out: Sequence[backend.OutSpec],
    ) -> list[Array]:
        self.calls += 1
        self.flops += _flops(name, [graph.Spec(a.shape, a.dtype) for a in inputs], attrs)
        return self._inner.evaluate(name, inputs, attrs, out)

    def update(
        self,
        name: str,
        inputs: Sequence[Array],
        attrs: backend.Attrs,
        targets: Sequence[Array],
    ) -> None:
        self._inner.update(name, inputs, attrs, targets)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count what eager calls of this thread execute inside a ``with`` block."""
    state = backend._state
    previous, counter = state.backend, Counter(state.backend)
    state.backend = counter
    try:
        yield counter
    finally:
        state.backend = previous


def _flops(name: str, specs: Sequence[graph.Spec], attrs: Mapping[str, Any]) -> int:
    op = graph.TABLE.get(name)
    if op is None or name == "scatter_rows":  # its operand comes as two arrays; it only copies
        return 0
    return int(op.flops(*specs, **attrs))


@dataclass(eq=False)
class Value:
    """A source or the result of a step, with its gradient."""

    tensor: Tensor
    name: str
    kind: str  # "input", "constant" or "step"
    gradient: Array | None = None
    uses: list[tuple[Step, int]] = field(default_factory=list)

    @property
    def data(self) -> Array:
        return self.tensor.data


@dataclass(eq=False)
class Step:
    """One op as it was written, the plumbing around it included."""

    members: list[Tensor]
    core: Tensor
    operands: list[Value]
    slots: list[tuple[int, int]]
    result: Value
    lesson: Lesson
    given: list[Array | None]
    forward_flops: int = 0
    backward_flops: int = 0
    order: int = 0  # in the backward pass, from 1; 0 where it plays no part

    @property
    def op(self) -> str:
        assert self.core._op is not None
        return self.core._op.name

    def pull(self, seed: Array) -> list[Array | None]:
        """What each operand receives for an upstream gradient `seed`."""
        grads: dict[int, Tensor] = {id(self.members[-1]): Tensor(seed)}
        given: dict[tuple[int, int], Array | None] = {}
        inside = {id(t) for t in self.members}
        with graph.no_grad():
            for node in reversed(self.members):
                for i, part in enumerate(graph.pull(node, grads[id(node)])):
                    parent = node._inputs[i]
                    if id(parent) in inside and part is not None:
                        grads[id(parent)] = part
                    else:
                        given[id(node), i] = None if part is None else as_array(part)
        return [given[slot] for slot in self.slots]

    def jacobians(self, limit: int) -> list[Array | None]:
        """The local Jacobian by each operand, outputs x inputs; None where it is too large."""
        n = self.result.tensor.size
        wanted = [
            o.tensor.requires_grad and n * o.tensor.size <= limit and n <= limit
            for o in self.operands
        ]
        out: list[Array | None] = [
            np.zeros((n, o.tensor.size)) if want else None
            for o, want in zip(self.operands, wanted, strict=True)
        ]
        if any(wanted):
            shape, dtype = self.result.tensor.shape, self.result.tensor.dtype
            for row in range(n):
                seed = np.zeros(n, dtype)
                seed[row] = 1.0
                for matrix, part in zip(out, self.pull(seed.reshape(shape)), strict=True):
                    if matrix is not None and part is not None:
                        matrix[row] = part.ravel()
        return out


@dataclass(eq=False)
class Anatomy:
    """Values and steps of a graph in forward order, and the counts of one backward pass."""

    root: Value
    values: list[Value]
    steps: list[Step]
    evaluated: int
    backward_flops: int

    @property
    def forward_flops(self) -> int:
        return sum(step.forward_flops for step in self.steps)

    @property
    def backward(self) -> list[Step]:
        """The steps in the order in which backward passed them."""
        return sorted((s for s in self.steps if s.order), key=lambda s: s.order)


def names_of(frame: FrameType | None, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names for Tensors: those given, then the variables of the frame."""
    names: dict[str, Tensor] = {}
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise UsageError(f"{name}=...: expected a Tensor, got {type(t).__name__}")
        names[name] = t
    if frame is not None:
        for scope in (frame.f_locals, frame.f_globals):
            for name, t in scope.items():
                if isinstance(t, Tensor) and not name.startswith("_"):
                    names.setdefault(name, t)
    return names


def dissect(s: Tensor, names: Mapping[str, Tensor], what: str) -> Anatomy:
    """Read the graph of a scalar and run backward through it once, without touching ``.grad``.

    Parameters
    ----------
    s
        The root, of one element.
    names
        What to call Tensors; others get their own name, or a number.
    what
        The caller, for errors.
    """
    if not isinstance(s, Tensor):
        raise UsageError(f"{what}: expected a Tensor made by ops, got {type(s).__name__}")
    if graph.is_tracing() or type(s._value) is not np.ndarray:
        raise UsageError(f"{what}: the model is traced, where only shapes exist: call it outside")
    if not np.issubdtype(s.dtype, np.floating):
        raise DtypeError(f"{what}: expected a float Tensor, got dtype {s.dtype}")
    if s.size != 1:
        raise UsageError(f"{what}: expected a scalar, got shape {s.shape}: use .sum() first")
    nodes = _nodes(s)
    known = {id(t): name for name, t in reversed(list(names.items()))}
    named = {id(t): known.get(id(t)) or t.name for t in nodes}
    for name, t in names.items():
        if known.get(id(t)) == name:
            named[id(t)] = name
    values, steps = _fold(s, nodes, named)
    evaluated, flops = _run_backward(s, values, steps)
    return Anatomy(values[id(s)], list(values.values()), steps, evaluated, flops)


def _nodes(root: Tensor) -> list[Tensor]:
    found = {id(root): root}
    stack = [root]
    while stack:
        for parent in stack.pop()._inputs:
            if id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    return sorted(found.values(), key=lambda t: t._seq)


def _fold(
    root: Tensor, nodes: Sequence[Tensor], named: Mapping[int, str | None]
) -> tuple[dict[int, Value], list[Step]]:
    """Group nodes into steps: an op takes in the reshapes that only it makes or reads."""
    consumers: dict[int, list[Tensor]] = {id(t): [] for t in nodes}
    for t in nodes:
        for parent in t._inputs:
            consumers[id(parent)].append(t)

    def private(t: Tensor) -> bool:
        return t._op is not None and not named[id(t)] and len(consumers[id(t)]) == 1

    owner: dict[int, Tensor] = {}  # the node that stands for the step a node belongs to

    def head(t: Tensor) -> Tensor:
        while id(t) in owner:
            t = owner[id(t)]
        return t

    for t in nodes:
        if t._op is None or t is root or not private(t):
            continue
        (reader,) = consumers[id(t)]
        assert reader._op is not None
        if _is_plumbing(t, reader):
            owner[id(t)] = reader
    groups: dict[int, list[Tensor]] = {}
    for t in nodes:
        if t._op is not None:
            groups.setdefault(id(head(t)), []).append(t)

    values: dict[int, Value] = {}
    steps: list[Step] = []
    taken = {name for name in named.values() if name}
    numbers = {"x": 0, "v": 0, "c": 0}

    def fresh(prefix: str) -> str:
        while True:
            numbers[prefix] += 1
            name = f"{prefix}{numbers[prefix]}"
            if name not in taken:
                return name

    for t in nodes:
        if t._op is None:
            kind = "input" if t.requires_grad else "constant"
            name = named[id(t)]
            if not name:
                plain = kind == "constant" and t.size == 1
                name = f"{t.item():.6g}" if plain else fresh("x" if kind == "input" else "c")
            values[id(t)] = Value(t, name, kind)
        elif id(t) in groups:
            members = groups[id(t)]
            inside = {id(m) for m in members}
            core = next((m for m in reversed(members) if _opname(m) != "reshape"), t)
            slots = [
                (id(m), i)
                for m in members
                for i, parent in enumerate(m._inputs)
                if id(parent) not in inside
            ]
            slots = _in_order(core, members, slots)
            by_id = {id(m): m for m in members}
            operands = [values[id(by_id[m]._inputs[i])] for m, i in slots]
            result = values[id(t)] = Value(t, named[id(t)] or fresh("v"), "step")
            step = Step(
                members,
                core,
                operands,
                slots,
                result,
                lesson(core, t, operands, result.name),
                [None] * len(operands),
                sum(_flops(_opname(m), [p.spec for p in m._inputs], m.attrs) for m in members),
            )
            steps.append(step)
            for i, operand in enumerate(operands):
                operand.uses.append((step, i))
    return values, steps


def _is_plumbing(t: Tensor, reader: Tensor) -> bool:
    """Whether the function that was called made `t` only to hand it to `reader`."""
    name, after, x = _opname(t), _opname(reader), t._inputs[0]
    if name == "reshape":
        if after == "matmul":
            return x.ndim == 1 or (x.ndim > 2 and t.shape[-1] == x.shape[-1])
        if after == "max":
            return t.ndim == 1
        return after in ("dense", "take") and t.shape[-1] == x.shape[-1]
    if name == "transpose":
        return after in ("max", "logsumexp")
    if after == "reshape":
        return name in _FOLLOWED
    return name == after and name in ("sum", "slice")


def _opname(t: Tensor) -> str:
    return t._op.name if t._op is not None else ""


def _in_order(
    core: Tensor, members: Sequence[Tensor], slots: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The operands in the order in which the op itself takes them."""
    inside = {id(m): m for m in members}
    place = {slot: i for i, slot in enumerate(slots)}
    order: list[tuple[int, int]] = []
    stack = [(id(core), i) for i in reversed(range(len(core._inputs)))]
    while stack:
        m, i = stack.pop()
        if (m, i) in place:
            order.append((m, i))
        else:
            parent = inside[m]._inputs[i]
            stack += [(id(parent), k) for k in reversed(range(len(parent._inputs)))]
    return order if len(order) == len(slots) else slots


def _run_backward(
    root: Tensor, values: Mapping[int, Value], steps: Sequence[Step]
) -> tuple[int, int]:
    """Run backward once; returns the local gradients evaluated and the operations executed."""
    given: dict[tuple[int, int], Array] = {}
    cost: dict[int, int] = {}
    order: dict[int, int] = {}
    evaluated = 0
    with counting() as counter, graph.no_grad():
        before = 0

        def watch(node: Tensor, parts: Sequence[Tensor | None]) -> None:
            nonlocal evaluated, before
            for i, part in enumerate(parts):
                if part is not None:
                    evaluated += 1
                    given[id(node), i] = as_array(part)
            cost[id(node)] = counter.flops - before
            before = counter.flops
            order[id(node)] = len(order) + 1

        seed = Tensor(np.ones(root.shape, root.dtype))
        for node, grad in graph._backpropagate(root, seed, watch=watch):
            if id(node) in values:
                values[id(node)].gradient = as_array(grad)
        total = counter.flops
    for step in steps:
        step.given = [given.get(slot) for slot in step.slots]
        step.backward_flops = sum(cost.get(id(m), 0) for m in step.members)
    passed = [s for s in steps if id(s.core) in order]
    for number, step in enumerate(sorted(passed, key=lambda s: order[id(s.core)]), 1):
        step.order = number
    return evaluated, total


def as_array(t: Tensor) -> Array:
    """The value of a gradient, whether dense or in rows."""
    value: Any = t._value
    return value.dense() if isinstance(value, RowSums) else value


def short(a: Array, limit: int = 3) -> str:
    """A value in a few characters: numbers where they are few, else shape and norm."""
    a = a + 0 if np.issubdtype(a.dtype, np.floating) else a  # no -0
    if a.size == 1:
        text = f"{a.item():.4g}"
        return text if a.ndim == 0 else f"[{text}]"
    if a.ndim == 1 and a.size <= limit:
        return "[" + " ".join(f"{v:.3g}" for v in a.tolist()) + "]"
    shape = "×".join(map(str, a.shape))
    if not np.issubdtype(a.dtype, np.floating):
        return shape
    return f"{shape}, norm {float(np.linalg.norm(a.astype(np.float64))):.3g}"


def full(a: Array, limit: int = 24) -> str:
    """A value in lines: its numbers where they are few, else a summary."""
    if not a.ndim and np.issubdtype(a.dtype, np.floating):
        return f"{a.item() + 0.0:.6g}"
    if a.size <= limit and a.ndim <= 2:
        text = np.array2string(
            np.where(a == 0, 0.0, a) if np.issubdtype(a.dtype, np.floating) else a,
            precision=4,
            suppress_small=bool(a.size and np.abs(a).max() < 1e5),
            separator=", ",
            max_line_width=88,
        )
        return str(text)
    shape = "×".join(map(str, a.shape))
    if not a.size or not np.issubdtype(a.dtype, np.floating):
        return f"{shape} {a.dtype}"
    wide = a.astype(np.float64)
    return (
        f"{shape}: from {wide.min():.4g} to {wide.max():.4g}, mean {wide.mean():.4g}, "
        f"norm {float(np.linalg.norm(wide)):.4g}"
    )
