"""Optimizers and learning-rate schedules.

An optimizer knows three things: the update row it uses (csrc/update.h), the state that the row
keeps for each parameter, and the coefficients of a step, computed ahead in float64. The same row
runs in a compiled step and in `Optimizer.step` after an eager backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import backend, functions, graph, schedules
from .errors import UsageError
from .graph import RowSums, Spec, Tensor
from .schedules import Schedule

if TYPE_CHECKING:
    from .nn import Module

Array = NDArray[Any]

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSProp", "schedules"]

# Positions in the coefficient vector of one step (csrc/functions.h).
STEP, DECAY, BETA1, ONE_BETA1, BETA2, ONE_BETA2, EPS, DENOM, CLIP = range(9)
N_COEFFICIENTS = 9
_AHEAD = 64  # steps


class Optimizer:
    """Base of the optimizers.

    Parameters
    ----------
    lr
        Learning rate.
    weight_decay
        L2 penalty's factor, added to the gradient (AdamW: decoupled from it).
    clip_norm
        Scale all gradients together so that their joint Euclidean norm is at most this.
    clip_value
        Clip each element of a gradient to [-clip_value, clip_value].
    schedule
        Factor of the learning rate as a function of the step number from 0; see `schedules`.
    groups
        Other options for some of the parameters: ``{"*.bias": {"weight_decay": 0.0}, "pi.*":
        {"lr": 1e-4}}``. The first pattern that matches a parameter's path counts. The schedule,
        and a change of `lr`, scale the learning rates of all groups alike.
    """

    row: str
    n_states: int

    def __init__(
        self,
        lr: float,
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        schedule: Schedule | None = None,
        groups: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self._lr = self._first_lr = _positive("lr", lr)
        self.weight_decay = _positive("weight_decay", weight_decay)
        self.clip_norm = None if clip_norm is None else _positive("clip_norm", clip_norm)
        self.clip_value = None if clip_value is None else _positive("clip_value", clip_value)
        self.schedule = schedule
        self.groups = {pattern: _group(pattern, g) for pattern, g in (groups or {}).items()}
        self.steps = 0
        self.states: dict[str, list[Tensor]] = {}
        self._owners: dict[str, Tensor] = {}  # whose state it is
        self._ahead: tuple[int, Array] | None = None  # first step, and the rows from there on

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name not in ("steps", "_powers", "_ahead"):
            object.__setattr__(self, "_ahead", None)

    @property
    def lr(self) -> float:
        """The learning rate before the schedule's factor; may be set between steps."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = _positive("lr", value)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if self.schedule is None:
            return self._lr
        factor = float(self.schedule(step))
        if not math.isfinite(factor):
            raise UsageError(f"schedule: expected a finite factor at step {step}, got {factor}")
        return self._lr * factor

    @property
    def n_coefficients(self) -> int:
        """Numbers of one step: a vector for the parameters of no group, and one for each group."""
        return N_COEFFICIENTS * (1 + len(self.groups))

    def coefficients(self, steps: int) -> Array:
        """The coefficients of the coming steps, float64 (steps, n_coefficients)."""
        table = np.zeros((steps, 1 + len(self.groups), N_COEFFICIENTS))
        if self.schedule is None:
            table[:, 0, STEP] = self._lr
        else:
            table[:, 0, STEP] = [self.rate(self.steps + i) for i in range(steps)]
        table[:, :, DECAY] = self.weight_decay
        table[:, :, DENOM] = 1.0
        table[:, :, CLIP] = math.inf if self.clip_value is None else self.clip_value
        for i, group in enumerate(self.groups.values(), start=1):
            table[:, i, STEP] = table[:, 0, STEP]
            if "lr" in group:  # 1.0 where neither a schedule nor a new lr has scaled it
                scale = table[:, 0, STEP] / self._first_lr if self._first_lr else 1.0
                table[:, i, STEP] = group["lr"] * scale
            table[:, i, DECAY] = group.get("weight_decay", self.weight_decay)
        self._fill(table)
        return table.reshape(steps, -1)

    def coming(self, steps: int) -> Array:
        """The number and the coefficients of each of the coming steps, one row a step.

        Kept for a while where there is no schedule, which may not be asked too far ahead.
        """
        if (
            self._ahead is None
            or not 0 <= self.steps - self._ahead[0] <= len(self._ahead[1]) - steps
        ):
            n = max(steps, _AHEAD) if self.schedule is None else steps
            table = np.empty((n, 1 + self.n_coefficients))
            table[:, 0] = np.arange(self.steps, self.steps + n)
            table[:, 1:] = self.coefficients(n)
            self._ahead = (self.steps, table)
        at = self.steps - self._ahead[0]
        return self._ahead[1][at : at + steps]

    def _column(self, path: str) -> int:
        """Where the coefficients of a parameter begin."""
        for i, pattern in enumerate(self.groups, start=1):
            if fnmatchcase(path, pattern):
                return i * N_COEFFICIENTS
        return 0

    def _fill(self, table: Array) -> None:
        """Write what the row needs beyond the step size into (steps, groups, 9)."""

    def advance(self, steps: int) -> None:
        """Count steps that were done."""
        self.steps += steps

    def init(self, parameters: Mapping[str, Tensor]) -> None:
        """Make zero state for the parameters that have none yet."""
        for path, p in parameters.items():
            if self.n_states and self._owners.setdefault(path, p) is not p:
                raise UsageError(
                    f"optimizer: its state of {path!r} belongs to another model; "
                    "make an optimizer for each model"
                )
            self.states.setdefault(
                path,
                [
                    Tensor(np.zeros(p.shape, p.dtype), name=f"{path}.{self.row}{i}")
                    for i in range(self.n_states)
                ],
            )

    def check_groups(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise where a group's pattern matches none of the parameters."""
        for pattern in self.groups:
            if not any(fnmatchcase(path, pattern) for path in parameters):
                raise UsageError(
                    f"groups: {pattern!r} matches no parameter; there are {', '.join(parameters)}"
                )

    def trace(
        self, parameters: Mapping[str, Tensor], grads: Mapping[str, Tensor], column: int
    ) -> list[Tensor]:
        """Record the updates of one step; called while tracing.

        The coefficients are read from the scalars of the step, from `column` on.
        """
        spec = Spec((N_COEFFICIENTS,), np.dtype(np.float64))
        columns = sorted({self._column(path) for path in grads})
        coefs = {c: Tensor(spec, attrs={"column": column + c}) for c in columns}
        grads = self._clipped(grads)
        roots = []
        for path, grad in grads.items():
            coef = coefs[self._column(path)]
            p, states = parameters[path], self.states[path]
            if isinstance(grad._value, RowSums):
                roots.append(
                    graph.apply("update_rows", (grad, p, *states, coef), {"update": self.row})
                )
            else:
                roots.append(graph.apply("update", (p, grad, *states, coef), {"update": self.row}))
        return roots

    def _clipped(self, grads: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.clip_norm is None or not grads:
            return grads
        total: Tensor | None = None
        for g in grads.values():
            part = graph.apply("sum_squares", (graph.row_values(g),))
            total = part if total is None else total + part
        assert total is not None
        # min(1, c / norm), with 1 where the norm is 0
        scale = functions.minimum(
            1.0, self.clip_norm / functions.maximum(functions.sqrt(total), 1e-300)
        )
        return {path: _rescaled(g, scale) for path, g in grads.items()}

    def step(self, module: Module) -> None:
        """Update a module's parameters from their `.grad` and clear it: for loops of your own.

        Parameters
        ----------
        module
            Its parameters that are not frozen and have a gradient are updated.
        """
        parameters = {k: p for k, p in module.trainable().items() if p._grad is not None}
        if not parameters:
            raise UsageError("optimizer.step: no parameter has a gradient; call backward() first")
        self.init(parameters)
        table = self.coefficients(1)[0]
        with graph.no_grad():
            grads = self._clipped({k: Tensor(p._grad) for k, p in parameters.items()})
        for path, p in parameters.items():
            grad = grads[path]._value
            first = self._column(path)
            coef = table[first : first + N_COEFFICIENTS]
            states = [s.data for s in self.states[path]]
            attrs = {"update": self.row}
            targets = [p.data, *states]
            if isinstance(grad, RowSums):
                operands = [grad.rows, grad.sums, p.data, *states, coef]
                backend.current().update("update_rows", operands, attrs, targets)
            else:
                operands = [p.data, grad, *states, coef]
                backend.current().update("update", operands, attrs, targets)
            p.data = targets[0]  # the same array: a graph that still needs the old values is told
            p.grad = None
        self.advance(1)

    def config(self) -> dict[str, Any]:
        """The counters that a checkpoint keeps."""
        return {"class": type(self).__name__, "lr": self._lr, "steps": self.steps}

    def restore(self, config: Mapping[str, Any]) -> None:
        """Set the counters from a checkpoint."""
        if config["class"] != type(self).__name__:
            raise UsageError(
                f"optimizer: the checkpoint was made with {config['class']}, "
                f"got {type(self).__name__}"
            )
        self._lr = config["lr"]
        self.advance(config["steps"] - self.steps)


class SGD(Optimizer):
    """Stochastic gradient descent, ``w -= lr g``; with momentum ``v = mu v + g; w -= lr v``.

    Parameters
    ----------
    lr
        Learning rate.
    momentum
        mu; 0 for none.
    nesterov
        Nesterov's form of the momentum (as in PyTorch).
    **options
        See `Optimizer`.
    """

    def __init__(
        self, lr: float, momentum: float = 0.0, nesterov: bool = False, **options: Any
    ) -> None:
        super().__init__(lr, **options)
        self.momentum = _fraction("momentum", momentum)
        if nesterov and not momentum:
            raise UsageError("SGD: nesterov needs a momentum above 0")
        self.row = "nesterov" if nesterov else "momentum" if momentum else "sgd"
        self.n_states = 1 if momentum else 0

    def _fill(self, table: Array) -> None:
        table[:, :, BETA1] = self.momentum


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), eps added after the bias correction as in PyTorch.

    Parameters
    ----------
    lr
        Learning rate.
    betas
        Decay of the first and the second moment.
    eps
        Added to the root of the second moment.
    **options
        See `Optimizer`.
    """

    row = "adam"
    n_states = 2

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Any,
    ) -> None:
        super().__init__(lr, **options)
        self.betas = (_fraction("betas[0]", betas[0]), _fraction("betas[1]", betas[1]))
        self.eps = _positive("eps", eps)
        self._powers = (1.0, 1.0)  # beta^t as running products: no libm result reaches a weight

    def _fill(self, table: Array) -> None:
        beta1, beta2 = self.betas
        table[:, :, BETA1], table[:, :, ONE_BETA1] = beta1, 1.0 - beta1
        table[:, :, BETA2], table[:, :, ONE_BETA2] = beta2, 1.0 - beta2
        table[:, :, EPS] = self.eps
        self._decay(table)
        table[:, :, STEP] /= 1.0 - _products(self._powers[0], beta1, len(table))
        table[:, :, DENOM] = np.sqrt(1.0 - _products(self._powers[1], beta2, len(table)))

    def _decay(self, table: Array) -> None:
        """Adjust the decay coefficient, while STEP is still the learning rate."""

    def advance(self, steps: int) -> None:
        super().advance(steps)
        power1, power2 = self._powers
        for _ in range(steps):
            power1, power2 = power1 * self.betas[0], power2 * self.betas[1]
        self._powers = (power1, power2)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019): first ``w -= lr wd w``.

    Parameters
    ----------
    lr, betas, eps
        As for `Adam`.
    weight_decay
        wd.
    **options
        See `Optimizer`.
    """

    row = "adamw"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay=weight_decay, **options)

    def _decay(self, table: Array) -> None:
        table[:, :, DECAY] *= table[:, :, STEP]


class RMSProp(Optimizer):
    """``v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps)`` (Hinton's lecture 6e).

    Parameters
    ----------
    lr
        Learning rate.
    alpha
        Decay of the second moment.
    eps
        Added to its root.
    **options
        See `Optimizer`.
    """

    row = "rmsprop"
    n_states = 1

    def __init__(
        self, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, **options: Any
    ) -> None:
        super().__init__(lr, **options)
        self.alpha, self.eps = _fraction("alpha", alpha), _positive("eps", eps)

    def _fill(self, table: Array) -> None:
        table[:, :, BETA2], table[:, :, ONE_BETA2] = self.alpha, 1.0 - self.alpha
        table[:, :, EPS] = self.eps


class Adagrad(Optimizer):
    """``v = v + g^2; w -= lr g / (sqrt(v) + eps)`` (Duchi et al., 2011).

    Parameters
    ----------
    lr
        Learning rate.
    eps
        Added to the root of v.
    **options
        See `Optimizer`.
    """

    row = "adagrad"
    n_states = 1

    def __init__(self, lr: float = 1e-2, eps: float = 1e-10, **options: Any) -> None:
        super().__init__(lr, **options)
        self.eps = _positive("eps", eps)

    def _fill(self, table: Array) -> None:
        table[:, :, EPS] = self.eps


def _products(start: float, factor: float, n: int) -> Array:
    """``start * factor``, that times `factor`, ..., each from the last: (n, 1)."""
    table = np.full((n, 1), factor)
    if n:
        table[0] *= start
    return table if n < 2 else np.multiply.accumulate(table, axis=0)


def _group(pattern: str, options: Mapping[str, float]) -> dict[str, float]:
    for key in options:
        if key not in ("lr", "weight_decay"):
            raise UsageError(f"groups[{pattern!r}]: expected 'lr' or 'weight_decay', got {key!r}")
    return {key: _positive(f"groups[{pattern!r}][{key!r}]", v) for key, v in options.items()}


def _rescaled(g: Tensor, scale: Tensor) -> Tensor:
    if isinstance(g._value, RowSums):
        sums = graph.row_values(g)
        return graph.with_row_values(g, sums * functions.cast(scale, sums.dtype))
    return g * functions.cast(scale, g.dtype)


def _positive(name: str, value: float) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0.0):
        raise UsageError(f"{name}: expected a finite number from 0 up, got {value!r}")
    return number


def _fraction(name: str, value: float) -> float:
    number = float(value)
    if not 0.0 <= number < 1.0:
        raise UsageError(f"{name}: expected a number in [0, 1), got {value!r}")
    return number
