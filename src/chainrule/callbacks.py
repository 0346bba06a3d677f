"""What can be hooked into `Trainer.fit`."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

if TYPE_CHECKING:
    from .trainer import Trainer

Array = NDArray[Any]
Logs = Mapping[str, float]


_HIGHER_IS_BETTER = ("acc", "f1", "auc", "score", "precision", "recall", "r2")


class Callback:
    """Base class: override what you need.

    A callback that remembers something gives it out in `state` and takes it back in `restore`, so
    that a resumed run goes on as if it had never stopped.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch of a fit; not when a fit is resumed."""

    def on_epoch_end(self, trainer: Trainer, logs: Logs) -> None:
        """After each epoch; `logs` has "epoch", "loss", "lr" and, with validation, "val_loss"."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or when training was stopped."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: JSON values and arrays."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


class _Monitor(Callback):
    """A callback that watches one number and counts the epochs without improvement."""

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str | None) -> None:
        if mode not in ("min", "max", None):
            raise UsageError(f"mode: expected 'min', 'max' or None, got {mode!r}")
        if mode is None:
            mode = "max" if any(word in monitor for word in _HIGHER_IS_BETTER) else "min"
        if patience < 0:
            raise UsageError(f"patience: expected epochs from 0 up, got {patience}")
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self.best, self.waited = math.inf, 0

    def on_fit_begin(self, trainer: Trainer) -> None:
        self.best, self.waited = math.inf, 0

    def improved(self, logs: Logs) -> bool:
        """Whether this epoch is the best so far; counts it where it is not."""
        if self.monitor not in logs:
            known = ", ".join(sorted(logs))
            raise UsageError(
                f"{type(self).__name__}: monitors {self.monitor!r}, but an epoch has {known}; "
                "give fit(validation=...)"
            )
        value = self._sign * logs[self.monitor]
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = float(state["best"]), int(state["waited"])


class EarlyStopping(_Monitor):
    """Stop when a number has not improved for some epochs.

    Parameters
    ----------
    monitor
        A key of the epoch's logs.
    patience
        Epochs to wait for an improvement.
    restore_best
        Go back to the parameters of the best epoch at the end.
    min_delta
        What counts as an improvement.
    mode
        ``"min"`` or ``"max"``; None tells it by the monitor's name, "max" for accuracies and
        other scores.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        restore_best: bool = True,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        super().__init__(monitor, patience, min_delta, mode)
        self.restore_best = restore_best
        self._weights: dict[str, Array] = {}

    def on_fit_begin(self, trainer: Trainer) -> None:
        super().on_fit_begin(trainer)
        self._weights = {}

    def on_epoch_end(self, trainer: Trainer, logs: Logs) -> None:
        if self.improved(logs):
            if self.restore_best:
                parameters = trainer.model.parameters()
                self._weights = {k: p.data.copy() for k, p in parameters.items()}
        elif self.waited >= self.patience:
            trainer.stop = True

    def on_fit_end(self, trainer: Trainer) -> None:
        for path, p in trainer.model.parameters().items():
            if path in self._weights:
                p.data = self._weights[path].copy()

    def state(self) -> dict[str, Any]:
        return {**super().state(), **{f"weights/{k}": v for k, v in self._weights.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._weights = {
            k.removeprefix("weights/"): np.array(v)
            for k, v in state.items()
            if k.startswith("weights/")
        }


class ReduceLROnPlateau(_Monitor):
    """Multiply the learning rate when a number has not improved for some epochs.

    Parameters
    ----------
    monitor, patience, min_delta, mode
        As for `EarlyStopping`.
    factor
        What the learning rate is multiplied by.
    min_lr
        The learning rate does not fall below.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        factor: float = 0.1,
        min_lr: float = 0.0,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        super().__init__(monitor, patience, min_delta, mode)
        self.factor, self.min_lr = factor, min_lr

    def on_epoch_end(self, trainer: Trainer, logs: Logs) -> None:
        if not self.improved(logs) and self.waited > self.patience:
            trainer.optimizer.lr = max(self.min_lr, trainer.optimizer.lr * self.factor)
            self.waited = 0


class _Logger(Callback):
    """Writes a line an epoch to a file; a resumed run goes on after its checkpoint's last line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def on_fit_begin(self, trainer: Trainer) -> None:
        with open(self.path, "w"):
            pass

    def state(self) -> dict[str, Any]:
        return {"size": os.path.getsize(self.path)}

    def restore(self, state: Mapping[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.truncate(state["size"])


class CSVLogger(_Logger):
    """Write a line an epoch to a CSV file.

    Parameters
    ----------
    path
        The file; a resumed run appends to it.
    """

    def on_epoch_end(self, trainer: Trainer, logs: Logs) -> None:
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(logs))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(logs)


class JSONLogger(_Logger):
    """Write an epoch's numbers as a line of JSON.

    Parameters
    ----------
    path
        The file; a resumed run appends to it.
    """

    def on_epoch_end(self, trainer: Trainer, logs: Logs) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(dict(logs)) + "\n")
