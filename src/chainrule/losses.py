"""Losses: functions of ops from (outputs, targets) to one value a sample.

Any function of that form does as well; a batch's loss is the weighted mean of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import functions
from .errors import DtypeError, ShapeError, UsageError
from .graph import Tensor

Loss = Callable[[Any, Any], Any]


class SoftmaxCrossEntropy:
    """``logsumexp(z) - z[y]`` for scores z (batch, classes) and integer labels y (batch,)."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _one("SoftmaxCrossEntropy", z, "outputs"), _one("SoftmaxCrossEntropy", y, "targets")
        if z.ndim != 2:
            raise ShapeError(
                f"SoftmaxCrossEntropy: expected scores (batch, classes), got {z.shape}{_maker(z)}"
            )
        if not np.issubdtype(y.dtype, np.integer):
            raise DtypeError(
                f"SoftmaxCrossEntropy: expected integer labels (batch,), got {y.dtype} {y.shape}; "
                "convert floats by y.astype(int), one-hot rows by y.argmax(axis=1)"
            )
        if y.shape != z.shape[:1]:
            way = ": use y[:, 0]" if y.shape[1:] == (1,) else ""
            if y.shape == z.shape and not way:
                way = ": convert one-hot rows by y.argmax(axis=1)"
            raise ShapeError(
                f"SoftmaxCrossEntropy: expected labels {z.shape[:1]} for scores {z.shape}"
                f"{_maker(z)}, got {y.shape}{way}"
            )
        return functions.softmax_cross_entropy(z, y)


class Logistic:
    """Binary cross entropy on scores: ``softplus(z) - y z`` with targets y from 0 to 1.

    The derivative by z is ``sigmoid(z) - y``. Scores (batch,) or (batch, n); computed as
    ``relu(z) - y z + softplus(-|z|)``, which does not cancel for large scores.
    """

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _paired("Logistic", z, y)
        return functions.relu(z) - y * z + functions.softplus(-functions.abs(z))


class MeanSquaredError:
    """``(z - y)^2``."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _paired("MeanSquaredError", z, y)
        return functions.square(z - y)


class MeanAbsoluteError:
    """``|z - y|``."""

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _paired("MeanAbsoluteError", z, y)
        return functions.abs(z - y)


class Huber:
    """``d^2 / 2`` where ``|d| <= delta``, else ``delta (|d| - delta / 2)``, with d = z - y.

    Parameters
    ----------
    delta
        Where the parabola ends (Huber, 1964).
    """

    def __init__(self, delta: float = 1.0) -> None:
        if not delta > 0.0:
            raise UsageError(f"Huber: expected a delta above 0, got {delta!r}")
        self.delta = float(delta)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        z, y = _paired("Huber", z, y)
        size = functions.abs(z - y)
        inner = functions.minimum(size, self.delta)
        return inner * (size - inner * 0.5)


class GaussianNLL:
    """``(log v + (y - m)^2 / v) / 2`` for outputs (m, log v) and targets y.

    The second output is the logarithm of the variance, so that any number is valid.
    """

    def __call__(self, outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            got = f"a tuple of {len(outputs)}" if isinstance(outputs, tuple) else "one"
            raise UsageError(
                f"GaussianNLL: expected two outputs (mean, log of the variance), got {got}"
            )
        mean, target = _paired("GaussianNLL", outputs[0], y)
        log_variance, _ = _paired("GaussianNLL", outputs[1], y)
        return (log_variance + functions.square(target - mean) * functions.exp(-log_variance)) * 0.5


def _paired(name: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape and dtype; (batch, 1) and (batch,) go together."""
    z, y = _one(name, z, "outputs"), _one(name, y, "targets")
    if z.ndim == y.ndim + 1 and z.shape[-1] == 1:
        z = functions.reshape(z, z.shape[:-1])
    elif y.ndim == z.ndim + 1 and y.shape[-1] == 1:
        y = functions.reshape(y, y.shape[:-1])
    if z.shape != y.shape:
        way = ""
        if z.ndim == 2 and y.shape == z.shape[:1]:
            labels = np.issubdtype(y.dtype, np.integer)
            way = "; the last layer's width should be 1"
            way += ", or, for labels of classes, the loss SoftmaxCrossEntropy" if labels else ""
        elif y.shape[1:]:
            way = f"; the last layer's width should be {y.shape[-1]}"
        raise ShapeError(f"{name}: outputs {z.shape}{_maker(z)} and targets {y.shape} differ{way}")
    return z, functions.cast(y, z.dtype)


def _one(name: str, value: Any, what: str) -> Tensor:
    if not isinstance(value, tuple | Mapping):
        return functions.as_tensor(value)
    got = f"{len(value)} of them"
    if isinstance(value, Mapping):
        got = "a dict with " + ", ".join(repr(k) for k in value)
    raise UsageError(
        f"{name}: expected one array of {what}, got {got}; write a loss of your own that picks: "
        f"lambda outputs, targets: {name}()(outputs[...], targets)"
    )


def _maker(z: Tensor) -> str:
    """Which layer made an output, where one did."""
    while z._op is not None and z._op.name in ("reshape", "slice", "cast"):
        z = z._inputs[0]
    path = z._inputs[1].name if z._op is not None and z._op.name == "dense" else None
    return f" of Dense {path.removesuffix('weight').rstrip('.')!r}" if path else ""
