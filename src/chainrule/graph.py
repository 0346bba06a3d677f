"""Tensor, the computation graph that its operations record, and backward.

The graph knows no op: rules stand in a table (`TABLE`, filled by `ops`), and a Tensor's methods
name a row of it. Every op yields one Tensor that remembers its inputs, so the graph is the chain
of Tensors itself and dies with its last reference. While a model is traced, Tensors carry a
`Spec` (shape and dtype) in place of an array; everything else is the same.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import backend
from .errors import DtypeError, ShapeError, TraceError, UsageError

Array = NDArray[Any]


class Spec(NamedTuple):
    """Shape and dtype of a value that is not there (yet)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Op:
    """One row of the op table.

    Parameters
    ----------
    name
        The name, the same in both backends.
    shape
        Shape rule: specs of the inputs and the attributes -> specs of the results.
    vjp
        Vector-Jacobian product, written with ops: ``vjp(node, g, needs)`` gives one gradient for
        each input, None where ``needs`` is False. None for an op without derivative.
    flops
        Floating point operations of one evaluation, from the same arguments as `shape`.
    """

    name: str
    shape: Callable[..., Sequence[Spec]]
    vjp: Callable[[Tensor, Tensor, Sequence[bool]], Sequence[Tensor | None]] | None
    flops: Callable[..., int]


TABLE: dict[str, Op] = {}


class _State(threading.local):
    recording: bool = True
    tracing: bool = False


_state = _State()
_sequence = itertools.count()


@contextmanager
def no_grad() -> Iterator[None]:
    """Record no graph inside a ``with`` block."""
    previous, _state.recording = _state.recording, False
    try:
        yield
    finally:
        _state.recording = previous


@contextmanager
def recording() -> Iterator[None]:
    """Record the graph inside a ``with`` block, whatever surrounds it."""
    previous, _state.recording = _state.recording, True
    try:
        yield
    finally:
        _state.recording = previous


@contextmanager
def tracing() -> Iterator[None]:
    """Run ops on shapes only inside a ``with`` block."""
    previous, _state.tracing = _state.tracing, True
    try:
        yield
    finally:
        _state.tracing = previous


def is_recording() -> bool:
    """Whether operations record a graph."""
    return _state.recording


def is_tracing() -> bool:
    """Whether ops run on shapes only."""
    return _state.tracing


class Tensor:
    """An array in a computation graph.

    Parameters
    ----------
    value
        The array; or a `Spec`, or a tuple of them, while tracing.
    requires_grad
        Whether gradients flow to it.
    name
        Shown in errors and explanations.

    Attributes
    ----------
    data : ndarray
        The value. May be set; a value of another shape is refused, and so is a later backward
        that needs the old one. The result of an op is read-only.
    grad : ndarray or None
        The gradient after a backward pass, always of the shape of `data`.
    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_grad",
        "_inputs",
        "_op",
        "_seq",
        "_value",
        "attrs",
        "name",
        "requires_grad",
    )
    __hash__ = object.__hash__

    def __init__(
        self,
        value: Any,
        *,
        requires_grad: bool = False,
        name: str | None = None,
        op: Op | None = None,
        inputs: tuple[Tensor, ...] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        self._value = value
        self._grad: Any = None
        self._op = op
        self._inputs = inputs
        self._seq = next(_sequence)
        self._changed = 0  # the number that was due when the value was set
        self.attrs: Mapping[str, Any] = attrs or {}
        self.requires_grad = requires_grad
        self.name = name

    # -- value -------------------------------------------------------------------------------

    @property
    def data(self) -> Array:
        """The value as an ndarray."""
        if type(self._value) is not np.ndarray or (_state.tracing and self.requires_grad):
            self._refuse("its value")
        value: Array = self._value
        return value

    @data.setter
    def data(self, value: ArrayLike) -> None:
        array = np.asarray(value, self.dtype)
        if array.shape != self.shape:
            raise ShapeError(
                f"{self._label()}.data: expected shape {self.shape}, got {array.shape}"
            )
        self._value = array
        self._changed = next(_sequence)

    @property
    def grad(self) -> Array | None:
        """The gradient, of the shape of `data`, or None before a backward pass."""
        grad = self._grad
        if grad is None:
            return None
        if isinstance(grad, RowSums):
            whole = grad.dense()
            whole.flags.writeable = False  # made anew for each look: a write would be lost
            return whole
        array: Array = grad
        return array

    @grad.setter
    def grad(self, value: ArrayLike | None) -> None:
        if value is not None:
            value = np.asarray(value, self.dtype)
            if value.shape != self.shape:
                raise ShapeError(
                    f"{self._label()}.grad: expected shape {self.shape}, got {value.shape}"
                )
        self._grad = value

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return Spec(self._value.shape, self._value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        shape: tuple[int, ...] = self._value.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the value."""
        dtype: np.dtype[Any] = self._value.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._value.size)

    def item(self) -> float | int | bool:
        """The value of a Tensor of one element as a Python number."""
        if type(self._value) is not np.ndarray:
            self._refuse(".item()")
        if self.size != 1:
            raise ShapeError(f".item(): expected one element, got shape {self.shape}")
        value: float | int | bool = self._value.item()
        return value

    def detach(self) -> Tensor:
        """A Tensor with the same value and no history."""
        if _state.tracing:
            with no_grad():
                return apply("copy", (self,))
        return Tensor(self._value, name=self.name)

    def _label(self) -> str:
        if self.name:
            return f"Tensor {self.name!r}"
        return f"Tensor from {self._op.name!r}" if self._op else "Tensor"

    def _refuse(self, what: str) -> NoReturn:
        if isinstance(self._value, Spec) and not _state.tracing:
            raise UsageError(
                f"{self._label()} of shape {self.shape} has no value yet: "
                "call model.init(seed) first"
            )
        raise TraceError(
            f"{self._label()} of shape {self.shape}: {what} was asked for while the model is "
            "traced, where only shapes exist; use an op (cr.where, cr.maximum, ...) instead"
        )

    def __repr__(self) -> str:
        if type(self._value) is not np.ndarray:
            return f"Tensor(shape={self.shape}, dtype={self.dtype}, traced)"
        body = np.array2string(self._value, separator=", ", prefix="Tensor(")
        tail = f", dtype={self.dtype}" if self.dtype != np.float64 else ""
        return f"Tensor({body}{tail}" + (f", name={self.name!r})" if self.name else ")")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d Tensor")
        return self.shape[0]

    def __bool__(self) -> bool:
        if type(self._value) is not np.ndarray:
            self._refuse("bool()")
        if self.size != 1:
            raise UsageError(
                f"the truth value of a Tensor of shape {self.shape} is ambiguous: "
                "for the larger of two use cr.maximum, for a choice cr.where"
            )
        return bool(self._value)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        if self.requires_grad and _state.recording and not _state.tracing:
            raise UsageError(
                f"{self._label()} is part of a graph; an array made of it would drop the graph: "
                "use .data, or .detach() first"
            )
        return np.array(self.data, dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = NUMPY_FUNCTIONS.get(ufunc) if method == "__call__" and not kwargs else None
        if rule is None:
            raise TypeError(
                f"numpy.{ufunc.__name__}{'' if method == '__call__' else '.' + method} has no op "
                "for Tensors; use .data for a plain array"
            )
        return rule(*inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = NUMPY_FUNCTIONS.get(func)
        if rule is None:
            raise TypeError(
                f"numpy.{func.__name__} has no op for Tensors; use .data for a plain array"
            )
        return rule(*args, **kwargs)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    # -- operators: each names a row of the table --------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return METHODS["add"](self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return METHODS["subtract"](self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return METHODS["subtract"](other, self)

    def __mul__(self, other: Any) -> Tensor:
        return METHODS["multiply"](self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return METHODS["divide"](self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return METHODS["divide"](other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return METHODS["power"](self, exponent)

    def __matmul__(self, other: Any) -> Tensor:
        return METHODS["matmul"](self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return METHODS["matmul"](other, self)

    def __neg__(self) -> Tensor:
        return METHODS["negative"](self)

    def __abs__(self) -> Tensor:
        return METHODS["abs"](self)

    def __getitem__(self, index: Any) -> Tensor:
        return METHODS["getitem"](self, index)

    def __lt__(self, other: Any) -> Any:
        return METHODS["less"](self, other)

    def __le__(self, other: Any) -> Any:
        return METHODS["less_equal"](self, other)

    def __gt__(self, other: Any) -> Any:
        return METHODS["greater"](self, other)

    def __ge__(self, other: Any) -> Any:
        return METHODS["greater_equal"](self, other)

    def __eq__(self, other: object) -> Any:
        return METHODS["equal"](self, other)

    def __ne__(self, other: object) -> Any:
        return METHODS["not_equal"](self, other)

    @property
    def T(self) -> Tensor:
        """The transpose: all axes reversed."""
        return METHODS["transpose"](self)

    def __getattr__(self, name: str) -> Any:
        method = METHODS.get(name)
        if method is None or name.startswith("_"):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        return lambda *args, **kwargs: method(self, *args, **kwargs)

    # -- backward ----------------------------------------------------------------------------

    def backward(self, gradient: ArrayLike | None = None) -> None:
        """Accumulate d(self)/d(t) into ``t.grad`` of every Tensor t that self was made of.

        Parameters
        ----------
        gradient
            The upstream gradient, of the shape of `self`; 1 for a scalar.

        Raises
        ------
        UsageError
            For a Tensor of several elements without a `gradient`.
        DtypeError
            For integers and booleans, which have no gradient.
        """
        if not np.issubdtype(self.dtype, np.floating):
            raise DtypeError(f"backward(): expected a float Tensor, got dtype {self.dtype}")
        if gradient is None:
            if self.size != 1:
                raise UsageError(
                    f"backward() of a Tensor of shape {self.shape} needs the upstream gradient: "
                    "call .sum().backward() or .backward(gradient)"
                )
            gradient = np.ones(self.shape, self.dtype)
        seed = Tensor(np.asarray(gradient, self.dtype))
        if seed.shape != self.shape:
            raise ShapeError(f"backward(gradient): expected {self.shape}, got {seed.shape}")
        with no_grad():
            for node, grad in _backpropagate(self, seed):
                node._accumulate(grad._value)

    def _accumulate(self, grad: Any) -> None:
        if self._grad is None:
            self._grad = grad if isinstance(grad, RowSums) else np.array(grad)
        elif isinstance(grad, RowSums) and isinstance(self._grad, RowSums):
            self._grad = _add_gradients(Tensor(self._grad), Tensor(grad))._value
        else:
            old = self._grad.dense() if isinstance(self._grad, RowSums) else self._grad
            self._grad = np.asarray(old + (grad.dense() if isinstance(grad, RowSums) else grad))


@dataclass(slots=True)
class RowSums:
    """The gradient of a table's rows: `sums[i]` belongs to row `rows[i]`; -1 marks no row.

    Rows are distinct and in order of first occurrence; every other row's gradient is zero.
    """

    rows: Any
    sums: Any
    n_rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_rows, *self.sums.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.sums.dtype
        return dtype

    def dense(self) -> Array:
        """The whole gradient as one array."""
        out = np.zeros(self.shape, self.dtype)
        used = self.rows >= 0
        out[self.rows[used]] = self.sums[used]
        return out


METHODS: dict[str, Callable[..., Tensor]] = {}
NUMPY_FUNCTIONS: dict[Any, Callable[..., Any]] = {}


def apply(name: str, inputs: Sequence[Tensor], attrs: Mapping[str, Any] | None = None) -> Tensor:
    """Evaluate one op (or, while tracing, its shape rule) and record it.

    Parameters
    ----------
    name
        Row of the op table.
    inputs
        Operands; their dtypes must already agree with the op.
    attrs
        The op's attributes.
    """
    op = TABLE[name]
    attrs = attrs or {}
    specs = op.shape(*[t.spec for t in inputs], **attrs)
    requires_grad = _state.recording and any(t.requires_grad for t in inputs)
    results: Sequence[Any] = specs
    if not _state.tracing:
        arrays = [a for t in inputs for a in _arrays(t)]
        results = backend.current().evaluate(name, arrays, attrs, specs)
        results[0].flags.writeable = False
    value: Any = results[0]
    if len(results) > 1:
        rows, sums = results
        value = RowSums(rows, sums, attrs["n_rows"])
    keep = requires_grad or _state.tracing
    return Tensor(
        value,
        requires_grad=requires_grad and np.issubdtype(specs[-1].dtype, np.floating),
        op=op if keep else None,
        inputs=tuple(inputs) if keep else (),
        attrs=attrs,
    )


def _arrays(t: Tensor) -> tuple[Array, ...]:
    """The arrays that a backend sees of one operand."""
    value = t._value
    return (value.rows, value.sums) if isinstance(value, RowSums) else (t.data,)


def _backpropagate(
    root: Tensor,
    seed: Tensor,
    stop: frozenset[int] = frozenset(),
    watch: Callable[[Tensor, Sequence[Tensor | None]], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each node that needs one with its whole gradient, the latest node first.

    Nodes are numbered as they are made, so descending numbers are a reverse topological order.
    Nodes whose id is in `stop` are not passed through. `watch` is told each node that was passed
    and what it gave to each of its inputs.
    """
    found = {id(root): root}
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in stop:
            continue
        for parent in node._inputs:
            if parent.requires_grad and id(parent) not in found:
                found[id(parent)] = parent
                stack.append(parent)
    grads: dict[int, list[tuple[int, Tensor]]] = {id(root): [(0, seed)]}
    for node in sorted(found.values(), key=lambda n: n._seq, reverse=True):
        parts = grads.pop(id(node), None)
        if parts is None:
            continue
        # Several uses of one value are added in the order of their first use in the forward pass.
        parts.sort(key=lambda part: part[0])
        grad = parts[0][1]
        for _, part in parts[1:]:
            grad = _add_gradients(grad, part)
        yield node, grad
        if node._op is None or id(node) in stop:
            continue
        if node._op.vjp is None:
            raise UsageError(
                f"op {node._op.name!r} has no gradient rule; use .detach() on its input"
            )
        given = pull(node, grad)
        for parent, given_part in zip(node._inputs, given, strict=True):
            if given_part is not None:
                grads.setdefault(id(parent), []).append((node._seq, given_part))
        if watch is not None:
            watch(node, given)


def pull(node: Tensor, grad: Tensor) -> list[Tensor | None]:
    """What one node gives to each of its inputs, of the input's shape; None where none is needed.

    Parameters
    ----------
    node
        The result of an op.
    grad
        Its whole gradient.

    Raises
    ------
    UsageError
        If the op has no rule, or if a value that the rule needs has changed since.
    """
    op = node._op
    assert op is not None
    if op.vjp is None:
        raise UsageError(f"op {op.name!r} has no gradient rule; use .detach() on its input")
    needs = [t.requires_grad for t in node._inputs]
    stale = [t for t in (*node._inputs, node) if t._changed > node._seq]
    if stale:
        given = _pull_around(stale, node, _densify(grad), needs)
    else:
        given = op.vjp(node, _densify(grad), needs)
    return [
        _unbroadcast(part, parent) if part is not None and parent.requires_grad else None
        for parent, part in zip(node._inputs, given, strict=True)
    ]


def _pull_around(
    stale: Sequence[Tensor], node: Tensor, grad: Tensor, needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """Apply a rule while the values that have changed are out of reach: it may not need them."""
    assert node._op is not None and node._op.vjp is not None
    values = {id(t): (t, t._value) for t in stale}
    try:
        for t, _ in values.values():
            t._value = t.spec
        return node._op.vjp(node, grad, needs)
    except UsageError:
        names = " and ".join(t._label() for t, _ in values.values())
        raise UsageError(
            f"backward through op {node._op.name!r} needs the value of {names}, which has changed "
            "since the forward pass: run the forward pass again, or call backward first"
        ) from None
    finally:
        for t, value in values.values():
            t._value = value


def _add_gradients(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two gradients of one value; of two in rows, again one in rows."""
    if isinstance(a._value, RowSums) and isinstance(b._value, RowSums):
        rows = apply("concatenate", (_row_ids(a), _row_ids(b)), {"axis": 0})
        sums = apply("concatenate", (row_values(a), row_values(b)), {"axis": 0})
        return apply("row_sums", (rows, sums), {"n_rows": a._value.n_rows})
    return METHODS["add"](_densify(a), _densify(b))


def _densify(grad: Tensor) -> Tensor:
    """Row sums of a table as a whole array; anything else as it is."""
    value = grad._value
    if isinstance(value, RowSums):
        grad = METHODS["scatter_rows"](grad)
    return grad


def _unbroadcast(grad: Tensor, target: Tensor) -> Tensor:
    """Sum `grad` over the axes along which `target` was broadcast; cast it to its dtype."""
    if isinstance(grad._value, RowSums):
        return grad
    for _ in range(grad.ndim - target.ndim):
        grad = METHODS["sum"](grad, axis=0)
    for axis, n in enumerate(target.shape):
        if n == 1 and grad.shape[axis] != 1:
            grad = METHODS["sum"](grad, axis=axis, keepdims=True)
    if grad.shape != target.shape:
        raise ShapeError(
            f"the vjp that leads to {target._label()} gave shape {grad.shape}, "
            f"expected {target.shape}"
        )
    if grad.dtype != target.dtype:
        grad = METHODS["cast"](grad, target.dtype)
    return grad


def row_values(g: Tensor) -> Tensor:
    """The sums of a gradient in rows as a Tensor of their own; any other gradient as it is."""
    value = g._value
    if not isinstance(value, RowSums):
        return g
    return Tensor(value.sums, op=ROW_VALUES, inputs=(g,) if _state.tracing else ())


def _row_ids(g: Tensor) -> Tensor:
    """The rows of a gradient in rows."""
    return Tensor(g._value.rows, op=ROW_IDS, inputs=(g,) if _state.tracing else ())


def with_row_values(g: Tensor, sums: Tensor) -> Tensor:
    """The gradient in rows `g` with other sums."""
    value = RowSums(g._value.rows, sums._value, g._value.n_rows)
    return Tensor(value, op=WITH_ROW_VALUES, inputs=(g, sums) if _state.tracing else ())


# Names for a part of a value, not computations: a program resolves them when it numbers buffers.
ROW_IDS = Op("row_ids", lambda g: [g], None, lambda g: 0)
ROW_VALUES = Op("row_values", lambda g: [g], None, lambda g: 0)
WITH_ROW_VALUES = Op("with_row_values", lambda g, sums: [g], None, lambda g, sums: 0)


def gradients(
    root: Tensor, wrt: Sequence[Tensor], seed: Tensor | None = None, *, record: bool = False
) -> list[Tensor | None]:
    """The gradients of `root` with respect to each Tensor of `wrt`, None where it plays no part.

    Parameters
    ----------
    root
        What is differentiated.
    wrt
        Tensors in its graph; the pass stops at them.
    seed
        Upstream gradient of `root`'s shape; 1 by default.
    record
        Record the backward pass itself, so that its result can be differentiated again.
    """
    if seed is None:
        seed = Tensor(np.ones(root.shape, root.dtype))
    wanted = {id(t): i for i, t in enumerate(wrt)}
    found: list[Tensor | None] = [None] * len(wrt)
    previous = _state.recording
    _state.recording = record
    try:
        for node, grad in _backpropagate(root, seed, frozenset(wanted)):
            if id(node) in wanted:
                found[wanted[id(node)]] = grad
    finally:
        _state.recording = previous
    return found


def tensor(value: ArrayLike, *, dtype: DTypeLike | None = None, name: str | None = None) -> Tensor:
    """A Tensor of an array or number; gradients flow to it if it is of a float type.

    Parameters
    ----------
    value
        Anything `numpy.asarray` takes; numbers and lists of floats become float64, as in NumPy.
    dtype
        Another dtype than NumPy would choose.
    name
        Shown in errors and explanations.
    """
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value, dtype)
    if array.dtype not in backend.DTYPE_CODES:
        if np.issubdtype(array.dtype, np.integer):
            array = array.astype(np.int64)
        elif array.dtype.newbyteorder("=") in backend.DTYPE_CODES:
            array = array.astype(array.dtype.newbyteorder("="))
        else:
            known = ", ".join(str(d) for d in backend.DTYPES)
            raise DtypeError(f"tensor: expected one of {known}, got {array.dtype}")
    return Tensor(array, requires_grad=np.issubdtype(array.dtype, np.floating), name=name)


def parameter(
    value: ArrayLike, *, dtype: DTypeLike | None = None, name: str | None = None
) -> Tensor:
    """A trainable Tensor: a copy of `value` that gradients flow to.

    Raises
    ------
    DtypeError
        If it is not of a float type.
    """
    array = np.array(value, dtype)
    if not np.issubdtype(array.dtype, np.floating):
        raise DtypeError(f"parameter: expected floats, got {array.dtype}; write 1.0 for 1")
    return tensor(array, name=name)
