"""Structured data: inputs, targets and weights as arrays of one length, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import graph
from .errors import DataError, ShapeError
from .graph import Spec, Tensor
from .program import Program

Array = NDArray[Any]
Data = Any  # an array, or a tuple or dict of arrays (also nested)


class Structure:
    """The shape of a structure of arrays: taken apart into a list, and put together again."""

    def __init__(self, value: Data) -> None:
        self.leaves: list[Any] = []
        self._plan = self._walk(value)

    def _walk(self, value: Data) -> Any:
        if isinstance(value, tuple):
            return tuple(self._walk(v) for v in value)
        if isinstance(value, Mapping):
            return {k: self._walk(v) for k, v in value.items()}
        self.leaves.append(value)
        return len(self.leaves) - 1

    def build(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""

        def fill(plan: Any) -> Any:
            if isinstance(plan, tuple):
                return tuple(fill(p) for p in plan)
            if isinstance(plan, dict):
                return {k: fill(p) for k, p in plan.items()}
            return leaves[plan]

        return fill(self._plan)

    @property
    def plan(self) -> str:
        """A key by which two structures are alike."""
        return repr(self._plan)


class Dataset:
    """Inputs, targets and weights as arrays of one length, checked once.

    Parameters
    ----------
    x, y, weight
        As given to `Trainer.fit`; y and weight may be None.
    dtype
        The model's dtype: floats and booleans are cast to it as they are gathered.
    """

    def __init__(self, x: Data, y: Data, weight: Any, dtype: np.dtype[Any]) -> None:
        self.parts = {"x": Structure(x)}
        if y is not None:
            self.parts["y"] = Structure(y)
        if weight is not None:
            self.parts["sample_weight"] = Structure(weight)
        self._dtype = dtype
        self.arrays: list[Array] = []
        self.labels: list[str] = []
        for name, part in self.parts.items():
            for i, leaf in enumerate(part.leaves):
                label = name if len(part.leaves) == 1 else f"{name}[{i}]"
                self.arrays.append(_as_array(leaf, label))
                self.labels.append(label)
        self.n = len(self.arrays[0])
        for array, label in zip(self.arrays, self.labels, strict=True):
            if len(array) != self.n:
                raise ShapeError(
                    f"{label} has {len(array)} rows, {self.labels[0]} has {self.n}: "
                    "expected as many"
                )
        if weight is not None:
            self._check_weight(self.arrays[-1])

    def _check_weight(self, w: Array) -> None:
        if w.shape != (self.n,):
            raise ShapeError(f"sample_weight: expected shape ({self.n},), got {w.shape}")
        if (w < 0).any():
            raise DataError(f"sample_weight: row {int(np.argmax(w < 0))} is negative")

    @property
    def key(self) -> tuple[Any, ...]:
        """What a program depends on: structure, shapes of a row, dtypes."""
        plans = tuple((name, part.plan) for name, part in self.parts.items())
        return (plans, tuple((a.shape[1:], self._spec(a, 0).dtype) for a in self.arrays))

    def _spec(self, array: Array, batch: int) -> Spec:
        dtype = array.dtype if np.issubdtype(array.dtype, np.integer) else self._dtype
        return Spec((batch, *array.shape[1:]), dtype)

    def rows(self, picked: Array) -> tuple[Any, ...]:
        """The chosen rows in the structure that was given: (x, y) or (x, y, weight)."""
        arrays = [a[picked] for a in self.arrays]
        values = []
        for part in self.parts.values():
            values.append(part.build(arrays[: len(part.leaves)]))
            arrays = arrays[len(part.leaves) :]
        return tuple(values)

    def load(self, batch: int) -> tuple[Any, Any, Tensor | None]:
        """The minibatch as Tensors, while tracing: x, y and the weights."""
        loaded = [
            graph.apply("load", (), {"spec": self._spec(a, batch), "source": i})
            for i, a in enumerate(self.arrays)
        ]
        values = []
        for part in self.parts.values():
            values.append(part.build(loaded[: len(part.leaves)]))
            loaded = loaded[len(part.leaves) :]
        named = dict(zip(self.parts, values, strict=True))
        return named["x"], named.get("y"), named.get("sample_weight")

    def check_bounds(self, program: Program) -> None:
        """Check ids and labels against the tables and classes that the program uses them for."""
        made = {ins.outputs[0]: ins for ins in program.instructions if ins.outputs}
        for ins in program.instructions:
            if ins.op not in ("take", "softmax_cross_entropy", "take_along_last"):
                continue
            source = made.get(ins.inputs[1])
            while source is not None and source.op == "reshape":
                source = made.get(source.inputs[0])
            if source is None or source.op != "load":
                continue
            shape = program.buffers[ins.inputs[0]].spec.shape
            bound = shape[0] if ins.op == "take" else shape[-1]
            what = f"an id below {bound}" if ins.op == "take" else f"a label below {bound}"
            array, label = (part[source.attrs["source"]] for part in (self.arrays, self.labels))
            if array.size and not (array.min() >= 0 and array.max() < bound):
                row = int(np.nonzero((array < 0) | (array >= bound))[0][0])
                raise DataError(
                    f"{label}: row {row} is {array[row]}, expected {what} and from 0 up"
                )


def _as_array(value: Any, label: str) -> Array:
    array = np.asarray(value)
    if not array.ndim:
        raise ShapeError(f"{label}: expected an array with a row for each sample, got a number")
    if array.dtype == object or not (
        np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    ):
        raise DataError(f"{label}: expected numbers, got dtype {array.dtype}")
    if np.issubdtype(array.dtype, np.complexfloating):
        raise DataError(f"{label}: expected real numbers, got dtype {array.dtype}")
    if np.issubdtype(array.dtype, np.floating):
        if array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.nonzero(~finite)[0][0])
            raise DataError(f"{label}: row {row} holds a value that is not finite")
    elif np.issubdtype(array.dtype, np.integer) and array.dtype not in (np.int32, np.int64):
        array = array.astype(np.int64)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
