"""Structured data: inputs, targets and weights as arrays of one length, checked once."""

from __future__ import annotations

import contextlib
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


class Keyed(dict[str, Any]):
    """A dict whose missing key is an error that names what was asked for, and where."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self._where = where

    def __missing__(self, key: str) -> Any:
        keys = ", ".join(repr(k) for k in self)
        raise DataError(f"{self._where}: {key!r} was asked for, but the keys are {keys}")


class Structure:
    """The shape of a structure of arrays: taken apart into a list, and put together again.

    Parameters
    ----------
    value
        An array, or tuples and dicts of arrays.
    where
        What errors call it.
    """

    def __init__(self, value: Data, where: str = "") -> None:
        self.leaves: list[Any] = []
        self.labels: list[str] = []
        self.plan: Any
        self.where = where
        if type(value) is np.ndarray:
            self.leaves, self.labels, self.plan = [value], [where], 0
        else:
            self.plan = self._walk(value, where)  # equal where two structures are alike

    def _walk(self, value: Data, label: str) -> Any:
        if isinstance(value, tuple):
            return tuple([self._walk(v, f"{label}[{i}]") for i, v in enumerate(value)])
        if isinstance(value, Mapping):
            parts = [(k, self._walk(v, f"{label}[{k!r}]")) for k, v in value.items()]
            return frozenset({("keys", tuple(parts))})  # told from a tuple by its type
        self.leaves.append(value)
        self.labels.append(label)
        return len(self.leaves) - 1

    def build(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""

        def fill(plan: Any) -> Any:
            if isinstance(plan, tuple):
                return tuple([fill(p) for p in plan])
            if isinstance(plan, frozenset):
                ((_, parts),) = plan
                return Keyed({k: fill(p) for k, p in parts}, self.where)
            return leaves[plan]

        return fill(self.plan)


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
        self.parts = {"x": Structure(x, "x")}
        if y is not None:
            self.parts["y"] = Structure(y, "y")
        if weight is not None:
            self.parts["sample_weight"] = Structure(weight, "sample_weight")
        self._dtype = dtype
        self.arrays: list[Array] = []
        self.labels: list[str] = []
        for part in self.parts.values():
            self.arrays += map(_as_array, part.leaves, part.labels)
            self.labels += part.labels
        if not self.parts["x"].leaves:
            raise DataError("x: expected an array, or a tuple or dict of arrays, got an empty one")
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
        plans = tuple([(name, part.plan) for name, part in self.parts.items()])
        whole = [a.dtype.char if a.dtype.kind == "i" else "f" for a in self.arrays]
        return (plans, tuple([a.shape[1:] for a in self.arrays]), *whole)

    def _spec(self, array: Array, batch: int) -> Spec:
        dtype = array.dtype if array.dtype.kind == "i" else self._dtype
        return Spec((batch, *array.shape[1:]), dtype)

    def rows(self, picked: Array) -> tuple[Any, ...]:
        """The chosen rows in the structure that was given: (x, y) or (x, y, weight)."""
        arrays = [a[picked] for a in self.arrays]
        values = []
        for part in self.parts.values():
            values.append(part.build(arrays[: len(part.leaves)]))
            arrays = arrays[len(part.leaves) :]
        return tuple(values)

    def load(self, batch: int, differentiable: bool = False) -> tuple[Any, Any, Tensor | None]:
        """The minibatch as Tensors, while tracing: x, y and the weights."""
        loaded = [
            graph.apply("load", (), {"spec": self._spec(a, batch), "source": i})
            for i, a in enumerate(self.arrays)
        ]
        if differentiable:  # by x too, where it is not made of integers
            for t in loaded:
                t.requires_grad = t.dtype.kind == "f"
        return self._built(loaded)

    def _built(self, loaded: list[Tensor]) -> tuple[Any, Any, Tensor | None]:
        values = []
        for part in self.parts.values():
            values.append(part.build(loaded[: len(part.leaves)]))
            loaded = loaded[len(part.leaves) :]
        named = dict(zip(self.parts, values, strict=True))
        return named["x"], named.get("y"), named.get("sample_weight")

    def take(self, picked: Array) -> Dataset:
        """The chosen rows as a Dataset."""
        named = dict(zip(self.parts, self.rows(picked), strict=True))
        return Dataset(named["x"], named.get("y"), named.get("sample_weight"), self._dtype)

    def tensors(self) -> tuple[Any, Any, Tensor | None]:
        """All rows as Tensors of the dtypes that a program loads: x, y and the weights."""
        loaded = [Tensor(a.astype(self._spec(a, 0).dtype)) for a in self.arrays]
        return self._built(loaded)

    def check_bounds(self, program: Program) -> None:
        """Check ids and labels against the tables and classes that the program uses them for."""
        for source, bound, what in program.bounds:
            array = self.arrays[source]
            unsigned = array.view(f"u{array.itemsize}") if array.dtype.kind == "i" else array
            if array.size and not unsigned.max() < bound:  # a negative number is a large one there
                row = int(np.nonzero((array < 0) | (array >= bound))[0][0])
                raise DataError(
                    f"{self.labels[source]}: row {row} is {array[row]}, "
                    f"expected {what} below {bound} and from 0 up"
                )


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_INTEGERS = (np.dtype(np.int32), np.dtype(np.int64))


def _as_array(value: Any, label: str) -> Array:
    array = value if type(value) is np.ndarray else _converted(value, label)
    if not array.ndim:
        raise ShapeError(f"{label}: expected an array with a row for each sample, got a number")
    kind = array.dtype.kind
    if kind == "c":
        raise DataError(f"{label}: expected real numbers, got dtype {array.dtype}")
    if kind not in "fiub":
        raise DataError(
            f"{label}: expected numbers, got dtype {array.dtype}; give categories as integers"
        )
    if kind == "f":
        if array.dtype not in _FLOATS:
            array = array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
        if not np.isfinite(array).all():
            row, *rest = (int(i[0]) for i in np.nonzero(~np.isfinite(array)))
            column = f" (column {_column_name(value, rest[0])})" if rest else ""
            raise DataError(f"{label}: row {row} holds a value that is not finite{column}")
    elif kind != "b" and array.dtype not in _INTEGERS:
        array = array.astype(np.int64)
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _column_name(value: Any, i: int) -> str:
    columns = getattr(value, "columns", None)
    return str(i) if columns is None else repr(list(columns)[i])


def _converted(value: Any, label: str) -> Array:
    """The array of whatever was given: a frame by its columns, anything else as NumPy has it."""
    kind, package = type(value).__name__, type(value).__module__.partition(".")[0]
    if package == "scipy" and hasattr(value, "toarray"):
        raise DataError(
            f"{label}: a sparse matrix ({kind}, {' x '.join(map(str, value.shape))}): rows are "
            "expected dense, give x.toarray(); for ids of words or categories use an Embedding"
        )
    if package not in ("pandas", "polars"):
        return np.asarray(value)
    if not hasattr(value, "columns"):
        return _numbers(value, label)
    names = list(value.columns)
    if not names:
        raise DataError(f"{label}: a {kind} without columns")
    columns = [_numbers(value[name], f"{label}: column {name!r}") for name in names]
    return np.column_stack(columns)


def _numbers(series: Any, label: str) -> Array:
    array = np.asarray(series)
    own = str(series.dtype).startswith(("Int", "UInt", "Float", "boolean"))
    if own and array.dtype == object:
        with contextlib.suppress(TypeError, ValueError):  # pandas: numbers that may be missing
            array = array.astype(np.float64)
    if array.dtype.kind not in "fiub" or str(series.dtype) in ("category", "Categorical", "Enum"):
        raise DataError(
            f"{label}: expected numbers, got {series.dtype}; give categories as integers, in an "
            "entry of their own: x={'numbers': frame[[...]], 'city': codes}, with an Embedding"
        )
    return array
