"""Modules: what holds parameters and maps inputs to outputs."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import backend, functions, graph, reference
from .errors import DtypeError, ShapeError, UsageError
from .graph import Spec, Tensor

Array = NDArray[Any]

# Non-linearities whose half is cut off: their layers start with He's limit, others with Glorot's.
_RECTIFIERS = {"relu", "leaky_relu", "elu", "softplus", "swish", "gelu", "gelu_tanh"}


class Parameter(Tensor):
    """A trainable Tensor whose values are drawn when its module is initialised.

    Parameters
    ----------
    shape
        Its shape.
    limit
        Drawn uniformly from [-limit, limit); 0 for zeros.
    dtype
        float32 or float64.
    value
        Initial values in place of a draw.
    offset
        Added to each draw.
    """

    __slots__ = ("frozen", "limit", "offset")

    def __init__(
        self,
        shape: tuple[int, ...],
        limit: float,
        dtype: DTypeLike = "float32",
        value: ArrayLike | None = None,
        offset: float = 0.0,
    ) -> None:
        kind = np.dtype(dtype)
        if kind not in (np.dtype("float32"), np.dtype("float64")):
            raise DtypeError(f"dtype: expected float32 or float64, got {kind}")
        initial: Any = Spec(shape, kind)
        if value is not None:
            initial = np.array(value, kind, order="C")
            if initial.shape != shape:
                raise ShapeError(f"values: expected shape {shape}, got {initial.shape}")
        super().__init__(initial, requires_grad=True)
        self.limit = limit
        self.offset = offset
        self.frozen = False

    @property
    def drawn(self) -> bool:
        """Whether it has values."""
        return isinstance(self._value, np.ndarray)

    def draw(self, seed: int, path: str) -> None:
        """Draw the values from the random stream named by `path`."""
        values = np.zeros(self.shape, self.dtype)
        if self.limit:
            backend.uniform(backend.stream_key(seed, path), 0, -self.limit, self.limit, values)
        self._value = values + self.dtype.type(self.offset) if self.offset else values


class _Structure:
    """Counts the changes of any module's parameters, so that a list of them can be kept."""

    version = 0


_structure = _Structure()


def structure_version() -> int:
    """A number that changes whenever a module or parameter is set as an attribute."""
    return _structure.version


class Module:
    """Base class: subclass it, set parameters and modules as attributes, define `forward`."""

    training: bool
    _children: dict[str, Module]
    _parameters: dict[str, Parameter]
    _stream: tuple[int, str] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Module:
        self = super().__new__(cls)
        object.__setattr__(self, "training", True)
        object.__setattr__(self, "_children", {})
        object.__setattr__(self, "_parameters", {})
        object.__setattr__(self, "_stream", None)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        known = self._children.pop(name, None) or self._parameters.pop(name, None)
        if known is not None or isinstance(value, Module | Tensor):
            _structure.version += 1
        if isinstance(value, Module):
            self._children[name] = value
        elif isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Tensor) and value.requires_grad:
            own = Parameter(value.shape, 0.0, value.dtype, value.data)
            self._parameters[name] = own
            value = own
        object.__setattr__(self, name, value)

    def forward(self, *inputs: Any) -> Any:
        """Map inputs to outputs; to be defined by a subclass."""
        raise UsageError(f"{type(self).__name__} has no forward(); define forward(self, x)")

    def __call__(self, *inputs: Any) -> Any:
        if any(not p.drawn for p in self._own_parameters()):
            self.init()
        return self.forward(*inputs)

    def modules(self, path: str = "") -> Iterator[tuple[str, Module]]:
        """This module and those below it, with their paths."""
        yield path, self
        for name, child in self._children.items():
            yield from child.modules(f"{path}.{name}" if path else name)

    def _own_parameters(self) -> Iterator[Parameter]:
        for _, module in self.modules():
            yield from module._parameters.values()

    def parameters(self) -> dict[str, Parameter]:
        """All parameters by path, such as ``pi.0.weight``; a shared one by its first path."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for path, module in self.modules():
            for name, p in module._parameters.items():
                if id(p) not in seen:
                    seen.add(id(p))
                    found[f"{path}.{name}" if path else name] = p
        for full, p in found.items():
            p.name = full
        return found

    def trainable(self) -> dict[str, Parameter]:
        """The parameters that are not frozen."""
        return {path: p for path, p in self.parameters().items() if not p.frozen}

    def init(self, seed: int | None = None) -> Module:
        """Draw the parameters that have no values yet.

        Parameters
        ----------
        seed
            Each parameter is a random stream of its own, named by its path. None draws a seed
            from the operating system.
        """
        chosen = backend.draw_seed() if seed is None else seed
        for path, p in self.parameters().items():
            if not p.drawn:
                p.draw(chosen, path)
        for path, module in self.modules():
            object.__setattr__(module, "_stream", (chosen, path))
        return self

    def copy(self) -> Module:
        """An independent module with the same values."""
        self.parameters()
        return copy.deepcopy(self)

    def assign(self, other: Module, tau: float = 1.0) -> Module:
        """Move every parameter towards that of `other`: ``w = (1 - tau) w + tau w'``.

        Parameters
        ----------
        other
            A module with the same parameters.
        tau
            1 copies; less gives the slowly moving target networks of reinforcement learning.
        """
        mine, theirs = self.parameters(), other.parameters()
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())
            raise UsageError(f"assign: parameters {odd} are in one of the two modules only")
        for path, p in mine.items():
            if tau == 1.0:
                p.data = theirs[path].data.copy()
            else:
                p.data = p.data + p.dtype.type(tau) * (theirs[path].data - p.data)
        return self

    def freeze(self, frozen: bool = True) -> Module:
        """Keep the parameters as they are in training; ``freeze(False)`` undoes it."""
        for p in self._own_parameters():
            p.frozen = frozen
        return self

    def train(self, training: bool = True) -> Module:
        """Switch to training, where dropout is active."""
        for _, module in self.modules():
            object.__setattr__(module, "training", training)
        return self

    def eval(self) -> Module:
        """Switch to prediction."""
        return self.train(False)

    def summary(self) -> str:
        """A table of layers, parameter shapes and counts."""
        rows = [(path, str(p.shape), p.size) for path, p in self.parameters().items()]
        rows.append(("total", "", sum(n for _, _, n in rows)))
        widths = [max(len(str(r[i])) for r in rows) for i in range(3)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {n:>{widths[2]}}" for a, b, n in rows
        )

    def config(self) -> dict[str, Any] | None:
        """What rebuilds the module (`from_config`), or None for a module of a user's own."""
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        for name, value in self.__dict__.items():
            if name not in ("_children", "_parameters"):
                setattr(clone, name, copy.deepcopy(value, memo))
        return clone


class Dense(Module):
    """``f(x W^T + b)``.

    Parameters
    ----------
    n_in, n_out
        Widths.
    activation
        Name of the non-linearity, or None.
    bias
        Whether there is a b.
    init
        ``"auto"``: uniform with Glorot's limit ``sqrt(6 / (n_in + n_out))``, or He's
        ``sqrt(6 / n_in)`` before a rectifier; ``"zeros"``; a number: that limit; or an array.
        Biases start at 0.
    dtype
        float32 or float64.
    param
        Parameter of the non-linearity (slope of leaky_relu, alpha of elu).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        activation: str | None = None,
        *,
        bias: bool = True,
        init: str | float | ArrayLike = "auto",
        dtype: DTypeLike = "float32",
        param: float | None = None,
    ) -> None:
        for name, n in (("n_in", n_in), ("n_out", n_out)):
            if not isinstance(n, int | np.integer) or n < 1:
                raise UsageError(f"Dense: expected {name} from 1 up, got {n!r}")
        if activation is not None and activation not in reference.ACTIVATIONS:
            known = ", ".join(sorted(reference.ACTIVATIONS))
            raise UsageError(f"Dense: expected activation {known}, or None, got {activation!r}")
        self.n_in, self.n_out = int(n_in), int(n_out)
        self.activation, self.param = activation, param
        limit, value = 0.0, None
        if isinstance(init, str):
            if init not in ("auto", "zeros"):
                raise UsageError(f"Dense: init is 'auto', 'zeros', a limit or values, got {init!r}")
            if init == "auto":
                fan = n_in if activation in _RECTIFIERS else n_in + n_out
                limit = math.sqrt(6.0 / fan)
        elif isinstance(init, int | float):
            limit = float(init)
        else:
            value = init
        self.weight = Parameter((self.n_out, self.n_in), limit, dtype, value)
        self.bias = Parameter((self.n_out,), 0.0, dtype) if bias else None

    def forward(self, x: Any) -> Tensor:
        t = _as_input(x, self.weight.dtype)
        if t.ndim < 2 or t.shape[-1] != self.n_in:
            hint = ": use x[None]" if t.shape == (self.n_in,) else ""
            label = (self.weight.name or "weight").removesuffix("weight").rstrip(".") or "layer"
            raise ShapeError(f"Dense {label!r} expects (batch, {self.n_in}), got {t.shape}{hint}")
        return functions.dense(t, self.weight, self.bias, self.activation, self.param)

    def config(self) -> dict[str, Any]:
        return {
            "class": "Dense",
            "n_in": self.n_in,
            "n_out": self.n_out,
            "activation": self.activation,
            "bias": self.bias is not None,
            "dtype": str(self.weight.dtype),
            "param": self.param,
        }


class Embedding(Module):
    """A table of vectors looked up by integer: ids (B, W) -> (B, W, dim).

    Parameters
    ----------
    n
        Rows of the table.
    dim
        Width of a vector.
    sparse
        Update only the rows that a minibatch touches (state is lazy: an untouched row neither
        decays nor moves). Otherwise the gradient is a whole table.
    init
        Limit of the uniform draw, ``"auto"`` for ``sqrt(3 / dim)`` (vectors of about unit
        length), or an array (n, dim).
    dtype
        float32 or float64.
    """

    def __init__(
        self,
        n: int,
        dim: int,
        *,
        sparse: bool = True,
        init: str | float | ArrayLike = "auto",
        dtype: DTypeLike = "float32",
    ) -> None:
        if n < 1 or dim < 1:
            raise UsageError(f"Embedding: expected n and dim from 1 up, got {n} and {dim}")
        self.n, self.dim, self.sparse = int(n), int(dim), bool(sparse)
        limit, value = math.sqrt(3.0 / dim), None
        if isinstance(init, int | float):
            limit = float(init)
        elif not isinstance(init, str):
            value = init
        elif init != "auto":
            raise UsageError(f"Embedding: init is 'auto', a limit or values, got {init!r}")
        self.weight = Parameter((self.n, self.dim), limit, dtype, value)

    def forward(self, ids: Any) -> Tensor:
        t = functions.as_tensor(ids)
        if not np.issubdtype(t.dtype, np.integer):
            raise DtypeError(f"Embedding: expected integer ids, got {t.dtype}")
        table: Tensor = self.weight
        if not self.sparse:
            table = graph.apply("copy", (table,))  # a node between: the gradient becomes dense
        return functions.take(table, t)

    def config(self) -> dict[str, Any]:
        return {
            "class": "Embedding",
            "n": self.n,
            "dim": self.dim,
            "sparse": self.sparse,
            "dtype": str(self.weight.dtype),
        }


class Flatten(Module):
    """(B, ...) -> (B, n): the concatenation of a window's vectors."""

    def forward(self, x: Any) -> Tensor:
        t = functions.as_tensor(x)
        return functions.reshape(t, (t.shape[0], math.prod(t.shape[1:])))

    def config(self) -> dict[str, Any]:
        return {"class": "Flatten"}


class Dropout(Module):
    """In training, zero each element with probability `rate` and scale the rest by 1/(1-rate).

    Parameters
    ----------
    rate
        Probability in [0, 1).
    """

    def __init__(self, rate: float = 0.5) -> None:
        if not 0.0 <= rate < 1.0:
            raise UsageError(f"Dropout: expected a rate in [0, 1), got {rate!r}")
        self.rate = float(rate)
        self._calls = 0

    def forward(self, x: Any) -> Tensor:
        t = functions.as_tensor(x)
        if not self.training or self.rate == 0.0:
            return t
        seed, path = self._stream or (backend.draw_seed(), "")
        step = current_step()
        if step is None:  # an eager call outside a Trainer: every call is a draw of its own
            step = Tensor(np.asarray(self._calls, np.int64))
            object.__setattr__(self, "_calls", self._calls + 1)
        return functions.dropout(t, self.rate, backend.stream_key(seed, f"{path}/dropout"), step)

    def config(self) -> dict[str, Any]:
        return {"class": "Dropout", "rate": self.rate}


class LayerNorm(Module):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` along the last axis (Ba et al., 2016).

    Parameters
    ----------
    n
        Width of the last axis.
    eps
        Added to the variance.
    dtype
        float32 or float64.
    """

    def __init__(self, n: int, *, eps: float = 1e-5, dtype: DTypeLike = "float32") -> None:
        if n < 1:
            raise UsageError(f"LayerNorm: expected n from 1 up, got {n}")
        self.n, self.eps = int(n), float(eps)
        self.weight = Parameter((self.n,), 0.0, dtype, offset=1.0)
        self.bias = Parameter((self.n,), 0.0, dtype)

    def forward(self, x: Any) -> Tensor:
        t = _as_input(x, self.weight.dtype)
        if not t.ndim or t.shape[-1] != self.n:
            raise ShapeError(f"LayerNorm expects (..., {self.n}), got {t.shape}")
        centred = t - functions.mean(t, axis=-1, keepdims=True)
        spread = functions.sqrt(
            functions.mean(functions.square(centred), axis=-1, keepdims=True) + self.eps
        )
        return centred / spread * self.weight + self.bias

    def config(self) -> dict[str, Any]:
        dtype = str(self.weight.dtype)
        return {"class": "LayerNorm", "n": self.n, "eps": self.eps, "dtype": dtype}


class Sequential(Module):
    """Layers one after the other.

    Parameters
    ----------
    *layers
        Modules, or functions of ops such as ``cr.tanh``.
    """

    def __init__(self, *layers: Any) -> None:
        self.layers = tuple(layers)
        for i, layer in enumerate(layers):
            if isinstance(layer, Module):
                self._children[str(i)] = layer
            elif not callable(layer):
                raise UsageError(f"Sequential: layer {i} is no module: {layer!r}")

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    def __len__(self) -> int:
        return len(self.layers)

    def config(self) -> dict[str, Any] | None:
        configs = [m.config() if isinstance(m, Module) else None for m in self.layers]
        if any(c is None for c in configs):
            return None
        return {"class": "Sequential", "layers": configs}

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        clone = Sequential(*[copy.deepcopy(layer, memo) for layer in self.layers])
        memo[id(self)] = clone
        object.__setattr__(clone, "training", self.training)
        object.__setattr__(clone, "_stream", self._stream)
        return clone


def from_config(config: Mapping[str, Any]) -> Module:
    """A module of the library's layers from what `Module.config` gave."""
    options = {k: v for k, v in config.items() if k != "class"}
    if config["class"] == "Sequential":
        return Sequential(*[from_config(c) for c in options["layers"]])
    if config["class"] not in _LAYERS:
        raise UsageError(f"expected a layer of {sorted(_LAYERS)}, got {config['class']!r}")
    layer: Module = _LAYERS[config["class"]](**options)
    return layer


_LAYERS: dict[str, Any] = {c.__name__: c for c in (Dense, Embedding, Flatten, Dropout, LayerNorm)}


class _Step(threading.local):
    """The step counter that Dropout draws by, while a Trainer traces a model."""

    current: Tensor | None = None


_step = _Step()


def current_step() -> Tensor | None:
    """The step counter of the Trainer that is at work, or None."""
    return _step.current


def set_current_step(step: Tensor | None) -> None:
    """Set the step counter; for the Trainer."""
    _step.current = step


def _as_input(x: Any, dtype: np.dtype[Any]) -> Tensor:
    t = functions.as_tensor(x)
    if not np.issubdtype(t.dtype, np.floating):
        return functions.cast(t, dtype)
    if not isinstance(x, Tensor) and t.dtype != dtype:
        return functions.cast(t, dtype)
    return t
