"""A step traced from the graph once, fused, and run as a flat list of instructions.

`Program` turns the graph below its roots into instructions on numbered buffers (no memory layout:
that is the backend's business), applies the rewrites that keep the bits, and hands the list to the
compiled core or to the interpreter of the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core, backend, graph, reference
from .errors import ShapeError, UsageError
from .graph import RowSums, Spec, Tensor

Array = NDArray[Any]

TEMP, PARAM, CONST, SCALARS = range(4)
_MAX_DIMS = 4
_SINKS = ("result", "store")
_UPDATES = ("update", "update_rows", "matmul_update")


@dataclass(slots=True)
class Buffer:
    """A value of a program: what it is, and the array or the scalar column it stands for."""

    kind: int
    spec: Spec
    array: Tensor | Array | None = None
    column: int = 0


@dataclass(slots=True)
class Instruction:
    """One op on numbered buffers."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """How a backend runs a program: `_core.Program`, or `Interpreter`."""

    def bind(self, buffer: int, array: Array) -> None: ...

    def begin(self, threads: int) -> None: ...

    def run(
        self,
        steps: int,
        sources: tuple[Array, ...],
        index: Array | None,
        first_row: int,
        scalars: Array,
        results: Array,
        outputs: tuple[Array, ...],
        budget_ns: int,
    ) -> int: ...

    def end(self) -> None: ...

    def stats(self) -> dict[str, Any]: ...


class Program:
    """The compiled form of what lies below `roots`.

    Parameters
    ----------
    roots
        Nodes that act: ``result``, ``store``, ``update``, ``update_rows``.
    owned
        Parameters and optimizer state: read from, and written back to, their Tensors' arrays.
    batch
        Rows of a minibatch.
    backend_name
        ``"c"`` or ``"numpy"``.
    fuse
        Apply the rewrites; without them the result has the same bits.
    """

    def __init__(
        self,
        roots: Sequence[Tensor],
        owned: Sequence[Tensor],
        batch: int,
        backend_name: str = "c",
        fuse: bool = True,
    ) -> None:
        self.batch = batch
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self._backend = backend.get(backend_name)
        self._flatten(roots, {id(t) for t in owned})
        if fuse:
            self.instructions = _fuse(self.instructions)
        self._check()
        self._prepare()

    def _prepare(self) -> None:
        """Hand the list to the runner, with the constants."""
        in_c = self._backend.name == "c"
        self._runner: Runner = _encode(self) if in_c else Interpreter(self, self._backend)
        self._owned: list[tuple[int, Tensor]] = []
        self._bound: dict[int, Array] = {}
        self._copies: list[tuple[Tensor, Array]] = []
        for i, b in enumerate(self.buffers):
            if b.kind == PARAM:
                assert isinstance(b.array, Tensor)
                self._owned.append((i, b.array))
            elif b.kind == CONST:
                assert isinstance(b.array, np.ndarray)
                self._runner.bind(i, b.array)
        self.bounds = _bounds(self)

    def split(self, late: int, sources: int) -> tuple[Program, Program, list[Spec]]:
        """Part the program in two: what does not depend on the sources from `late` on, the rest.

        What the first part computes and the second needs goes through arrays: the first part
        stores it as further outputs, the second loads it from `sources` on. Values without a
        row for each sample are cheap or rare, and are computed again.

        Returns
        -------
        first, second
            Programs on the same parameters.
        passed
            Shape and dtype of each array between them.
        """
        waiting: set[int] = set()
        early: list[Instruction] = []
        rest: list[Instruction] = []
        for ins in self.instructions:
            later = ins.op == "load" and ins.attrs["source"] >= late
            if later or ins.op in _UPDATES or not waiting.isdisjoint(ins.inputs):
                waiting.update(ins.outputs)
                rest.append(ins)
            else:
                early.append(ins)
        made = {b: ins for ins in early for b in ins.outputs}
        n_stored = sum(ins.op == "store" for ins in early)
        passed: list[int] = []
        again: dict[int, Instruction] = {}  # by buffer: the load, or what is computed again

        def need(b: int) -> None:
            ins = made.get(b)
            if ins is None or b in again:
                return
            spec = self.buffers[b].spec
            if ins.op != "load" and spec.shape[:1] == (self.batch,) and spec.dtype != np.bool_:
                attrs = {"spec": spec, "source": sources + len(passed)}
                again[b] = Instruction("load", (), (b,), attrs)
                passed.append(b)
                return
            for i in ins.inputs:
                need(i)
            again.update(dict.fromkeys(ins.outputs, ins))

        for ins in rest:
            for b in ins.inputs:
                need(b)
        for i, b in enumerate(passed):
            early.append(Instruction("store", (b,), (), {"output": n_stored + i}))
        start = list({id(ins): ins for ins in again.values()}.values())
        second = [_renumbered_output(ins, n_stored) for ins in rest]
        specs = [self.buffers[b].spec for b in passed]
        return self._part(early), self._part(start + second), specs

    def _part(self, instructions: list[Instruction]) -> Program:
        """A program of some of the instructions, with the buffers that they use."""
        part = Program.__new__(Program)
        part.batch, part._backend = self.batch, self._backend
        used = sorted({b for ins in instructions for b in (*ins.inputs, *ins.outputs)})
        number = {b: i for i, b in enumerate(used)}
        part.buffers = [self.buffers[b] for b in used]
        part.instructions = [
            Instruction(
                ins.op,
                tuple(number[b] for b in ins.inputs),
                tuple(number[b] for b in ins.outputs),
                ins.attrs,
            )
            for ins in instructions
        ]
        part._prepare()
        return part

    # -- from the graph to instructions ------------------------------------------------------

    def _flatten(self, roots: Sequence[Tensor], owned: set[int]) -> None:
        nodes: dict[int, Tensor] = {}
        stack = list(roots)
        while stack:
            node = stack.pop()
            if id(node) not in nodes:
                nodes[id(node)] = node
                stack.extend(node._inputs)
        where: dict[int, tuple[int, ...]] = {}
        for node in sorted(nodes.values(), key=lambda n: n._seq):
            if node._op is None:
                where[id(node)] = (self._leaf(node, id(node) in owned),)
                continue
            inputs = tuple(b for t in node._inputs for b in where[id(t)])
            name = node._op.name
            if node._op is graph.ROW_IDS:
                where[id(node)] = inputs[:1]
            elif node._op is graph.ROW_VALUES:
                where[id(node)] = inputs[1:]
            elif node._op is graph.WITH_ROW_VALUES:
                where[id(node)] = (inputs[0], inputs[2])
            elif inputs and all(self.buffers[b].kind == CONST for b in inputs):
                where[id(node)] = self._fold(node, inputs)
            elif name in _UPDATES:
                where[id(node)] = outputs = self._updated(name, inputs)
                self.instructions.append(Instruction(name, inputs, outputs, node.attrs))
            elif name in _SINKS:
                self.instructions.append(Instruction(name, inputs, (), node.attrs))
            else:
                where[id(node)] = outputs = tuple(self._add(TEMP, s) for s in _specs(node))
                self.instructions.append(Instruction(name, inputs, outputs, node.attrs))

    def _add(self, kind: int, spec: Spec, array: Any = None, column: int = 0) -> int:
        self.buffers.append(Buffer(kind, spec, array, column))
        return len(self.buffers) - 1

    def _leaf(self, node: Tensor, owned: bool) -> int:
        if owned:
            return self._add(PARAM, node.spec, node)
        if "column" in node.attrs:
            return self._add(SCALARS, node.spec, None, node.attrs["column"])
        array = np.array(node._value, order="C")  # a copy: a constant stays as it was traced
        return self._add(CONST, node.spec, array)

    def _fold(self, node: Tensor, inputs: tuple[int, ...]) -> tuple[int, ...]:
        assert node._op is not None
        specs = _specs(node)
        arrays = [self.buffers[b].array for b in inputs]
        values = self._backend.evaluate(node._op.name, arrays, node.attrs, specs)  # type: ignore[arg-type]
        return tuple(self._add(CONST, s, v) for s, v in zip(specs, values, strict=True))

    @staticmethod
    def _updated(name: str, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """The buffers that an update changes in place: the parameter and its state."""
        if name == "update":  # w, g, state..., coef
            return (inputs[0], *inputs[2:-1])
        return inputs[2:-1]  # rows, sums (or delta, x), w, state..., coef

    def _check(self) -> None:
        for instruction in self.instructions:
            for b in (*instruction.inputs, *instruction.outputs):
                if self.buffers[b].spec.ndim > _MAX_DIMS:
                    raise ShapeError(
                        f"op {instruction.op!r}: a compiled step takes at most {_MAX_DIMS} axes, "
                        f"got shape {self.buffers[b].spec.shape}"
                    )

    # -- running -----------------------------------------------------------------------------

    @contextmanager
    def session(self, threads: int | None) -> Iterator[None]:
        """Own the parameters inside a ``with`` block; they are written back when it ends."""
        try:
            self.begin(threads)
            yield
        finally:
            self.end()

    def begin(self, threads: int | None) -> None:
        """Own the parameters until `end`; what `session` does."""
        self._copies.clear()
        for i, tensor in self._owned:
            if tensor._value is not self._bound.get(i):
                array = np.ascontiguousarray(tensor.data)
                self._runner.bind(i, array)
                if array is tensor._value:
                    self._bound[i] = array
                else:
                    self._bound.pop(i, None)
                    self._copies.append((tensor, array))
        self._runner.begin(backend.check_threads(threads))

    def end(self) -> None:
        """Write the parameters back."""
        self._runner.end()
        for tensor, array in self._copies:
            tensor._value[...] = array
        self._copies.clear()

    def run(
        self,
        steps: int,
        sources: Sequence[Array],
        *,
        index: Array | None = None,
        first_row: int = 0,
        scalars: Array | None = None,
        results: Array | None = None,
        outputs: Sequence[Array] = (),
        budget: float = 0.0,
    ) -> int:
        """Run up to `steps` steps inside a session.

        Parameters
        ----------
        steps
            How many at most.
        sources
            The arrays that minibatches are gathered from.
        index
            Row numbers (steps * batch), or None for the rows from `first_row` on.
        first_row
            First row of the first minibatch, where there is no `index`, and of the outputs.
        scalars
            float64 (steps, columns): learning rates and the like of each step.
        results
            float64 (steps, columns), written.
        outputs
            Arrays whose rows are written.
        budget
            Seconds after which no further step begins; 0 for no limit.

        Returns
        -------
        int
            Steps done: fewer than `steps` when the budget is used up, or after a step whose
            first result is not finite.
        """
        if scalars is None:
            scalars = np.empty((steps, 0))
        if results is None:
            results = np.empty((steps, 0))
        return self._runner.run(
            steps,
            tuple(sources),
            index,
            first_row,
            scalars,
            results,
            tuple(outputs),
            int(budget * 1e9),
        )

    def stats(self) -> dict[str, Any]:
        """Counts and sizes: instructions, bytes of temporaries, barriers, panels."""
        return self._runner.stats()

    def __str__(self) -> str:
        """The instruction list, one line each."""
        lines = []
        for ins in self.instructions:
            outs = ", ".join(self._name(b) for b in ins.outputs)
            args = [self._name(b) for b in ins.inputs]
            args += [f"{k}={v}" for k, v in ins.attrs.items() if not isinstance(v, Spec)]
            lines.append(f"{outs} = {ins.op}({', '.join(args)})")
        return "\n".join(lines)

    def _name(self, b: int) -> str:
        buffer = self.buffers[b]
        if isinstance(buffer.array, Tensor) and buffer.array.name:
            return buffer.array.name
        return f"%{b}:{'x'.join(map(str, buffer.spec.shape)) or 'scalar'}"


def _specs(node: Tensor) -> list[Spec]:
    value = node._value
    if isinstance(value, RowSums):
        return [value.rows, value.sums]
    return [node.spec]


def _bounds(program: Program) -> list[tuple[int, int, str]]:
    """Sources that are ids or labels: (source, bound, what they are)."""
    made = {ins.outputs[0]: ins for ins in program.instructions if ins.outputs}
    found = []
    for ins in program.instructions:
        if ins.op not in ("take", "softmax_cross_entropy", "take_along_last"):
            continue
        source = made.get(ins.inputs[1])
        while source is not None and source.op == "reshape":
            source = made.get(source.inputs[0])
        if source is None or source.op != "load":
            continue
        shape = program.buffers[ins.inputs[0]].spec.shape
        bound, what = (shape[0], "an id") if ins.op == "take" else (shape[-1], "a label")
        found.append((source.attrs["source"], bound, what))
    return found


def _renumbered_output(ins: Instruction, by: int) -> Instruction:
    if ins.op != "store":
        return ins
    return Instruction("store", ins.inputs, (), {"output": ins.attrs["output"] - by})


# -- fusing --------------------------------------------------------------------------------------


def _fuse(instructions: list[Instruction]) -> list[Instruction]:
    """Rewrites that save a pass over memory and keep every bit.

    A value that has exactly one use moves into the instruction that uses it: a non-linearity into
    the dense layer before it, f' into the input gradient before it, an optimizer's update into
    the weight gradient before it.
    """
    uses = Counter(b for ins in instructions for b in ins.inputs)
    made: dict[int, int] = {}  # buffer -> position of the instruction that makes it
    fused: list[Instruction | None] = []
    for ins in instructions:
        operand = _fusable_operand(ins)
        if operand is not None and uses[ins.inputs[operand]] == 1:
            at = made.get(ins.inputs[operand])
            before = None if at is None else fused[at]
            # An operand that was updated in between (a parameter that is a factor of another one's
            # gradient) no longer has the value that the product needs.
            if before is not None and any(made.get(b, -1) > (at or 0) for b in before.inputs):
                before = None
            merged = None if before is None else _merge(before, ins)
            if at is not None and merged is not None:
                fused[at], ins = None, merged
        made.update((b, len(fused)) for b in ins.outputs)
        fused.append(ins)
    return [ins for ins in fused if ins is not None]


def _fusable_operand(ins: Instruction) -> int | None:
    """Which operand of an instruction could be computed by the instruction itself."""
    if ins.op in reference.ACTIVATIONS or ins.op.removeprefix("d") in reference.ACTIVATIONS:
        return 0
    return 1 if ins.op == "update" else None


def _merge(before: Instruction, ins: Instruction) -> Instruction | None:
    """One instruction that does what two do, or None."""
    plain = before.op == "dense" and before.attrs["activation"] is None
    if plain and ins.op in reference.ACTIVATIONS:
        attrs = {"activation": ins.op, "param": ins.attrs["param"]}
        return Instruction("dense", before.inputs, ins.outputs, attrs)
    if before.op == "matmul":
        flags = (before.attrs["transpose_a"], before.attrs["transpose_b"])
        name = ins.op.removeprefix("d")
        if flags == (False, False) and ins.op != name and name in reference.ACTIVATIONS:
            attrs = {"activation": name, "param": ins.attrs["param"]}
            return Instruction("matmul_dact", (*before.inputs, ins.inputs[1]), ins.outputs, attrs)
        if flags == (True, False) and ins.op == "update":
            inputs = (*before.inputs, ins.inputs[0], *ins.inputs[2:])
            return Instruction("matmul_update", inputs, ins.outputs, ins.attrs)
    return None


# -- the two runners -----------------------------------------------------------------------------


def _encode(program: Program) -> Runner:
    """The program as the tables that the core reads (their layout: `_core.Program`)."""
    buffers = np.zeros((len(program.buffers), 8), np.int64)
    for row, b in zip(buffers, program.buffers, strict=True):
        row[:3] = b.kind, backend.DTYPE_CODES[b.spec.dtype], b.spec.ndim
        row[3 : 3 + b.spec.ndim] = b.spec.shape
        row[7] = b.column
    instructions = np.zeros((len(program.instructions), 24), np.int64)
    floats = np.zeros((len(program.instructions), 4))
    for i, ins in enumerate(program.instructions):
        ints, reals = backend.encode(ins.op, ins.attrs)
        if len(ins.inputs) > 8 or len(ints) > 8:
            raise UsageError(f"op {ins.op!r}: too many operands for a compiled step")
        row = instructions[i]
        row[0], row[1], row[6] = backend.OPCODES[ins.op], len(ins.outputs), len(ins.inputs)
        row[2 : 2 + len(ins.outputs)] = ins.outputs
        row[7 : 7 + len(ins.inputs)] = ins.inputs
        row[15 : 15 + len(ints)] = ints
        floats[i, : len(reals)] = reals
    runner: Runner = _core.Program(buffers, instructions, floats)
    return runner


class Interpreter:
    """Runs the same instruction list with the reference, one numpy call an instruction."""

    def __init__(self, program: Program, numpy_backend: backend.Backend) -> None:
        self._program = program
        self._backend = numpy_backend
        self._bound: dict[int, Array] = {}

    def bind(self, buffer: int, array: Array) -> None:
        """Borrow the array of a parameter or constant."""
        self._bound[buffer] = array

    def begin(self, threads: int) -> None:
        """Take the parameters; the reference has no layout of its own."""

    def end(self) -> None:
        """Write the parameters back: they were changed in place."""

    def stats(self) -> dict[str, Any]:
        """Counts and sizes."""
        return {"instructions": len(self._program.instructions)}

    def run(
        self,
        steps: int,
        sources: tuple[Array, ...],
        index: Array | None,
        first_row: int,
        scalars: Array,
        results: Array,
        outputs: tuple[Array, ...],
        budget_ns: int,
    ) -> int:
        """Run the steps; see `Program.run`. The budget is not looked at."""
        batch = self._program.batch
        for step in range(steps):
            first = first_row + step * batch
            rows: Any = slice(first, first + batch)
            picked = rows if index is None else index[step * batch : (step + 1) * batch]
            values = dict(self._bound)
            for i, b in enumerate(self._program.buffers):
                if b.kind == SCALARS:
                    n = b.spec.size
                    row = scalars[step, b.column : b.column + n]
                    values[i] = row.astype(b.spec.dtype).reshape(b.spec.shape)
            for ins in self._program.instructions:
                self._execute(ins, values, sources, picked, rows, results[step], outputs)
            if results.shape[1] and not np.isfinite(results[step, 0]):
                return step + 1
        return steps

    def _execute(
        self,
        ins: Instruction,
        values: dict[int, Array],
        sources: tuple[Array, ...],
        picked: Any,
        rows: slice,
        results: Array,
        outputs: tuple[Array, ...],
    ) -> None:
        specs = [self._program.buffers[b].spec for b in ins.outputs]
        arrays = [values[b] for b in ins.inputs]
        if ins.op == "load":
            loaded = sources[ins.attrs["source"]][picked]
            values[ins.outputs[0]] = loaded.astype(specs[0].dtype).reshape(specs[0].shape)
        elif ins.op == "store":
            outputs[ins.attrs["output"]][rows] = arrays[0]
        elif ins.op == "result":
            results[ins.attrs["column"]] = arrays[0]
        elif ins.op in _UPDATES:
            self._backend.update(ins.op, arrays, ins.attrs, [values[b] for b in ins.outputs])
        else:
            made = self._backend.evaluate(ins.op, arrays, ins.attrs, specs)
            values.update(zip(ins.outputs, made, strict=True))
