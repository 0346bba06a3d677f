"""The two backends behind one signature, and the choice between them.

A backend evaluates one op (`evaluate`) and runs a program, i.e. a flat instruction list
(`program`). ``c`` is the compiled core, ``numpy`` the readable reference.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core, reference
from .errors import UsageError

Array = NDArray[Any]
Attrs = Mapping[str, Any]
OutSpec = tuple[tuple[int, ...], np.dtype[Any]]

DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(t) for t in ("float32", "float64", "int32", "int64", "bool")
)
DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}

# Names of the attributes that an instruction carries, in the order of its i[] and f[] fields
# (csrc/ops.h). An op that is not listed has none.
INTS: dict[str, tuple[str, ...]] = {
    "sum": ("axis",),
    "max": ("axis",),
    "argmax": ("axis",),
    "dropout": ("key",),
    "matmul": ("transpose_a", "transpose_b"),
    "dense": ("activation",),
    "matmul_dact": ("activation",),
    "matmul_update": ("update",),
    "update": ("update",),
    "update_rows": ("update",),
    "row_sums": ("n_rows",),
    "scatter_rows": ("n_rows",),
    "put_along_last": ("size",),
    "transpose": ("axes",),
    "slice": ("axis", "start", "stop", "step"),
    "unslice": ("axis", "start", "stop", "step", "length"),
    "concatenate": ("axis",),
    "load": ("source",),
    "store": ("output",),
    "result": ("column",),
}
FLOATS: dict[str, tuple[str, ...]] = {
    "power": ("exponent",),
    "clip": ("low", "high"),
    "dropout": ("rate",),
    "dense": ("param",),
    "matmul_dact": ("param",),
    **dict.fromkeys(reference.ACTIVATIONS, ("param",)),
    **{f"d{name}": ("param",) for name in reference.ACTIVATIONS},
}

ACTIVATION_INDEX = {name: i for i, (name, _) in enumerate(_core.activation_rows())}
UPDATE_INDEX = {name: i for i, (name, _) in enumerate(_core.update_rows())}
OPCODES = {name: i for i, name in enumerate(_core.op_names())}


def encode(name: str, attrs: Attrs) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The integer and the float fields of an instruction.

    Parameters
    ----------
    name
        Name of the op.
    attrs
        Its named attributes.
    """
    ints: list[int] = []
    for field in INTS.get(name, ()):
        value = attrs[field]
        if field == "activation":
            ints.append(-1 if value is None else ACTIVATION_INDEX[value])
        elif field == "update":
            ints.append(UPDATE_INDEX[value])
        elif field == "key":
            ints += [value & 0xFFFFFFFF, value >> 32]
        elif field == "axes":
            ints += value
        else:
            ints.append(int(value))
    return tuple(ints), tuple(float(attrs[field]) for field in FLOATS.get(name, ()))


class Backend(Protocol):
    """What both backends offer."""

    name: str

    def evaluate(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, out: Sequence[OutSpec]
    ) -> list[Array]:
        """Evaluate one op on arrays; `out` gives the shape and dtype of each result."""
        ...

    def update(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, targets: Sequence[Array]
    ) -> None:
        """Run an updating op (`update`, `update_rows`) that changes `targets` in place."""
        ...


class CBackend:
    """The compiled core."""

    name = "c"

    def evaluate(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, out: Sequence[OutSpec]
    ) -> list[Array]:
        outputs = tuple(np.empty(shape, dtype) for shape, dtype in out)
        self._run(name, inputs, attrs, outputs)
        return list(outputs)

    def update(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, targets: Sequence[Array]
    ) -> None:
        own = tuple(_as_operand(t) for t in targets)
        swap = {id(t): o for t, o in zip(targets, own, strict=True)}
        self._run(name, [swap.get(id(a), a) for a in inputs], attrs, own)
        for target, result in zip(targets, own, strict=True):
            if target is not result:
                target[...] = result

    @staticmethod
    def _run(name: str, inputs: Sequence[Array], attrs: Attrs, outputs: tuple[Array, ...]) -> None:
        ints, floats = encode(name, attrs)
        operands = tuple(_as_operand(a) for a in inputs)
        _core.run(OPCODES[name], operands, outputs, ints, floats, _threads())


class NumpyBackend:
    """The reference: plain formulas on numpy arrays."""

    name = "numpy"

    def evaluate(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, out: Sequence[OutSpec]
    ) -> list[Array]:
        results = reference.OPS[name](*inputs, **attrs)
        if not isinstance(results, tuple):
            results = (results,)
        return [  # dense offers its z too, which not every caller asks for
            np.asarray(r, dtype).reshape(shape)
            for r, (shape, dtype) in zip(results, out, strict=False)
        ]

    def update(
        self, name: str, inputs: Sequence[Array], attrs: Attrs, targets: Sequence[Array]
    ) -> None:
        results = reference.OPS[name](*inputs, **attrs)
        if not isinstance(results, tuple):
            results = (results,)
        for target, result in zip(targets, results, strict=True):
            target[...] = result


def _as_operand(array: Array) -> Array:
    """The array itself, or a copy where it is misaligned, byte-swapped or strided inside."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


_BACKENDS: dict[str, Backend] = {"c": CBackend(), "numpy": NumpyBackend()}


class _State(threading.local):
    backend: Backend = _BACKENDS["c"]
    threads: int | None = None


_state = _State()


def get(name: str) -> Backend:
    """The backend of that name.

    Raises
    ------
    UsageError
        If there is none.
    """
    if name not in _BACKENDS:
        raise UsageError(f"backend: expected one of {sorted(_BACKENDS)}, got {name!r}")
    return _BACKENDS[name]


def current() -> Backend:
    """The backend that eager calls of this thread use."""
    return _state.backend


@contextmanager
def use(name: str) -> Iterator[None]:
    """Evaluate ops on the named backend inside a ``with`` block."""
    previous, _state.backend = _state.backend, get(name)
    try:
        yield
    finally:
        _state.backend = previous


def check_threads(n: int | None) -> int:
    """A thread count as the core takes it: ``None`` becomes 0, which lets the core choose."""
    if n is None:
        return 0
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
        raise UsageError(f"threads: expected an integer from 1 to 1024 or None, got {n!r}")
    return n


def _threads() -> int:
    return check_threads(_state.threads)


@contextmanager
def threads(n: int | None) -> Iterator[None]:
    """Let eager calls use `n` threads inside a ``with`` block; results do not depend on it."""
    check_threads(n)
    previous, _state.threads = _state.threads, n
    try:
        yield
    finally:
        _state.threads = previous


def stream_key(seed: int, stream: str) -> int:
    """The 64-bit Philox key of a named stream of random numbers."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(key: int, step: int, low: float, high: float, out: Array) -> None:
    """Fill `out` with uniform numbers in [low, high) of the stream `key` at `step`."""
    _core.uniform(key, step, low, high, out)


def permutation(key: int, epoch: int, n: int) -> NDArray[np.int64]:
    """A random permutation of ``range(n)``: stream `key`, draw number `epoch`."""
    out = np.empty(n, np.int64)
    _core.permutation(key, epoch, out)
    return out


def draw_seed() -> int:
    """A seed from the operating system's entropy, 63 bits."""
    return int.from_bytes(os.urandom(8), "little") >> 1
