"""Bridges to PyTorch: a whole step, or a whole network, in one call.

`accelerate` trains a `torch.nn` network with chainrule's compiled step, on the memory of torch's
own parameters and optimizer state. `fuse` makes a multi-layer perceptron one node of autograd.
A bridge an op would cost more than the op: neither is finer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn as tnn
from torch.nn import functional as F

from .. import _core, backend, functions, losses, nn, optim
from ..errors import DtypeError, UsageError
from ..graph import Tensor
from ..trainer import History, Trainer

__all__ = ["Accelerated", "FusedMLP", "accelerate", "fuse"]

Array = NDArray[Any]

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}

# -- what of torch is known here -------------------------------------------------------------------


def _elu(layer: Any) -> tuple[str, float]:
    return "elu", float(layer.alpha)


# A torch non-linearity -> chainrule's row and its parameter, or a reason why not.
_ACTIVATIONS: dict[type, Callable[[Any], tuple[str, float | None] | str]] = {
    tnn.Tanh: lambda m: ("tanh", None),
    tnn.ReLU: lambda m: ("relu", None),
    tnn.Sigmoid: lambda m: ("sigmoid", None),
    tnn.SiLU: lambda m: ("swish", None),
    tnn.GELU: lambda m: ("gelu_tanh" if m.approximate == "tanh" else "gelu", None),
    tnn.LeakyReLU: lambda m: ("leaky_relu", float(m.negative_slope)),
    tnn.ELU: _elu,
    tnn.Softplus: lambda m: ("softplus", None) if m.beta == 1 else f"beta={m.beta}",
    tnn.Hardtanh: lambda m: (
        ("hard_tanh", None)
        if (m.min_val, m.max_val) == (-1, 1)
        else f"limits {m.min_val}, {m.max_val}"
    ),
}
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def _refuse_hooks(name: str, module: Any) -> None:
    if any(getattr(module, h, None) for h in _HOOKS):
        raise UsageError(f"layer {name!r}: has hooks, which a compiled step does not call")


def _unsupported(name: str, layer: Any, why: str = "") -> UsageError:
    return UsageError(
        f"layer {name!r} ({type(layer).__name__}{': ' + why if why else ''}) is not supported: "
        "expected Sequential, Linear, Embedding, Flatten, LayerNorm, Dropout, Identity or a "
        "non-linearity (" + ", ".join(c.__name__ for c in _ACTIVATIONS) + ")"
    )


def _activation(name: str, layer: Any) -> tuple[str, float | None] | None:
    """Row and parameter of a non-linearity; None for a layer of another kind."""
    if type(layer) not in _ACTIVATIONS:
        return None
    found = _ACTIVATIONS[type(layer)](layer)
    if isinstance(found, str):
        raise _unsupported(name, layer, found)
    return found


def _memory(name: str, tensor: Any, dtype: Any = None) -> Array:
    """The memory of a torch tensor as an array, which changes with it."""
    if tensor.device.type != "cpu":
        raise UsageError(f"{name}: is on {tensor.device}: move the module to the CPU")
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise UsageError(f"{name}: is not contiguous: assign p.data = p.data.contiguous()")
    if tensor.dtype not in _DTYPES or (dtype is not None and tensor.dtype != dtype):
        raise DtypeError(
            f"{name}: expected {dtype or 'float32 or float64'} as the other parameters, "
            f"got {tensor.dtype}"
        )
    array: Array = tensor.detach().numpy()
    return array


def _convert(name: str, layer: Any, lazy: bool, dtype: str) -> Any:
    """The chainrule layer of a torch layer; its parameters are still empty."""
    _refuse_hooks(name, layer)
    if type(layer) is tnn.Sequential:
        prefix = f"{name}." if name else ""
        return nn.Sequential(
            *[_convert(f"{prefix}{k}", m, lazy, dtype) for k, m in layer.named_children()]
        )
    if type(layer) is tnn.Linear:
        n_in, n_out, bias = layer.in_features, layer.out_features, layer.bias is not None
        return nn.Dense(n_in, n_out, bias=bias, init="zeros", dtype=dtype)
    if type(layer) is tnn.Embedding:
        for option in ("padding_idx", "max_norm", "scale_grad_by_freq"):
            if getattr(layer, option) is not None and getattr(layer, option) is not False:
                raise _unsupported(name, layer, f"{option}={getattr(layer, option)}")
        n, dim = layer.num_embeddings, layer.embedding_dim
        return nn.Embedding(n, dim, sparse=lazy or layer.sparse, init=0.0, dtype=dtype)
    if type(layer) is tnn.LayerNorm:
        if len(layer.normalized_shape) != 1 or layer.weight is None or layer.bias is None:
            raise _unsupported(name, layer, "needs one axis, a weight and a bias")
        return nn.LayerNorm(layer.normalized_shape[0], eps=layer.eps, dtype=dtype)
    if type(layer) is tnn.Dropout:
        return nn.Dropout(layer.p)
    if type(layer) is tnn.Flatten:
        if (layer.start_dim, layer.end_dim) != (1, -1):
            raise _unsupported(name, layer, "flattens other axes than all after the first")
        return nn.Flatten()
    if type(layer) is tnn.Identity:
        return lambda x: x
    found = _activation(name, layer)
    if found is None:
        raise _unsupported(name, layer)
    row, param = found
    if row == "gelu_tanh":
        return lambda x: functions.gelu(x, "tanh")
    function = getattr(functions, row)
    return function if param is None else lambda x: function(x, param)


def _convert_loss(loss: Any) -> Callable[[Any, Any], Any]:
    """chainrule's form of a torch loss; a function of chainrule ops stays what it is."""
    simple: dict[Any, Callable[[], Callable[[Any, Any], Any]]] = {
        F.cross_entropy: losses.SoftmaxCrossEntropy,
        F.mse_loss: losses.MeanSquaredError,
        F.l1_loss: losses.MeanAbsoluteError,
        F.binary_cross_entropy_with_logits: losses.Logistic,
        F.huber_loss: losses.Huber,
        F.smooth_l1_loss: losses.Huber,
    }
    if not isinstance(loss, tnn.Module):
        try:
            return simple[loss]() if loss in simple else loss
        except TypeError:  # a loss that cannot be hashed is none of torch's
            return loss
    what = type(loss).__name__
    if getattr(loss, "reduction", "mean") != "mean":
        raise UsageError(f"loss: {what} with reduction={loss.reduction!r}: expected 'mean'")
    for option in ("weight", "pos_weight"):
        if getattr(loss, option, None) is not None:
            raise UsageError(f"loss: {what} with {option} is not supported: use sample_weight")
    if getattr(loss, "label_smoothing", 0.0):
        raise UsageError(f"loss: {what} with label_smoothing is not supported")
    if type(loss) is tnn.SmoothL1Loss and loss.beta != 1.0:
        raise UsageError(f"loss: SmoothL1Loss with beta={loss.beta}: expected 1")
    made: dict[type, Callable[[], Callable[[Any, Any], Any]]] = {
        tnn.CrossEntropyLoss: losses.SoftmaxCrossEntropy,
        tnn.MSELoss: losses.MeanSquaredError,
        tnn.L1Loss: losses.MeanAbsoluteError,
        tnn.BCEWithLogitsLoss: losses.Logistic,
        tnn.HuberLoss: lambda: losses.Huber(loss.delta),
        tnn.SmoothL1Loss: losses.Huber,
    }
    if type(loss) not in made:
        known = ", ".join(c.__name__ for c in made)
        raise UsageError(
            f"loss: {what} is not supported: expected {known}, or a function of chainrule ops"
        )
    return made[type(loss)]()


_STATES = {
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
}


def _options(optimizer: Any) -> dict[str, Any]:
    """The options of a torch optimizer, the learning rate apart."""
    if type(optimizer) not in _STATES:
        known = ", ".join(c.__name__ for c in _STATES)
        raise UsageError(f"optimizer: expected {known}, got {type(optimizer).__name__}")
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    if any(g != groups[0] for g in groups):
        raise UsageError("optimizer: parameter groups with different options are not supported")
    options = groups[0]
    for name in ("amsgrad", "maximize", "dampening", "capturable", "differentiable"):
        if options.get(name):
            raise UsageError(f"optimizer: {name}={options[name]} is not supported")
    if type(optimizer) is torch.optim.Adam and options.get("decoupled_weight_decay"):
        raise UsageError("optimizer: Adam with decoupled_weight_decay: use AdamW")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise UsageError("optimizer: has hooks, which a compiled step does not call")
    known_names = ("momentum", "nesterov", "betas", "eps", "weight_decay")
    return {k: options[k] for k in known_names if k in options}


def _convert_optimizer(optimizer: Any, options: dict[str, Any]) -> optim.Optimizer:
    lr = float(optimizer.param_groups[0]["lr"])
    kind = type(optimizer).__name__
    made: optim.Optimizer = getattr(optim, kind)(lr, **options)
    return made


# -- a whole step ----------------------------------------------------------------------------------


def accelerate(
    module: Any, loss: Any, optimizer: Any, *, threads: int | None = None, seed: int | None = None
) -> Accelerated:
    """Train a torch network with chainrule's compiled step.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of Linear, Embedding, Flatten, LayerNorm, Dropout, Identity, non-linearities and further
        Sequentials, on the CPU, in float32 or float64.
    loss : torch loss or callable
        CrossEntropyLoss, MSELoss, L1Loss, BCEWithLogitsLoss, HuberLoss or SmoothL1Loss with mean
        reduction, their functional forms, or ``loss(outputs, targets)`` of chainrule ops.
    optimizer : torch.optim.SGD, Adam or AdamW
        Its state and its learning rate as they are at each call are used, and left where torch
        would have left them. Parameters that it does not hold, or with requires_grad=False, stay.
    threads : int, optional
        None lets the core choose. Results do not depend on it.
    seed : int, optional
        Of shuffling and dropout; None draws one. torch's own random numbers are not used.

    Returns
    -------
    Accelerated

    Raises
    ------
    UsageError, DtypeError
        Naming the layer, loss, option or parameter that is not supported.
    """
    return Accelerated(module, loss, optimizer, threads=threads, seed=seed)


class Accelerated:
    """What `accelerate` gives: training steps on a torch module's own memory.

    One thread at a time may use it. A call reads torch's tensors when it begins and has written
    them, after a whole step, when it ends, also by an error or Ctrl-C.
    """

    def __init__(
        self, module: Any, loss: Any, optimizer: Any, *, threads: int | None, seed: int | None
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self._loss, self._threads = _convert_loss(loss), threads
        self._seed = backend.draw_seed() if seed is None else int(seed)
        if type(module) is not tnn.Sequential:
            raise _unsupported("", module)
        named = dict(module.named_parameters(remove_duplicate=False))
        if len({id(p) for p in named.values()}) != len(named):
            raise UsageError("module: parameters that layers share are not supported")
        if not named:
            raise UsageError("module: has no parameters")
        if list(module.buffers()):
            raise UsageError("module: buffers are not supported")
        self._named = named
        self._trainer: Trainer | None = None
        self._options: dict[str, Any] | None = None
        self._seen: dict[str, tuple[int, ...]] = {}
        self._prepare()

    def _prepare(self) -> Trainer:
        """Take over torch's present options, parameters and state."""
        options = _options(self.optimizer)
        held = {id(p) for g in self.optimizer.param_groups for p in g["params"]}
        if held - {id(p) for p in self._named.values()}:
            raise UsageError("optimizer: holds parameters that are not the module's")
        if self._trainer is None or options != self._options:
            dtype = next(iter(self._named.values())).dtype
            if dtype not in _DTYPES:
                raise DtypeError(f"module: expected float32 or float64, got {dtype}")
            lazy = type(self.optimizer) is torch.optim.SGD and not (
                options["momentum"] or options["weight_decay"]
            )  # then a row without a gradient does not move in torch either
            model = _convert("", self.module, lazy, _DTYPES[dtype])
            own = model.parameters()  # in torch's order, by paths that may be others
            self._paths = dict(zip(self._named, own, strict=True))
            self._parameters = dict(zip(self._named, own.values(), strict=True))
            self._seen.clear()
            self._bind(held)
            self._trainer = Trainer(
                model,
                self._loss,
                _convert_optimizer(self.optimizer, options),
                seed=self._seed,
                threads=self._threads,
            )
            self._options = options
        else:
            for name, module in self.module.named_modules():
                _refuse_hooks(name, module)
        self._bind(held)
        self._bind_states(self._trainer.optimizer)
        lr = float(self.optimizer.param_groups[0]["lr"])
        if lr != self._trainer.optimizer.lr:
            self._trainer.optimizer.lr = lr
        return self._trainer

    def _bind(self, held: set[int]) -> None:
        first = None
        for path, p in self._named.items():
            first = first or p.dtype
            own = self._parameters[path]
            own.frozen = not (p.requires_grad and id(p) in held)
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise UsageError(f"parameter {path!r}: has hooks, which are not called")
            self._point(own, f"parameter {path!r}", p, first)

    def _point(self, own: Tensor, name: str, tensor: Any, dtype: Any) -> None:
        """Let a chainrule tensor stand on torch's memory."""
        key = (tensor.data_ptr(), *tensor.shape, *tensor.stride())
        if self._seen.get(name) != key or tensor.dtype != dtype or own._value is None:
            array = _memory(name, tensor, dtype)
            if array.shape != own.shape:
                raise UsageError(f"{name}: expected shape {own.shape}, got {array.shape}")
            own._value = array
            self._seen[name] = key

    def _bind_states(self, own: optim.Optimizer) -> None:
        """Let the optimizer's states stand on torch's, made where torch has none yet."""
        steps: dict[str, int] = {}
        for path, p in self._named.items():
            if self._parameters[path].frozen or not own.n_states:
                continue
            state = self.optimizer.state[p]
            names = _STATES[type(self.optimizer)]
            if "step" not in state and len(names) == 2:
                state["step"] = torch.zeros((), dtype=torch.float32)
            for name in names:
                if state.get(name) is None:
                    state[name] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            if own.row != "sgd" and len(names) == 2:
                steps[path] = int(state["step"])
            mine = own.states.setdefault(self._paths[path], [])
            if not mine:
                mine += [Tensor(np.zeros(p.shape, self._parameters[path].dtype)) for _ in names]
            for i, name in enumerate(names):
                self._point(mine[i], f"state {path!r} {name}", state[name], p.dtype)
        if len(set(steps.values())) > 1:
            raise UsageError(f"optimizer: its parameters differ in their steps: {steps}")
        at = next(iter(steps.values()), own.steps)
        if at != own.steps:
            own.steps = 0
            if isinstance(own, optim.Adam):
                own._powers = (1.0, 1.0)
            own.advance(at)

    @contextmanager
    def _torch(self) -> Iterator[Trainer]:
        """Own torch's tensors inside a ``with`` block."""
        trainer = self._prepare()
        before = trainer.optimizer.steps
        try:
            yield trainer
        finally:
            done = trainer.optimizer.steps - before
            written = []
            for path, p in self._named.items():
                if self._parameters[path].frozen:
                    continue
                written.append(p)
                state = self.optimizer.state.get(p, {}) if trainer.optimizer.n_states else {}
                written += [v for k, v in state.items() if k != "step" and v is not None]
                if done and "step" in state:
                    state["step"] += done
            torch.autograd.graph.increment_version(written)
            if done:
                self.optimizer._opt_called = True  # what a scheduler looks at before it warns

    def fit(self, x: Any, y: Any, *, epochs: int, batch_size: int, **options: Any) -> History:
        """Train for some epochs.

        Parameters
        ----------
        x, y
            Tensors or arrays, or tuples or dicts of them.
        epochs, batch_size, **options
            As for `Trainer.fit`.

        Returns
        -------
        History
        """
        with self._torch() as trainer:
            return trainer.fit(
                _arrays(x), _arrays(y), epochs=epochs, batch_size=batch_size, **options
            )

    def step(self, x: Any, y: Any, *, sample_weight: Any = None) -> float:
        """One step on one minibatch.

        Parameters
        ----------
        x, y
            Tensors or arrays.
        sample_weight
            One number from 0 up for each row.

        Returns
        -------
        float
            The loss before the update.
        """
        with self._torch() as trainer:
            return trainer.step(_arrays(x), _arrays(y), sample_weight=_arrays(sample_weight))

    def begin_step(self, x: Any) -> tuple[Any, Callable[..., Any]]:
        """The first half of a step whose gradient is made elsewhere.

        Parameters
        ----------
        x
            Inputs of one minibatch, tensors or arrays.

        Returns
        -------
        outputs
            The module's outputs in training mode, as tensors that stand outside autograd.
        finish
            ``finish(*upstream, update=True) -> dx``, to be called once, with the derivative of
            the loss by each output: goes backward, updates, and gives the derivative by x.
            Gradients are not written to torch, so that `update` must be True.
        """
        with self._torch() as trainer:
            outputs, second = trainer.begin_step(_arrays(x))

        def finish(*upstream: Any, update: bool = True) -> Any:
            if not update:
                raise UsageError("finish: update=False would leave the gradients out of torch")
            with self._torch():
                return _tensors(second(*[_arrays(u) for u in upstream]))

        return _tensors(outputs), finish


def _arrays(value: Any) -> Any:
    """Tensors as arrays on the same memory."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise UsageError(f"data: expected tensors on the CPU, got one on {value.device}")
        return value.detach().numpy()
    if isinstance(value, tuple):
        return tuple(_arrays(v) for v in value)
    if isinstance(value, dict):
        return {k: _arrays(v) for k, v in value.items()}
    return value


def _tensors(value: Any) -> Any:
    """Arrays as tensors on the same memory."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, tuple):
        return tuple(_tensors(v) for v in value)
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    return value


# -- a whole network as one node of autograd -------------------------------------------------------

_DENSE, _MATMUL, _MATMUL_DACT, _SUM = (
    backend.OPCODES[name] for name in ("dense", "matmul", "matmul_dact", "sum")
)
_ROWS = backend.ACTIVATION_INDEX
_RESIDUALS = [residual for _, residual in _core.activation_rows()]
_FORWARD = [backend.OPCODES[name] for name in _ROWS]
_BACKWARD = [backend.OPCODES[f"d{name}"] for name in _ROWS]


def _forward(
    x: Array, params: list[Array], rows: list[int], slopes: list[float], threads: int
) -> list[Array]:
    """Outputs of the layers, the last first; then each z that a derivative is computed from."""
    h, outputs, residuals = x, [], []
    for i, row in enumerate(rows):
        w, b = params[2 * i], params[2 * i + 1]
        y = np.empty((len(h), len(w)), x.dtype)
        if row >= 0 and _RESIDUALS[row] == "z":
            z = np.empty_like(y)
            _core.run(_DENSE, (h, w, b), (z,), (-1,), (0.0,), threads)
            _core.run(_FORWARD[row], (z,), (y,), (), (slopes[i],), threads)
            residuals.append(z)
        else:
            _core.run(_DENSE, (h, w, b), (y,), (row,), (slopes[i],), threads)
        outputs.append(y)
        h = y
    return [*reversed(outputs), *residuals]


def _backward(
    g: Array,
    x: Array,
    params: list[Array],
    saved: list[Array],
    rows: list[int],
    slopes: list[float],
    threads: int,
) -> list[Array]:
    """dx and the gradients of the parameters."""
    n = len(rows)
    outputs = [x, *reversed(saved[:n])]
    rest = saved[n:]
    residuals = []  # r of each layer's non-linearity
    for i, row in enumerate(rows):
        residuals.append(rest.pop(0) if row >= 0 and _RESIDUALS[row] == "z" else outputs[i + 1])
    delta, grads = g, []
    if rows[-1] >= 0:
        delta = np.empty_like(g)
        _core.run(_BACKWARD[rows[-1]], (g, residuals[-1]), (delta,), (), (slopes[-1],), threads)
    for i in range(n - 1, -1, -1):
        w = params[2 * i]
        dw, db = np.empty(w.shape, x.dtype), np.empty(len(w), x.dtype)
        _core.run(_MATMUL, (delta, outputs[i]), (dw,), (1, 0), (), threads)
        _core.run(_SUM, (delta,), (db,), (0,), (), threads)
        grads += [db, dw]
        dx = np.empty((len(x), w.shape[1]), x.dtype)
        if i and rows[i - 1] >= 0:
            operands, row = (delta, w, residuals[i - 1]), rows[i - 1]
            _core.run(_MATMUL_DACT, operands, (dx,), (row,), (slopes[i - 1],), threads)
        else:
            _core.run(_MATMUL, (delta, w), (dx,), (0, 0), (), threads)
        delta = dx
    return [delta, *reversed(grads)]


def _numpy(tensors: Any) -> list[Array]:
    return [t.detach().numpy() for t in tensors]


class _Node(torch.autograd.Function):
    """The network in eager mode."""

    @staticmethod
    def forward(ctx: Any, plan: Any, arrays: Any, x: Any, *params: Any) -> Any:
        saved = _forward(*arrays, *plan)
        output = torch.from_numpy(saved[0])
        ctx.plan, ctx.arrays, ctx.made = plan, arrays, saved
        ctx.save_for_backward(x, *params, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        _ = ctx.saved_tensors  # raises where one has changed since
        (x, params), (rows, slopes, threads) = ctx.arrays, ctx.plan
        upstream = g.contiguous().numpy()
        grads = _backward(upstream, x, params, ctx.made, rows, slopes, threads)
        return (None, None, *map(torch.from_numpy, grads))


# The same as registered ops, which torch.compile can hold in its graph.


@torch.library.custom_op("chainrule::mlp", mutates_args=())
def _mlp(
    x: torch.Tensor, params: list[torch.Tensor], rows: list[int], slopes: list[float], threads: int
) -> list[torch.Tensor]:
    made = _forward(x.detach().numpy(), _numpy(params), rows, slopes, threads)
    return [torch.from_numpy(a) for a in made]


@_mlp.register_fake
def _(x: Any, params: Any, rows: Any, slopes: Any, threads: Any) -> Any:
    shapes = [params[2 * i].shape[0] for i in range(len(rows))]
    made = [x.new_empty((x.shape[0], n)) for n in reversed(shapes)]
    z = [i for i, row in enumerate(rows) if row >= 0 and _RESIDUALS[row] == "z"]
    return made + [x.new_empty((x.shape[0], shapes[i])) for i in z]


@torch.library.custom_op("chainrule::mlp_backward", mutates_args=())
def _mlp_backward(
    g: torch.Tensor,
    x: torch.Tensor,
    params: list[torch.Tensor],
    saved: list[torch.Tensor],
    rows: list[int],
    slopes: list[float],
    threads: int,
) -> list[torch.Tensor]:
    upstream, inputs = _numpy((g, x))
    made = _backward(upstream, inputs, _numpy(params), _numpy(saved), rows, slopes, threads)
    return [torch.from_numpy(a) for a in made]


@_mlp_backward.register_fake
def _(g: Any, x: Any, params: Any, saved: Any, rows: Any, slopes: Any, threads: Any) -> Any:
    return [torch.empty_like(x), *[torch.empty_like(p) for p in params]]


def _mlp_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, params, rows, slopes, threads = inputs
    ctx.plan, ctx.n = (rows, slopes, threads), len(params)
    ctx.save_for_backward(x, *params, *output)


def _mlp_vjp(ctx: Any, grads: Any) -> Any:
    x, *rest = ctx.saved_tensors
    params, saved = rest[: ctx.n], rest[ctx.n :]
    dx, *dp = _mlp_backward(grads[0].contiguous(), x, params, saved, *ctx.plan)
    return dx, dp, None, None, None


_mlp.register_autograd(_mlp_vjp, setup_context=_mlp_setup)


class FusedMLP(tnn.Module):
    """What `fuse` gives: the layers of a Sequential as one node of autograd.

    Its parameters are those of the Sequential, under the same names.
    """

    def __init__(self, layers: Any, threads: int | None) -> None:
        super().__init__()
        self._layers: list[Any] = []
        self._rows: list[int] = []
        self._slopes: list[float] = []
        self._threads = backend.check_threads(threads)
        self._key: tuple[int, ...] = ()  # where the parameters' memory is
        self._arrays: list[Array] = []
        if type(layers) is not tnn.Sequential:
            raise UsageError(f"fuse: expected a Sequential, got {type(layers).__name__}")
        _refuse_hooks("", layers)
        for name, layer in layers.named_children():
            _refuse_hooks(name, layer)
            found = _activation(name, layer)
            if type(layer) is tnn.Linear and layer.bias is not None:
                self.add_module(name, layer)
                self._layers.append(layer)
                self._rows.append(-1)
                self._slopes.append(0.0)
            elif found is not None and self._rows and self._rows[-1] < 0:
                self._rows[-1] = _ROWS[found[0]]
                self._slopes[-1] = 0.0 if found[1] is None else found[1]
            else:
                raise UsageError(
                    f"fuse: layer {name!r} ({type(layer).__name__}): expected Linear layers with "
                    "a bias, each followed by at most one non-linearity"
                )
        if not self._rows:
            raise UsageError("fuse: the Sequential has no Linear layer")

    def forward(self, x: Any) -> Any:
        """Outputs (batch, n_out) of x (batch, n_in)."""
        params = [p for m in self._layers for p in m._parameters.values()]
        if torch.compiler.is_compiling():
            return _mlp(x.contiguous(), params, self._rows, self._slopes, self._threads)[0]
        if x.ndim != 2:
            raise UsageError(f"x: expected (batch, {params[0].shape[1]}), got {tuple(x.shape)}")
        key = tuple([p.data_ptr() for p in params])
        if key != self._key:
            self._arrays = [_memory("a parameter", p, params[0].dtype) for p in params]
            self._key = key
        x = x.contiguous()
        plan = (self._rows, self._slopes, self._threads)
        arrays = (_memory("x", x, params[0].dtype), self._arrays)
        return _Node.apply(plan, arrays, x, *params)


def fuse(layers: Any, *, threads: int | None = None) -> FusedMLP:
    """One node of autograd for a whole multi-layer perceptron; any torch loss may follow.

    Parameters
    ----------
    layers : torch.nn.Sequential
        Linear layers with a bias, each followed by at most one non-linearity.
    threads : int, optional
        None lets the core choose.

    Returns
    -------
    FusedMLP
        A module that shares the parameters of `layers`. Second derivatives are not there.
    """
    return FusedMLP(layers, threads)
