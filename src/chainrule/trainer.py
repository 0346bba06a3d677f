"""Trainer: fits a model to data by a compiled step, and can stop and go on to the same bits."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import backend as backends
from . import checkpoint as files
from . import functions, graph, nn
from .callbacks import Callback
from .data import Data, Dataset, Structure
from .errors import DataError, FileError, ShapeError, UsageError
from .graph import Op, Spec, Tensor
from .losses import Loss
from .optim import CLIP, DENOM, N_COEFFICIENTS, STEP, Optimizer
from .program import Program

Array = NDArray[Any]
Metric = str | Callable[[Any, Any], float]

_BUDGET = 0.05  # seconds of steps between two looks at signals and the progress bar
_UNTOUCHED = np.array(0x7FF8_0000_C0DE_0001, np.uint64).view(np.float64)  # no result is this NaN
_PREDICT_BATCH = 256
_INT64, _FLOAT64 = np.dtype(np.int64), np.dtype(np.float64)


class History:
    """What `Trainer.fit` returns: one dict of numbers an epoch.

    Attributes
    ----------
    epochs : list of dict
        Each with "epoch", "loss", "lr", and what validation and metrics add.
    """

    def __init__(self, epochs: list[dict[str, float]] | None = None) -> None:
        self.epochs = epochs if epochs is not None else []

    def __getitem__(self, key: str) -> list[float]:
        """The values of one key over the epochs."""
        if self.epochs and not any(key in e for e in self.epochs):
            raise KeyError(f"{key!r}: an epoch has {', '.join(self.epochs[-1])}")
        return [e[key] for e in self.epochs if key in e]

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        last = ", ".join(f"{k}={v:.4g}" for k, v in self.epochs[-1].items()) if self.epochs else ""
        return f"History({len(self.epochs)} epochs{': ' + last if last else ''})"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line an epoch."""
        keys = list(dict.fromkeys(k for e in self.epochs for k in e))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=keys)
            writer.writeheader()
            writer.writerows(self.epochs)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the numbers over the epochs: losses in one panel, each metric in one of its own.

        Parameters
        ----------
        path
            Where to save the picture; None leaves it to the caller.

        Returns
        -------
        matplotlib.figure.Figure
        """
        try:
            from matplotlib.figure import Figure  # imported on first use
        except ImportError as error:
            raise UsageError("History.plot needs matplotlib: pip install matplotlib") from error
        names = [k for e in self.epochs for k in e if k not in ("epoch", "lr")]
        panels: dict[str, list[str]] = {}
        for name in dict.fromkeys(names):
            panels.setdefault(name.removeprefix("val_"), []).append(name)
        figure = Figure(figsize=(4.5 * max(1, len(panels)), 3.2), layout="constrained")
        for i, (title, keys) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), i)
            for key in keys:
                known = [(e["epoch"] + 1, e[key]) for e in self.epochs if key in e]
                label = "validation" if key.startswith("val_") else "training"
                axes.plot(*zip(*known, strict=True), label=label)
            axes.set(title=title, xlabel="epoch")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        if path is not None:
            figure.savefig(path, dpi=110)
        return figure


@dataclass
class _Progress:
    """Where a fit stands; what a checkpoint keeps of it."""

    epochs_done: int = 0
    step: int = 0  # steps done of the epoch at hand
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    extra_sums: dict[str, float] = field(default_factory=dict)
    lr: float = 0.0  # at the first step of the epoch
    history: list[dict[str, float]] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)  # what fit was called with


class _Alone:
    """A ``with`` block for one thread at a time; a second one is told."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError("this Trainer is at work in another thread: use one a thread")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Trainer:
    """Fits a model; a step is traced once and then run by the backend without Python.

    Parameters
    ----------
    model
        A Module; its parameters are drawn here where they have no values yet.
    loss
        ``loss(outputs, targets)`` -> one value a sample or a scalar, and optionally a dict of
        further values to log.
    optimizer
        Its state belongs to this model from now on.
    seed
        Everything random follows from it; None draws one (`Trainer.seed` tells which).
    threads
        A number, or None to let the core choose. Results do not depend on it.
    backend
        ``"c"``, or ``"numpy"`` for the readable reference.
    resume_from
        A checkpoint. Where the file is absent, training starts afresh; else it goes on from
        there: running the same script again finishes what was interrupted, to the same bits.

    Attributes
    ----------
    model, loss, optimizer, seed
        As given.
    stop : bool
        Set it in a callback to end a fit after the epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        seed: int | None = None,
        threads: int | None = None,
        backend: str = "c",
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        backends.get(backend)
        for name, value, kind in (("model", model, nn.Module), ("optimizer", optimizer, Optimizer)):
            if not isinstance(value, kind):
                given = value.__name__ if isinstance(value, type) else repr(value)
                raise UsageError(
                    f"{name}: expected an instance of {kind.__name__}, got {given}"
                    + (f"; make one: {given}(...)" if isinstance(value, type) else "")
                )
        if isinstance(loss, type) or not callable(loss):
            given = (
                f"{loss.__name__}; make one: {loss.__name__}()" if isinstance(loss, type) else loss
            )
            raise UsageError(f"loss: expected a function of (outputs, targets), got {given}")
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.seed = backends.draw_seed() if seed is None else int(seed)
        self.stop = False
        self._threads, self._backend = threads, backend
        backends.check_threads(threads)
        self._epochs = 0  # epochs begun so far over all fits: the number of the shuffle
        self._fits: list[dict[str, Any]] = []  # completed fits: what was asked, and the history
        self._fit = 0  # fit calls completed so far, replayed ones included
        self._current: _Progress | None = None  # the fit that a checkpoint interrupted
        self._running: _Fit | None = None  # the fit at work, or the one that an error ended
        self._callback_states: list[dict[str, Any]] = []
        self._programs: dict[Any, tuple[Program, Any]] = {}
        self._halves: dict[Any, _Halves] = {}
        self._known: tuple[int, list[nn.Parameter]] = (-1, [])
        self._guard = _Alone()
        model.init(self.seed)
        optimizer.check_groups(model.parameters())
        optimizer.init(model.trainable())
        if resume_from is not None and os.path.exists(resume_from):
            self._resume(resume_from)

    # -- training ----------------------------------------------------------------------------

    def fit(
        self,
        x: Data,
        y: Data,
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool = True,
        validation: tuple[Any, ...] | float | None = None,
        sample_weight: Any = None,
        metrics: Sequence[Metric] = (),
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
    ) -> History:
        """Train for some epochs.

        Parameters
        ----------
        x, y
            Inputs and targets: arrays, or tuples or dicts of arrays, of one length.
        epochs
            Passes over the data.
        batch_size
            Rows of a minibatch; the last of an epoch may be smaller.
        shuffle
            Draw a new order for each epoch.
        validation
            (x, y) or (x, y, weight), or the fraction of the rows to hold out.
        sample_weight
            One number from 0 up for each row.
        metrics
            ``"accuracy"`` or functions of (targets, outputs) for the validation data.
        callbacks
            See `chainrule.callbacks`.
        progress
            Show a bar on a terminal, a line an epoch elsewhere.
        checkpoint
            A file to write the state to at the end of each epoch, or every
            `checkpoint_every` steps.
        checkpoint_every
            Steps.

        Returns
        -------
        History

        Raises
        ------
        DataError, ShapeError, UsageError
            For data that does not fit, naming the argument and the row; and for a loss that is
            not finite, naming the step.
        """
        with self._alone():
            _check_counts(epochs, batch_size, checkpoint_every)
            if y is None:
                raise UsageError("y: expected targets, got None")
            if len(metrics) and validation is None:
                raise UsageError("metrics are taken of validation data: give validation=")
            data = Dataset(x, y, sample_weight, self._dtype)
            rows, held = self._split(data, validation)
            asked = {"batch_size": batch_size, "rows": len(rows), "shuffle": shuffle}
            if self._fit < len(self._fits):
                done = self._fits[self._fit]
                _check_same({"epochs": epochs, **asked}, done["asked"], "has completed")
                self._fit += 1
                return History([dict(e) for e in done["history"]])
            if self._current is not None:
                _check_same(asked, self._current.asked, "was interrupted in")
            run = _Fit(self, data, rows, batch_size, shuffle, callbacks, checkpoint_every)
            run.path, run.held, run.metrics = checkpoint, held, tuple(metrics)
            run.asked = asked
            return run.train(epochs, progress)

    def step(self, x: Data, y: Data, *, sample_weight: Any = None) -> float:
        """One step on one minibatch.

        Returns
        -------
        float
            Its loss before the update.
        """
        with self._alone():
            data = Dataset(x, y, sample_weight, self._dtype)
            program, names = self._train_program(data, data.n)
            results = np.empty((1, 1 + len(names)))
            scalars = self.optimizer.coming(1)
            program.begin(self._threads)
            try:
                program.run(1, data.arrays, scalars=scalars, results=results)
            finally:
                program.end()
            self.optimizer.advance(1)
            loss = float(results[0, 0])
            if not math.isfinite(loss):
                raise DataError(
                    f"the loss of step {self.optimizer.steps - 1} is {loss}: try a smaller "
                    "learning rate or clip_norm, and look for outliers in the data"
                )
            return loss

    def begin_step(self, x: Data) -> tuple[Any, Callable[..., Any]]:
        """The first half of a step whose gradient is made elsewhere: in numpy, by a simulator.

        Parameters
        ----------
        x
            Inputs of one minibatch.

        Returns
        -------
        outputs
            The model's outputs in training mode, as arrays.
        finish
            ``finish(*upstream, update=True) -> dx``, to be called once: takes the derivative of
            the loss by each output (None: no derivative; in the order of the outputs, or one
            tuple or dict like them), goes backward and updates. With ``update=False`` the
            gradients are added to each parameter's ``.grad`` instead, for
            ``optimizer.step(model)``. It gives the derivative by x, in x's structure, with None
            for integers.

        Notes
        -----
        The bits are those of `fit` where the upstream is its loss's derivative (of the
        minibatch's mean: divided by the rows). Backward uses the weights as they are when
        `finish` is called.
        """
        with self._alone():
            data = Dataset(x, None, None, self._dtype)
            halves = self._split_program(data)
            return halves.begin(data)

    def predict(self, x: Data, *, batch_size: int = _PREDICT_BATCH) -> Any:
        """The model's outputs; a row's result does not depend on the rows beside it.

        Parameters
        ----------
        x
            Inputs as for `fit`.
        batch_size
            Rows at a time; has no influence on the result.
        """
        with self._alone():
            return self._predict(Dataset(x, None, None, self._dtype), batch_size)

    def evaluate(
        self, x: Data, y: Data, *, sample_weight: Any = None, metrics: Sequence[Metric] = ()
    ) -> dict[str, float]:
        """The loss and metrics on data.

        Returns
        -------
        dict
            "loss", and each metric by its name.
        """
        with self._alone():
            return self._evaluate(x, y, sample_weight, metrics)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint: weights, optimizer state, counters, histories."""
        with self._alone():
            self._save(path)

    # -- programs ----------------------------------------------------------------------------

    @property
    def _dtype(self) -> np.dtype[Any]:
        parameters = self._parameters()
        return parameters[0].dtype if parameters else np.dtype(np.float32)

    def _parameters(self) -> list[nn.Parameter]:
        """The model's parameters; found anew after a module has got others."""
        version = nn.structure_version()
        if self._known[0] != version:
            self._known = (version, list(self.model.parameters().values()))
        return self._known[1]

    def _alone(self) -> _Alone:
        return self._guard

    def _compiled(
        self, key: tuple[Any, ...], training: bool, build: Callable[[], tuple[list[Tensor], Any]]
    ) -> tuple[Program, Any]:
        """The program of that key, traced on first use: `build` gives its roots and more."""
        full_key = (*key, training, self._layout())
        found = self._programs.get(full_key)
        if found is None:
            with self._tracing(training):
                roots, more = build()
            batch = key[1]
            found = (Program(roots, self._owned(), batch, self._backend), more)
            self._programs[full_key] = found
        return found

    def _layout(self) -> tuple[Any, ...]:
        """What of the model and the optimizer a program depends on."""
        return tuple([(id(p), p.frozen) for p in self._parameters()])

    def _owned(self) -> list[Tensor]:
        states = self.optimizer.states.values()
        return [*self._parameters(), *(s for several in states for s in several)]

    @contextmanager
    def _tracing(self, training: bool) -> Iterator[None]:
        """Run the model on shapes only."""
        with self._mode(training, Tensor(Spec((), _INT64), attrs={"column": 0})), graph.tracing():
            yield

    @contextmanager
    def _mode(self, training: bool, step: Tensor) -> Iterator[None]:
        """Put the model into training or prediction for a while, at that step."""
        flags = [(m, m.training) for _, m in self.model.modules()]
        self.model.train(training)
        nn.set_current_step(step)
        try:
            yield
        finally:
            nn.set_current_step(None)
            for module, flag in flags:
                object.__setattr__(module, "training", flag)

    def _train_program(self, data: Dataset, batch: int) -> tuple[Program, list[str]]:
        def build() -> tuple[list[Tensor], list[str]]:
            x, y, w = data.load(batch)
            total, extra = self._batch_loss(self._outputs(x), y, w, batch)
            parameters = self.model.trainable()
            found = graph.gradients(total, list(parameters.values()))
            grads = _all_found("the loss", parameters, found)
            self.optimizer.init(parameters)
            roots = self._results(total, extra)
            return roots + self.optimizer.trace(parameters, grads, 1), list(extra)

        program, names = self._compiled(("train", batch, data.key), True, build)
        data.check_bounds(program)
        return program, names

    def _split_program(self, data: Dataset) -> _Halves:
        key = (data.n, data.key, self._layout())
        if key not in self._halves:
            if not data.n:
                raise DataError("x has no rows")
            self._halves[key] = _Halves(self, data)
        return self._halves[key]

    def _outputs(self, x: Any) -> Any:
        """The model's outputs; of a dict, a missing key names those that there are."""
        made = Structure(self.model(x), "the model's outputs")
        return made.build(made.leaves)

    def _batch_loss(
        self, outputs: Any, y: Any, w: Tensor | None, batch: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.loss(outputs, y)
        if isinstance(value, tuple):
            if len(value) != 2 or not isinstance(value[1], Mapping):
                raise UsageError(
                    "loss: expected a Tensor, or a Tensor and a dict of values to log, "
                    f"got a tuple of {len(value)}"
                )
            value, extra = value
        else:
            extra = {}
        for name, v in {"": value, **extra}.items():
            if not isinstance(v, Tensor):
                what = f"its value {name!r} is" if name else "got"
                raise UsageError(
                    f"loss: expected a Tensor made of ops, {what} {type(v).__name__}; "
                    "a loss that cannot be traced cannot be compiled: write it with cr's functions"
                )
        if value.ndim == 0:
            if w is not None:
                raise UsageError(
                    "loss: gives one value for the whole batch, so sample_weight has no meaning; "
                    "return one value a sample"
                )
            return functions.cast(value, _FLOAT64), extra
        if value.shape[0] != batch:
            raise ShapeError(f"loss: expected a value a sample, ({batch},), got {value.shape}")
        if value.ndim > 1:
            value = functions.mean(functions.reshape(value, (batch, -1)), axis=1)
        weights = (
            Tensor(np.ones(batch, value.dtype)) if w is None else functions.cast(w, value.dtype)
        )
        return graph.apply("weighted_mean", (value, weights)), extra

    @staticmethod
    def _results(total: Tensor, extra: Mapping[str, Tensor]) -> list[Tensor]:
        values = [total, *(functions.cast(functions.mean(v), _FLOAT64) for v in extra.values())]
        return [graph.apply("result", (v,), {"column": i}) for i, v in enumerate(values)]

    def _fail(self, data: Dataset) -> NoReturn:
        """Say where the loss of a minibatch stops being finite; the parameters made it so."""
        number = self.optimizer.steps
        first: list[str] = []

        def watch(path: str, module: nn.Module) -> None:
            forward = module.forward

            def watched(*inputs: Any) -> Any:
                made = forward(*inputs)
                finite = all(
                    t.dtype.kind != "f" or np.isfinite(t.data).all()
                    for t in Structure(made).leaves
                    if isinstance(t, Tensor)
                )
                if not finite and not first:
                    first.append(f"{type(module).__name__} {path!r}" if path else "the model")
                return made

            object.__setattr__(module, "forward", watched)

        modules = list(self.model.modules())
        for path, module in modules:
            watch(path, module)
        try:
            with (
                graph.no_grad(),
                backends.use(self._backend),
                self._mode(True, Tensor(np.asarray(number, np.int64))),
            ):
                x, y, w = data.tensors()
                loss, _ = self._batch_loss(self._outputs(x), y, w, data.n)
        finally:
            for _, module in modules:
                object.__delattr__(module, "forward")
        where = first[0] if first else "the loss itself: the model's outputs are finite"
        raise DataError(
            f"the loss of step {number} is {loss.item()}; the first output that is not finite is "
            f"that of {where}. The parameters are as they were before that step. "
            "Try a smaller learning rate or clip_norm, and look for outliers in the data"
        )

    # -- prediction --------------------------------------------------------------------------

    def _predict(self, data: Dataset, batch_size: int = _PREDICT_BATCH) -> Any:
        if batch_size < 1:
            raise UsageError(f"batch_size: expected 1 or more, got {batch_size}")

        outputs: list[Array] | None = None
        structure: Structure | None = None
        for first, batch in _batches(data.n, batch_size):

            def build(batch: int = batch) -> tuple[list[Tensor], tuple[Structure, list[Spec]]]:
                x, _, _ = data.load(batch)
                made = Structure(self.model(x), "outputs")
                for leaf in made.leaves:
                    if not isinstance(leaf, Tensor) or leaf.shape[:1] != (batch,):
                        raise ShapeError(
                            "predict: expected outputs with a row for each sample, got "
                            f"{getattr(leaf, 'shape', leaf)}"
                        )
                roots = [
                    graph.apply("store", (leaf,), {"output": i})
                    for i, leaf in enumerate(made.leaves)
                ]
                return roots, (made, [leaf.spec for leaf in made.leaves])

            program, (structure, specs) = self._compiled(("predict", batch, data.key), False, build)
            data.check_bounds(program)
            if outputs is None:
                outputs = [np.empty((data.n, *s.shape[1:]), s.dtype) for s in specs]
            program.begin(self._threads)
            try:
                self._run_rows(program, data.arrays, first, batch, data.n, outputs)
            finally:
                program.end()
        if outputs is None or structure is None:
            raise DataError("x has no rows")
        return structure.build(outputs)

    @staticmethod
    def _run_rows(
        program: Program, sources: list[Array], first: int, batch: int, n: int, outputs: list[Array]
    ) -> None:
        steps = (n - first) // batch
        done = 0
        while done < steps:
            done += program.run(
                steps - done,
                sources,
                first_row=first + done * batch,
                outputs=outputs,
                budget=_BUDGET,
            )

    def _evaluate(
        self, x: Data, y: Data, weight: Any, metrics: Sequence[Metric]
    ) -> dict[str, float]:
        data = Dataset(x, y, weight, self._dtype)
        loss_sum = weight_sum = 0.0
        sums: dict[str, float] = {}
        for first, batch in _batches(data.n, _PREDICT_BATCH):

            def build(batch: int = batch) -> tuple[list[Tensor], list[str]]:
                inputs, targets, w = data.load(batch)
                total, extra = self._batch_loss(self._outputs(inputs), targets, w, batch)
                return self._results(total, extra), list(extra)

            program, names = self._compiled(("evaluate", batch, data.key), False, build)
            data.check_bounds(program)
            steps = (data.n - first) // batch
            results = np.empty((steps, 1 + len(names)))
            with program.session(self._threads):
                done = 0
                while done < steps:
                    done += program.run(
                        steps - done,
                        data.arrays,
                        first_row=first + done * batch,
                        results=results[done:],
                    )
            for i, row in enumerate(results):
                start = first + i * batch
                share = (
                    batch if weight is None else float(data.arrays[-1][start : start + batch].sum())
                )
                loss_sum += share * row[0]
                weight_sum += share
                for name, value in zip(names, row[1:], strict=True):
                    sums[name] = sums.get(name, 0.0) + share * value
        if not weight_sum:
            raise DataError("no rows (or only zero weights) to evaluate on")
        scores = {"loss": loss_sum / weight_sum}
        scores |= {name: value / weight_sum for name, value in sums.items()}
        if metrics:
            outputs = self._predict(Dataset(x, None, None, self._dtype))
            for metric in metrics:
                scores[metric_name(metric)] = _measure(metric, y, outputs)
        return scores

    def _split(
        self, data: Dataset, validation: tuple[Any, ...] | float | None
    ) -> tuple[Array, tuple[Any, ...] | None]:
        """The rows to train on, and the validation data."""
        rows = np.arange(data.n, dtype=np.int64)
        if isinstance(validation, list):
            validation = tuple(validation)
        if not isinstance(validation, tuple | float | None):
            raise UsageError(
                "validation: expected (x, y), (x, y, weight) or a fraction, got "
                f"{type(validation).__name__}"
            )
        if validation is None or isinstance(validation, tuple):
            if isinstance(validation, tuple) and len(validation) not in (2, 3):
                raise UsageError("validation: expected (x, y), (x, y, weight) or a fraction")
            return rows, validation
        if not 0.0 < validation < 1.0:
            raise UsageError(f"validation: expected a fraction between 0 and 1, got {validation!r}")
        order = backends.permutation(backends.stream_key(self.seed, "validation"), 0, data.n)
        held = np.sort(order[: max(1, round(data.n * validation))])
        return np.setdiff1d(rows, held), data.rows(held)

    # -- checkpoints -------------------------------------------------------------------------

    def _save(
        self,
        path: str | os.PathLike[str],
    ) -> None:
        current = None if self._running is None else self._running.state
        callbacks = () if self._running is None else self._running.callbacks
        tensors = files.model_tensors(self.model)
        for name, states in self.optimizer.states.items():
            tensors |= {f"optimizer/{name}/{i}": s.data for i, s in enumerate(states)}
        states_json = []
        for i, callback in enumerate(callbacks):
            state = callback.state()
            tensors |= {
                f"callback/{i}/{k}": v for k, v in state.items() if isinstance(v, np.ndarray)
            }
            states_json.append({k: v for k, v in state.items() if not isinstance(v, np.ndarray)})
        config = {
            "kind": "trainer",
            "model": self.model.config(),
            "optimizer": self.optimizer.config(),
            "seed": self.seed,
            "epochs": self._epochs,
            "fits": self._fits,
            "current": None if current is None else vars(current),
            "stop": self.stop,
            "callbacks": states_json,
        }
        files.save_tensors(path, tensors, config)

    def _resume(self, path: str | os.PathLike[str]) -> None:
        tensors, config = files.load_tensors(path)
        if config.get("kind") != "trainer":
            raise FileError(
                f"{os.fspath(path)}: holds a {config.get('kind')}, not a Trainer's state"
            )
        parameters = self.model.parameters()
        stored = {k.split("/")[1] for k in tensors if k.startswith("optimizer/")}
        self.optimizer.init({k: p for k, p in parameters.items() if k in stored})
        expected = {
            f"optimizer/{name}/{i}": s
            for name, states in self.optimizer.states.items()
            for i, s in enumerate(states)
        }
        for name, state in expected.items():
            if name not in tensors or tensors[name].shape != state.shape:
                raise FileError(
                    f"{os.fspath(path)}: its optimizer state does not fit this model ({name})"
                )
        files.set_model_tensors(self.model, tensors, path)
        for name, state in expected.items():
            state.data = np.array(tensors[name])
        self.optimizer.restore(config["optimizer"])
        self.seed, self._epochs, self._fits = config["seed"], config["epochs"], config["fits"]
        self.stop = config["stop"]
        self.model.init(self.seed)
        if config["current"] is not None:
            self._current = _Progress(**config["current"])
        self._callback_states = config["callbacks"]
        for name, value in tensors.items():
            if name.startswith("callback/"):
                _, i, key = name.split("/", 2)
                self._callback_states[int(i)][key] = value


class _Halves:
    """A step in two programs: forward, and backward from gradients that are made elsewhere."""

    def __init__(self, trainer: Trainer, data: Dataset) -> None:
        self.trainer, batch = trainer, data.n
        self.n_x = len(data.arrays)
        with trainer._tracing(True):
            x, _, _ = data.load(batch, differentiable=True)
            self.inputs = Structure(x, "x")
            self.outputs = Structure(trainer.model(x), "outputs")
            for leaf in self.outputs.leaves:
                if not isinstance(leaf, Tensor) or leaf.shape[:1] != (batch,):
                    raise ShapeError(
                        "begin_step: expected outputs with a row for each sample, got "
                        f"{getattr(leaf, 'shape', leaf)}"
                    )
            self.specs = [leaf.spec for leaf in self.outputs.leaves]
            upstream = [
                graph.apply("load", (), {"spec": spec, "source": self.n_x + i})
                for i, spec in enumerate(self.specs)
            ]
            # One root above all the outputs, whose derivatives are what `finish` will be given.
            ends = Op("outputs", lambda *specs: specs, lambda node, g, needs: upstream, lambda: 0)
            root = Tensor(
                Spec((), _FLOAT64), requires_grad=True, op=ends, inputs=tuple(self.outputs.leaves)
            )
            self._parameters = trainer.model.trainable()
            n = len(self._parameters)
            found = graph.gradients(root, [*self._parameters.values(), *self.inputs.leaves])
            self._grads = _all_found("the outputs", self._parameters, found[:n])
            self.given = [g is not None for g in found[n:]]
            dx = [g for g in found[n:] if g is not None]
            stores = [*self.outputs.leaves, *dx]
            self._roots = [
                graph.apply("store", (leaf,), {"output": i}) for i, leaf in enumerate(stores)
            ]
            trainer.optimizer.init(self._parameters)
            updates = trainer.optimizer.trace(self._parameters, self._grads, 1)
        self.forward, self._update, self.passed = self._compile(updates, trainer._owned())
        self._sums: dict[str, Tensor] = {}
        self._accumulate: Program | None = None
        self.dx_specs = [g.spec for g in dx]

    def _compile(
        self, updates: list[Tensor], owned: list[Tensor]
    ) -> tuple[Program, Program, list[Spec]]:
        whole = Program([*self._roots, *updates], owned, self.specs[0].shape[0], self._backend)
        return whole.split(self.n_x, self.n_x + len(self.specs))

    @property
    def _backend(self) -> str:
        return self.trainer._backend

    def begin(self, data: Dataset) -> tuple[Any, Callable[..., Any]]:
        """Forward; see `Trainer.begin_step`."""
        trainer = self.trainer
        data.check_bounds(self.forward)
        scalars = trainer.optimizer.coming(1)
        results = [np.empty(s.shape, s.dtype) for s in self.specs]
        saved = [np.empty(s.shape, s.dtype) for s in self.passed]
        self._run(self.forward, data.arrays, scalars, [*results, *saved])
        step = scalars[0, 0]
        finished = False

        def finish(*upstream: Any, update: bool = True) -> Any:
            nonlocal finished
            with trainer._alone():
                if finished:
                    raise UsageError("finish: was called already; begin another step")
                given = self._check(upstream)
                finished = True
                return self._backward([*data.arrays, *given, *saved], step, update)

        return self.outputs.build(results), finish

    def _backward(self, sources: list[Array], step: float, update: bool) -> Any:
        dx = [np.empty(s.shape, s.dtype) for s in self.dx_specs]
        scalars = self.trainer.optimizer.coming(1).copy()
        scalars[0, 0] = step  # dropout is drawn as it was in the forward pass
        if update:
            self._run(self._update, sources, scalars, dx)
            self.trainer.optimizer.advance(1)
        else:
            self._add_gradients(sources, scalars, dx)
        made = iter(dx)
        return self.inputs.build([next(made) if given else None for given in self.given])

    def _run(
        self, program: Program, sources: list[Array], scalars: Array, outputs: list[Array]
    ) -> None:
        with program.session(self.trainer._threads):
            program.run(1, sources, scalars=scalars, outputs=outputs)

    def _check(self, upstream: tuple[Any, ...]) -> list[Array]:
        value: Any = upstream[0] if len(upstream) == 1 else upstream
        given = Structure(value, "upstream")
        if len(given.leaves) != len(self.specs) or (
            isinstance(value, Mapping) and given.plan != self.outputs.plan
        ):
            raise UsageError(
                f"finish: expected a gradient for each of {', '.join(self.outputs.labels)}, "
                f"got {', '.join(given.labels) or 'none'}"
            )
        arrays = []
        for leaf, label, spec in zip(given.leaves, self.outputs.labels, self.specs, strict=True):
            array = np.zeros(*spec) if leaf is None else np.asarray(leaf)
            if array.shape != spec.shape or array.dtype.kind not in "fiub":
                raise ShapeError(
                    f"finish: expected a gradient of {label}, {spec.shape} {spec.dtype}, "
                    f"got {array.shape} {array.dtype}"
                )
            array = np.ascontiguousarray(array, spec.dtype)
            if not np.isfinite(array).all():
                raise DataError(f"finish: the gradient of {label} holds a value that is not finite")
            arrays.append(array)
        return arrays

    def _add_gradients(self, sources: list[Array], scalars: Array, dx: list[Array]) -> None:
        """Gradients into `.grad`: the update of SGD with learning rate -1 adds them there."""
        if self._accumulate is None:
            row = np.zeros(N_COEFFICIENTS)
            row[STEP], row[DENOM], row[CLIP] = -1.0, 1.0, math.inf
            self._sums = {
                path: Tensor(np.zeros(p.shape, p.dtype)) for path, p in self._parameters.items()
            }
            with graph.tracing():
                updates = [
                    graph.apply(
                        "update_rows" if isinstance(g._value, graph.RowSums) else "update",
                        (g, self._sums[path], Tensor(row))
                        if isinstance(g._value, graph.RowSums)
                        else (self._sums[path], g, Tensor(row)),
                        {"update": "sgd"},
                    )
                    for path, g in self._grads.items()
                ]
            owned = [*self.trainer._parameters(), *self._sums.values()]
            _, self._accumulate, _ = self._compile(updates, owned)
        for path, p in self._parameters.items():
            grad = p.grad
            self._sums[path].data = np.zeros(p.shape, p.dtype) if grad is None else grad
        self._run(self._accumulate, sources, scalars, dx)
        for path, p in self._parameters.items():
            p._grad = self._sums[path].data


def _all_found(
    what: str, parameters: Mapping[str, Tensor], found: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """The gradient of each parameter by its path; each must have one."""
    grads = {}
    for path, grad in zip(parameters, found, strict=True):
        if grad is None:
            verb = "do" if what.endswith("s") and not what.endswith("ss") else "does"
            raise UsageError(f"{what} {verb} not depend on parameter {path!r}: freeze it or use it")
        grads[path] = grad
    return grads


class _Fit:
    """One call of `Trainer.fit`."""

    def __init__(
        self,
        trainer: Trainer,
        data: Dataset,
        rows: Array,
        batch_size: int,
        shuffle: bool,
        callbacks: Sequence[Callback],
        checkpoint_every: int | None,
    ) -> None:
        self.trainer, self.data, self.rows = trainer, data, rows
        self.shuffle, self.callbacks = shuffle, callbacks
        self.every = checkpoint_every
        if not len(rows):
            raise DataError("x has no rows to train on")
        self.batch = min(batch_size, len(rows))
        self.full, self.rest = divmod(len(rows), self.batch)
        self.steps = self.full + (self.rest > 0)
        self.path: str | os.PathLike[str] | None = None
        self.held: tuple[Any, ...] | None = None
        self.asked: dict[str, Any] = {}
        self.metrics: tuple[Metric, ...] = ()

    def train(self, epochs: int, progress: bool) -> History:
        """Run the epochs that are not done yet."""
        trainer = self.trainer
        state, trainer._current = trainer._current, None
        trainer._running = None
        if state is None:
            trainer.stop = False
            state = _Progress(asked=self.asked)
            for callback in self.callbacks:
                callback.on_fit_begin(trainer)
        else:
            for callback, saved in zip(self.callbacks, trainer._callback_states, strict=False):
                callback.restore(saved)
        self.state = state
        trainer._running = self
        with _bar(progress, epochs * self.steps, self._done(state)) as bar:
            while state.epochs_done < epochs and not trainer.stop:
                self._epoch(bar)
        for callback in self.callbacks:
            callback.on_fit_end(trainer)
        trainer._fits.append({"asked": {"epochs": epochs, **self.asked}, "history": state.history})
        trainer._fit += 1
        trainer._running = None
        if self.path is not None:
            trainer._save(self.path)
        return History([dict(e) for e in state.history])

    def _done(self, state: _Progress) -> int:
        return state.epochs_done * self.steps + state.step

    def _epoch(self, bar: _Bar) -> None:
        trainer, state = self.trainer, self.state
        order = self.rows
        if self.shuffle:
            key = backends.stream_key(trainer.seed, "shuffle")
            order = order[backends.permutation(key, trainer._epochs, len(order))]
        if state.step == 0:
            state.lr = trainer.optimizer.rate(trainer.optimizer.steps)
        if state.step < self.full:
            self._steps(order, self.batch, self.full, bar)
        if self.rest and state.step < self.steps:
            self._steps(order, self.rest, self.steps, bar)
        logs = {
            "epoch": float(trainer._epochs),
            "loss": state.loss_sum / max(state.weight_sum, 1e-300),
            "lr": state.lr,
        }
        logs |= {k: v / max(state.weight_sum, 1e-300) for k, v in state.extra_sums.items()}
        if self.held is not None:
            x, y, *w = self.held
            scores = trainer._evaluate(x, y, w[0] if w else None, self.metrics)
            logs |= {f"val_{k}": v for k, v in scores.items()}
        trainer._epochs += 1
        state.epochs_done += 1
        state.step, state.loss_sum, state.weight_sum = 0, 0.0, 0.0
        state.extra_sums = {}
        state.history.append(logs)
        for callback in self.callbacks:
            callback.on_epoch_end(trainer, logs)
        bar.epoch(logs)
        if self.path is not None and self.every is None:
            trainer._save(self.path)

    def _steps(self, order: Array, batch: int, until: int, bar: _Bar) -> None:
        """Run the steps of one minibatch size up to step `until` of the epoch."""
        trainer, state = self.trainer, self.state
        program, names = trainer._train_program(self.data, batch)
        chunk = 16
        while state.step < until:
            boundary = until
            if self.every is not None and self.path is not None:
                total = trainer.optimizer.steps
                boundary = min(until, state.step + self.every - total % self.every)
            before = _Before(trainer, state.step)
            try:
                with _held_interrupts() as look, program.session(trainer._threads):
                    while state.step < boundary:
                        chunk = min(chunk, boundary - state.step)
                        done = self._run(program, names, order, batch, chunk)
                        bar.advance(done, state)
                        look()
                        chunk = max(1, 2 * done) if done == chunk else done
            except _NotFinite as failure:
                self._explain(program, names, order, batch, before, failure)
            due = self.every is not None and trainer.optimizer.steps % self.every == 0
            if self.path is not None and due:
                trainer._save(self.path)

    def _explain(
        self,
        program: Program,
        names: list[str],
        order: Array,
        batch: int,
        before: _Before,
        failure: _NotFinite,
    ) -> NoReturn:
        """Go back to the state before the step that failed, and find what went wrong in it.

        The steps of the session are run once more, which gives the same bits; then the minibatch
        goes through the model layer by layer.
        """
        trainer, state = self.trainer, self.state
        failed = state.step + failure.steps - 1
        before.restore()
        steps = failed - before.step
        index = order[before.step * self.batch :][: steps * batch]
        if steps:
            with program.session(trainer._threads):
                program.run(
                    steps,
                    self.data.arrays,
                    index=index,
                    scalars=before.optimizer.coming(steps),
                    results=np.empty((steps, 1 + len(names))),
                )
        trainer.optimizer.advance(failure.steps - 1)
        rows = order[failed * self.batch :][:batch]
        trainer._fail(self.data.take(rows))

    def _run(self, program: Program, names: list[str], order: Array, batch: int, steps: int) -> int:
        trainer, state = self.trainer, self.state
        first = state.step * self.batch
        index = order[first : first + steps * batch]
        results = np.full((steps, 1 + len(names)), _UNTOUCHED)
        failure: IndexError | None = None
        try:
            program.run(
                steps,
                self.data.arrays,
                index=index,
                scalars=trainer.optimizer.coming(steps),
                results=results,
                budget=_BUDGET,
            )
        except IndexError as error:  # the steps before it were done, and count
            failure = error
        done = int(np.count_nonzero(results[:, 0].view(np.uint64) != _UNTOUCHED.view(np.uint64)))
        weighted = "sample_weight" in self.data.parts
        for i, row in enumerate(results[:done].tolist()):
            share = float(batch)
            if weighted:
                rows = index[i * batch : (i + 1) * batch]
                share = float(self.data.arrays[-1][rows].sum(dtype=np.float64))
            state.loss_sum += share * row[0]
            state.weight_sum += share
            for name, value in zip(names, row[1:], strict=True):
                state.extra_sums[name] = state.extra_sums.get(name, 0.0) + share * value
        if done and not math.isfinite(results[done - 1, 0]):
            raise _NotFinite(done)
        trainer.optimizer.advance(done)
        state.step += done
        if failure is not None:
            raise DataError(f"step {trainer.optimizer.steps}: {failure}") from failure
        return done


@contextmanager
def _held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back inside a ``with`` block, where weights and counters are not yet in step.

    Calling what it gives lets an interrupt that came meanwhile through. A handler of the
    caller's own, and other threads, which get no signals, are left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    came: list[bool] = []

    def look() -> None:
        if came:
            came.clear()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield look
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    look()


def _check_same(asked: Mapping[str, Any], before: Mapping[str, Any], what: str) -> None:
    """A resumed script must ask for what the checkpoint is of."""
    for name, value in asked.items():
        if value != before[name]:
            raise UsageError(
                f"fit: {name}={value!r}, but the checkpoint {what} a fit with "
                f"{name}={before[name]!r}: run the same script to resume; to train on, call fit "
                "once more after it"
            )


class _NotFinite(Exception):
    """The last of `steps` steps of a run had a loss that is not finite."""

    def __init__(self, steps: int) -> None:
        self.steps = steps


class _Before:
    """The state at the begin of a session: to go back to the step that failed."""

    def __init__(self, trainer: Trainer, step: int) -> None:
        self.step = step
        self.optimizer = copy.copy(trainer.optimizer)
        self.values = [(t, t.data.copy()) for t in trainer._owned()]

    def restore(self) -> None:
        """Put the values back."""
        for tensor, value in self.values:
            tensor.data[...] = value


class _Bar:
    """Progress: a tqdm bar on a terminal, a line an epoch elsewhere, or nothing."""

    def __init__(self, total: int, done: int) -> None:
        self._tqdm: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # imported on first use: it costs a tenth of a second

            self._tqdm = tqdm(total=total, initial=done, unit="step", leave=False)

    def advance(self, steps: int, state: _Progress) -> None:
        """Count steps done."""
        if self._tqdm is not None:
            self._tqdm.update(steps)
            self._tqdm.set_postfix(loss=f"{state.loss_sum / state.weight_sum:.4f}", refresh=False)

    def epoch(self, logs: Mapping[str, float]) -> None:
        """Show the numbers of an epoch."""
        text = "  ".join(f"{k} {v:.4f}" for k, v in logs.items() if k not in ("epoch", "lr"))
        line = f"epoch {int(logs['epoch']) + 1:3d}  {text}"
        if self._tqdm is not None:
            self._tqdm.write(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._tqdm is not None:
            self._tqdm.close()


class _NoBar(_Bar):
    def __init__(self) -> None:
        self._tqdm = None

    def epoch(self, logs: Mapping[str, float]) -> None:
        pass


@contextmanager
def _bar(show: bool, total: int, done: int) -> Iterator[_Bar]:
    bar = _Bar(total, done) if show else _NoBar()
    try:
        yield bar
    finally:
        bar.close()


def _batches(n: int, size: int) -> list[tuple[int, int]]:
    """(first row, batch) of the full minibatches and of the smaller last one."""
    rest = n % size
    full = [(0, size)] if n >= size else []
    return full + ([(n - rest, rest)] if rest else [])


def metric_name(metric: Metric) -> str:
    """The name under which a metric is logged."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def _measure(metric: Metric, y: Data, outputs: Any) -> float:
    if not isinstance(metric, str):
        return float(metric(y, outputs))
    if metric != "accuracy":
        raise UsageError(f"metrics: expected 'accuracy' or a function, got {metric!r}")
    scores, targets = np.asarray(outputs), np.asarray(y)
    classes = scores.argmax(axis=1) if scores.ndim == 2 and scores.shape[1] > 1 else scores > 0.0
    return float(np.mean(classes.reshape(targets.shape) == targets))


def _check_counts(epochs: int, batch_size: int, every: int | None) -> None:
    for name, n in (("epochs", epochs), ("batch_size", batch_size), ("checkpoint_every", every)):
        least = 0 if name == "epochs" else 1
        if n is not None and (not isinstance(n, int | np.integer) or n < least):
            raise UsageError(f"{name}: expected an integer from {least} up, got {n!r}")
