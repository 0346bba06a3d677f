"""Estimators with scikit-learn's interface, trained by chainrule's compiled step.

`MLPClassifier` and `MLPRegressor` take the parameters of scikit-learn's classes of the same name
and add `loss`, `class_weight`, `threads` and every non-linearity that chainrule has. What they
learn is kept as plain arrays (`coefs_`, `intercepts_`), so they pickle like any estimator; `save`
and `load` do without pickle.

Differences from scikit-learn: Adam adds `epsilon` after the bias correction; momentum is that of
PyTorch, which differs where the learning rate changes (`invscaling`, `adaptive`); the order of
shuffled minibatches is another one; with sample weights, the penalty of a minibatch is divided by
its rows times the mean weight; a sparse X is made dense. From one `random_state` the weights
start at the same values.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .. import backend, checkpoint, functions, graph, losses, nn, optim, reference
from ..callbacks import Callback
from ..errors import FileError, UsageError
from ..graph import Tensor
from ..trainer import Trainer

__all__ = ["MLPClassifier", "MLPRegressor"]

Array = NDArray[Any]

# scikit-learn's names of two non-linearities, beside chainrule's own.
_ACTIVATIONS: dict[str, str | None] = {"identity": None, "logistic": "sigmoid"}
_PREDICT_ROWS = 65536  # rows of one eager pass: bounds the memory of a prediction


def _number(low: float, high: float = np.inf, open_low: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        number = float(value)
        return (low < number if open_low else low <= number) and number <= high

    return fits


def _count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


_FRACTION = (lambda v: _number(0.0)(v) and v < 1, "a number in [0, 1)")
_POSITIVE = (_number(0.0, open_low=True), "a number above 0")
_NOT_NEGATIVE = (_number(0.0), "a number from 0 up")
_COUNT = (_count, "an integer from 1 up")
_BOOLEAN = (lambda v: isinstance(v, bool | np.bool_), "a bool")


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "activation": _one_of(*_ACTIVATIONS, *sorted(reference.ACTIVATIONS)),
    "solver": _one_of("lbfgs", "sgd", "adam"),
    "alpha": _NOT_NEGATIVE,
    "batch_size": (lambda v: v == "auto" or _count(v), "'auto' or an integer from 1 up"),
    "learning_rate": _one_of("constant", "invscaling", "adaptive"),
    "learning_rate_init": _POSITIVE,
    "power_t": _NOT_NEGATIVE,
    "max_iter": _COUNT,
    "shuffle": _BOOLEAN,
    "tol": _NOT_NEGATIVE,
    "warm_start": _BOOLEAN,
    "momentum": _FRACTION,
    "nesterovs_momentum": _BOOLEAN,
    "early_stopping": _BOOLEAN,
    "validation_fraction": _FRACTION,
    "beta_1": _FRACTION,
    "beta_2": _FRACTION,
    "epsilon": _POSITIVE,
    "n_iter_no_change": (lambda v: v == np.inf or _count(v), "an integer from 1 up, or inf"),
    "max_fun": _COUNT,
    "threads": (lambda v: v is None or _count(v), "an integer from 1 up, or None"),
}


# -- the optimizers: an L2 penalty on weights, none on biases --------------------------------------


class _Penalised(optim.Optimizer):
    """Adds ``alpha / rows`` times the weight to the gradient of a weight, and nothing to a bias's.

    A step has two vectors of coefficients: one for weights, one for biases.
    """

    penalties: tuple[float, float] = (0.0, 0.0)  # of a full minibatch, of the last of an epoch
    epoch_steps, first_step = 1, 0

    def coefficients(self, steps: int) -> Array:
        biases = super().coefficients(steps)
        weights = biases.copy()
        number = self.steps - self.first_step + np.arange(steps)
        last = number % self.epoch_steps == self.epoch_steps - 1
        weights[:, optim.DECAY] = np.where(last, self.penalties[1], self.penalties[0])
        return np.hstack([weights, biases])

    @property
    def n_coefficients(self) -> int:
        """Numbers of one step."""
        return 2 * optim.N_COEFFICIENTS

    def trace(
        self, parameters: Mapping[str, Tensor], grads: Mapping[str, Tensor], column: int
    ) -> list[Tensor]:
        weights = {path: g for path, g in grads.items() if path.endswith("weight")}
        biases = {path: g for path, g in grads.items() if path not in weights}
        traced = super().trace(parameters, weights, column)
        return traced + super().trace(parameters, biases, column + optim.N_COEFFICIENTS)


class _SGD(_Penalised, optim.SGD):
    pass


class _Adam(_Penalised, optim.Adam):
    pass


class _Watch(Callback):
    """Gives the estimator a look at each epoch."""

    def __init__(self, look: Callable[[Trainer, float], None]) -> None:
        self.look = look

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        self.look(trainer, logs["loss"])


def _is_stochastic(estimator: Any) -> bool:
    if estimator.solver not in ("sgd", "adam"):
        raise AttributeError(
            f"partial_fit takes minibatches, which solver={estimator.solver!r} does not"
        )
    return True


class _Perceptron(BaseEstimator):
    """What the two estimators share."""

    n_outputs_: int
    out_activation_: str

    def __init__(self, **parameters: Any) -> None:
        for name, value in parameters.items():
            setattr(self, name, value)

    # -- to be defined: what is learnt and how it is scored --------------------------------------

    def _targets(self, y: Array, dtype: Any, first: bool) -> Array:
        """Targets as the loss takes them; sets what is known of the outputs."""
        raise NotImplementedError

    def _loss(self) -> Callable[[Any, Any], Any]:
        raise NotImplementedError

    def _decide(self, scores: Array) -> Array:
        """Predictions of scores (rows, n_outputs)."""
        raise NotImplementedError

    def _rate(self, y: Array, predicted: Array, weight: Array | None) -> float:
        raise NotImplementedError

    # -- fitting -----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn from X and y.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)
            float32 is trained in float32, everything else in float64.
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array of shape (n_samples,), optional
            One number from 0 up for each row.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        if self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        return self._fit(X, y, sample_weight, incremental=True)

    def _check_parameters(self) -> list[int]:
        for name, (fits, expected) in _CHECKS.items():
            value = getattr(self, name)
            if not fits(value):
                raise ValueError(
                    f"{type(self).__name__}: {name}: expected {expected}, got {value!r}"
                )
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
        if not all(_count(n) for n in sizes):
            raise ValueError(f"hidden_layer_sizes: expected integers from 1 up, got {sizes}")
        return [int(n) for n in sizes]

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Any:
        hidden = self._check_parameters()
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            reset=first,
        )
        X = _dense(X)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        targets = self._targets(y, X.dtype, first)
        class_weight = getattr(self, "class_weight", None)
        if class_weight is not None:
            factors = compute_sample_weight(class_weight, y)
            weight = (factors if weight is None else weight * factors).astype(X.dtype)
        self._random = check_random_state(self.random_state)
        units = [X.shape[1], *hidden, self.n_outputs_]
        if first:
            self._draw(units, X.dtype)
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(X, targets, weight)
            else:
                self._fit_minibatches(X, y, targets, weight, incremental)
        finally:
            del self._random
        if not all(np.isfinite(w).all() for w in (*self.coefs_, *self.intercepts_)):
            raise ValueError(
                "the weights are not finite after training: scale the columns of X, "
                "or try a smaller learning_rate_init"
            )
        return self

    def _draw(self, units: list[int], dtype: Any) -> None:
        """Start from scikit-learn's initial values for this random_state."""
        self.n_layers_, self.n_iter_, self.t_ = len(units), 0, 0
        self.coefs_, self.intercepts_ = [], []
        for n_in, n_out in pairwise(units):
            limit = np.sqrt((2.0 if self.activation == "logistic" else 6.0) / (n_in + n_out))
            draws = [self._random.uniform(-limit, limit, s) for s in ((n_in, n_out), n_out)]
            self.coefs_.append(draws[0].astype(dtype))
            self.intercepts_.append(draws[1].astype(dtype))
        self._optimizer_state: dict[str, Any] | None = None
        self.loss_curve_: list[float] = []
        self.best_loss_: float | None = None if self.early_stopping else np.inf
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        self.best_validation_score_: float | None = -np.inf if self.early_stopping else None

    @property
    def _activation(self) -> str | None:
        return _ACTIVATIONS.get(self.activation, self.activation)

    def _network(self) -> nn.Sequential:
        """The network with the weights learnt so far."""
        layers = []
        for i, (w, b) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            last = i == len(self.coefs_) - 1
            f = None if last else self._activation
            layer = nn.Dense(w.shape[0], w.shape[1], f, init=w.T, dtype=w.dtype)
            layer.parameters()["bias"].data = b.copy()
            layers.append(layer)
        return nn.Sequential(*layers)

    def _keep(self, network: nn.Sequential) -> None:
        """Take the weights out of the network."""
        self.coefs_ = [np.ascontiguousarray(layer.weight.data.T) for layer in network.layers]
        self.intercepts_ = [layer.bias.data.copy() for layer in network.layers]

    def _penalty(self, network: nn.Sequential, rows: float) -> float:
        squares = sum(float(np.sum(np.square(d.weight.data))) for d in network.layers)
        return 0.5 * self.alpha * squares / rows

    def _fit_minibatches(
        self, X: Array, y: Array, targets: Array, weight: Array | None, incremental: bool
    ) -> None:
        held = None
        if self.early_stopping:
            X, targets, weight, held = self._hold_out(X, y, targets, weight)
        batch = min(200, len(X)) if self.batch_size == "auto" else int(self.batch_size)
        if batch > len(X):
            warnings.warn(
                f"batch_size={batch} is larger than the number of rows: {len(X)} is used",
                stacklevel=4,
            )
            batch = len(X)
        if weight is not None and not weight.sum() > 0:
            raise ValueError("sample_weight: expected a sum above 0")
        optimizer = self._optimizer()
        if incremental and self._optimizer_state is not None:
            _restore(optimizer, self._optimizer_state)
        mean = 1.0 if weight is None else float(weight.mean())
        rest = len(X) % batch or batch
        optimizer.epoch_steps = -(-len(X) // batch)
        optimizer.first_step = optimizer.steps
        optimizer.penalties = (self.alpha / (batch * mean), self.alpha / (rest * mean))
        network = self._network()
        trainer = Trainer(
            network,
            self._loss(),
            optimizer,
            seed=int(self._random.randint(2**31 - 1)),
            threads=self.threads,
        )
        progress = _Epochs(self, held, batch * mean, len(X), incremental)
        try:
            trainer.fit(
                X,
                targets,
                sample_weight=weight,
                epochs=1 if incremental else self.max_iter,
                batch_size=batch,
                shuffle=bool(self.shuffle),
                callbacks=[_Watch(progress.look)],
            )
        except KeyboardInterrupt:
            warnings.warn("training was interrupted: the weights so far are kept", stacklevel=4)
        if not incremental and not trainer.stop and self.n_iter_ == self.max_iter:
            warnings.warn(
                f"training has not converged after max_iter={self.max_iter} epochs",
                ConvergenceWarning,
                stacklevel=4,
            )
        self._keep(network)
        self._optimizer_state = _state(optimizer)
        if progress.best is not None:
            self.coefs_, self.intercepts_ = progress.best

    def _optimizer(self) -> Any:
        if self.solver == "adam":
            betas = (self.beta_1, self.beta_2)
            return _Adam(self.learning_rate_init, betas, self.epsilon)
        nesterov = bool(self.nesterovs_momentum) and self.momentum > 0
        return _SGD(self.learning_rate_init, self.momentum, nesterov)

    def _hold_out(
        self, X: Array, y: Array, targets: Array, weight: Array | None
    ) -> tuple[Array, Array, Array | None, tuple[Array, Array, Array | None]]:
        if self.validation_fraction * len(X) <= 1:
            raise ValueError(
                f"early_stopping: validation_fraction={self.validation_fraction} of {len(X)} rows "
                "holds out fewer than 2: give more"
            )
        stratify = y if isinstance(self, ClassifierMixin) and y.ndim == 1 else None
        train, test = train_test_split(
            np.arange(len(X)),
            random_state=self._random,
            test_size=self.validation_fraction,
            stratify=stratify,
        )
        picked = None if weight is None else weight[train]
        held = (X[test], y[test], None if weight is None else weight[test])
        return X[train], targets[train], picked, held

    def _fit_lbfgs(self, X: Array, targets: Array, weight: Array | None) -> None:
        network, loss = self._network(), self._loss()
        x, y = Tensor(X), Tensor(targets)
        weights = Tensor(np.ones(len(X), X.dtype) if weight is None else weight)
        rows = float(weights.data.sum(dtype=np.float64))
        parameters = list(network.parameters().values())
        cuts = np.cumsum([p.size for p in parameters])[:-1]
        is_weight = np.concatenate([np.full(p.size, p.ndim == 2) for p in parameters])

        def value_and_gradient(flat: Array) -> tuple[float, Array]:
            for p, part in zip(parameters, np.split(flat, cuts), strict=True):
                p.data = part.reshape(p.shape).astype(p.dtype)
                p.grad = None
            total = graph.apply("weighted_mean", (loss(network(x), y), weights))
            total.backward()
            grads = [np.asarray(p.grad) for p in parameters]
            flat_grad = np.concatenate([np.ravel(g) for g in grads]).astype(np.float64)
            flat_grad += self.alpha / rows * np.where(is_weight, flat, 0.0)
            return float(total.item()) + self._penalty(network, rows), flat_grad

        start = np.concatenate([p.data.ravel() for p in parameters]).astype(np.float64)
        with backend.threads(self.threads):
            found = scipy.optimize.minimize(
                value_and_gradient,
                start,
                method="L-BFGS-B",
                jac=True,
                options={"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol},
            )
            value_and_gradient(found.x)
        self._keep(network)
        self.n_iter_, self.loss_ = min(int(found.nit), self.max_iter), float(found.fun)
        if found.status != 0:
            warnings.warn(
                f"lbfgs has not converged after {found.nit} iterations: {found.message}",
                ConvergenceWarning,
                stacklevel=4,
            )

    # -- prediction --------------------------------------------------------------------------------

    def _scores(self, X: Any) -> Array:
        """The last layer's outputs, (rows, n_outputs)."""
        check_is_fitted(self, "coefs_")
        X = validate_data(
            self, X, accept_sparse=["csr", "csc"], dtype=(np.float64, np.float32), reset=False
        )
        dtype = self.coefs_[0].dtype
        out = np.empty((X.shape[0], self.n_outputs_), dtype)
        weights = [np.ascontiguousarray(w.T) for w in self.coefs_]
        with backend.threads(self.threads), graph.no_grad():
            for first in range(0, len(out), _PREDICT_ROWS):
                rows = slice(first, first + _PREDICT_ROWS)
                h = Tensor(np.ascontiguousarray(_dense(X[rows]), dtype))
                for i, (w, b) in enumerate(zip(weights, self.intercepts_, strict=True)):
                    last = i == len(weights) - 1
                    h = functions.dense(h, w, b, None if last else self._activation)
                out[rows] = h.data
        return out

    def predict(self, X: Any) -> Array:
        """Predict the targets of X.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._decide(self._scores(X))

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one safetensors file, without pickle.

        Parameters
        ----------
        path
            The file.

        Raises
        ------
        UsageError
            If a parameter is no plain value. A `loss` of your own is left out: give it to `load`.
        """
        check_is_fitted(self, "coefs_")
        parameters = {k: _plain(k, v) for k, v in self.get_params(deep=False).items()}
        tensors = {f"coef/{i}": w for i, w in enumerate(self.coefs_)}
        tensors |= {f"intercept/{i}": b for i, b in enumerate(self.intercepts_)}
        learnt: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name in parameters or name in ("coefs_", "intercepts_", "_sklearn_version"):
                continue
            if name == "_optimizer_state":
                if value is not None:
                    tensors |= {f"optimizer/{k}": a for k, a in value["arrays"].items()}
                    learnt[name] = {k: v for k, v in value.items() if k != "arrays"}
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
                tensors[f"array/{name}"] = value
            elif isinstance(value, np.ndarray):
                if not all(isinstance(v, str) for v in value.tolist()):
                    raise UsageError(f"save: {name} holds {value.dtype}, not numbers or strings")
                learnt[name] = {"strings": value.tolist(), "object": value.dtype == object}
            else:
                learnt[name] = _plain(name, value)
        config = {"kind": type(self).__name__, "parameters": parameters, "learnt": learnt}
        checkpoint.save_tensors(path, tensors, config)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, loss: Any = None) -> Any:
        """Read what `save` wrote.

        Parameters
        ----------
        path
            The file.
        loss
            The estimator's loss where it is a function of your own; the file does not hold it.

        Returns
        -------
        The fitted estimator.
        """
        tensors, config = checkpoint.load_tensors(path)
        if config.get("kind") != cls.__name__:
            raise FileError(
                f"{os.fspath(path)}: holds a {config.get('kind')}, expected a {cls.__name__}"
            )
        parameters = {k: _unplain(v) for k, v in config["parameters"].items()}
        if loss is not None:
            parameters["loss"] = loss
        elif parameters["loss"] is None:
            raise UsageError(f"{os.fspath(path)}: was fitted with a loss of your own: load(loss=)")
        made: Any = cls(**parameters)
        for name, value in config["learnt"].items():
            if isinstance(value, dict) and "strings" in value:
                setattr(made, name, np.array(value["strings"], object if value["object"] else None))
            else:
                setattr(made, name, _unplain(value))
        for part, name in (("coef", "coefs_"), ("intercept", "intercepts_")):
            n = sum(key.startswith(f"{part}/") for key in tensors)
            setattr(made, name, [tensors[f"{part}/{i}"] for i in range(n)])
        for key, value in tensors.items():
            if key.startswith("array/"):
                setattr(made, key.removeprefix("array/"), value)
        if config["learnt"].get("_optimizer_state") is not None:
            made._optimizer_state["arrays"] = {
                k.removeprefix("optimizer/"): v
                for k, v in tensors.items()
                if k.startswith("optimizer/")
            }
        else:
            made._optimizer_state = None
        return made

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _Epochs:
    """What happens between epochs: the loss curve, the learning rate, when to stop."""

    def __init__(
        self, model: Any, held: tuple[Any, ...] | None, rows: float, n: int, incremental: bool
    ) -> None:
        self.model, self.held, self.rows, self.n = model, held, rows, n
        self.waited = 0
        self.best: tuple[list[Array], list[Array]] | None = None
        model.n_iter_ = 0
        if held is not None:
            model.validation_scores_, model.best_validation_score_ = [], -np.inf
        if not incremental:
            model.loss_curve_, model.best_loss_ = [], None if held is not None else np.inf

    def look(self, trainer: Trainer, loss: float) -> None:
        """After an epoch."""
        m = self.model
        m.loss_ = loss + m._penalty(trainer.model, self.rows)
        m.loss_curve_.append(m.loss_)
        m.n_iter_ += 1
        m.t_ += self.n
        if m.verbose:
            print(f"epoch {m.n_iter_}: loss {m.loss_:.8f}")
        better = self._by_loss() if self.held is None else self._by_score(trainer)
        self.waited = 0 if better else self.waited + 1
        optimizer = trainer.optimizer
        if m.solver == "sgd" and m.learning_rate == "invscaling":
            optimizer.lr = m.learning_rate_init / (m.t_ + 1) ** m.power_t
        if self.waited > m.n_iter_no_change:
            if m.solver == "sgd" and m.learning_rate == "adaptive" and optimizer.lr > 1e-6:
                optimizer.lr /= 5.0
                self.waited = 0
            else:
                trainer.stop = True

    def _by_loss(self) -> bool:
        m = self.model
        before = np.inf if m.best_loss_ is None else m.best_loss_
        m.best_loss_ = min(before, m.loss_)
        return bool(m.loss_ <= before - m.tol)

    def _by_score(self, trainer: Trainer) -> bool:
        m = self.model
        x, y, weight = self.held  # type: ignore[misc]
        score = m._rate(y, m._decide(trainer.predict(x)), weight)
        m.validation_scores_.append(score)
        if m.verbose:
            print(f"validation score: {score:.6f}")
        before = m.best_validation_score_
        if score > before or self.best is None:
            m.best_validation_score_ = score
            m._keep(trainer.model)
            self.best = (m.coefs_, m.intercepts_)
        return bool(score >= before + m.tol)


# -- the two estimators ----------------------------------------------------------------------------


class MLPClassifier(ClassifierMixin, _Perceptron):
    """Multi-layer perceptron for classes: binary, multi-class and multi-label.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int
        Widths of the hidden layers.
    activation : str
        ``identity``, ``logistic``, ``tanh``, ``relu`` as in scikit-learn; also ``gelu``, ``swish``,
        ``elu``, ``leaky_relu``, ``softplus``, ``hard_tanh`` and what else chainrule has.
    solver : {"adam", "sgd", "lbfgs"}
    alpha : float
        Factor of the L2 penalty on weights.
    batch_size : int or "auto"
        ``"auto"`` is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}
        For ``sgd``.
    learning_rate_init, power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, \
momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon, \
n_iter_no_change, max_fun
        As in scikit-learn.
    loss : "log_loss" or callable
        ``loss(scores, targets)`` of chainrule ops, one value a row. Targets are labels from 0
        (rows,), int64, for three or more classes, else 0.0 and 1.0 (rows, n_outputs).
    class_weight : dict, "balanced" or None
        Weights of the classes, as elsewhere in scikit-learn.
    threads : int or None
        None lets the core choose. Results do not depend on it.

    Attributes
    ----------
    classes_, coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_scores_, \
best_validation_score_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
        As in scikit-learn. `loss_` is the mean over an epoch's minibatches plus the penalty of the
        weights at its end.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: int = 15000,
        loss: Any = "log_loss",
        class_weight: Any = None,
        threads: int | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(**given)

    def _targets(self, y: Array, dtype: Any, first: bool) -> Array:
        check_classification_targets(y)
        multilabel = type_of_target(y).startswith("multilabel")
        if y.ndim == 2 and not multilabel:
            raise ValueError("y: expected labels (n_samples,) or 0 and 1 (n_samples, n_labels)")
        found = np.arange(y.shape[1]) if multilabel else np.unique(y)
        if first and not hasattr(self, "_classes_given"):
            self.classes_, self._multilabel = found, multilabel
        elif multilabel != self._multilabel:
            raise ValueError("y: expected the kind of target of the previous call")
        unknown = np.setdiff1d(found, self.classes_)
        if len(unknown) or (self.warm_start and len(found) != len(self.classes_)):
            raise ValueError(f"y: expected the classes {self.classes_} as before, got {found}")
        many = not multilabel and len(self.classes_) > 2
        self.n_outputs_ = len(self.classes_) if many or multilabel else 1
        self.out_activation_ = "softmax" if many else "logistic"
        if multilabel:
            return (np.asarray(y) != 0).astype(dtype)
        labels = np.searchsorted(self.classes_, y).astype(np.int64)
        return labels if many else labels.astype(dtype)[:, None]

    def _loss(self) -> Callable[[Any, Any], Any]:
        if callable(self.loss):
            return self.loss
        if self.loss != "log_loss":
            raise ValueError(f"loss: expected 'log_loss' or a function, got {self.loss!r}")
        if self.out_activation_ == "softmax":
            return losses.SoftmaxCrossEntropy()
        binary = losses.Logistic()
        return lambda z, y: functions.sum(binary(z, y), axis=1)

    def _decide(self, scores: Array) -> Array:
        if self._multilabel:
            return (scores > 0).astype(int)
        if self.out_activation_ == "softmax":
            return self.classes_[scores.argmax(axis=1)]
        return self.classes_[np.minimum(scores[:, 0] > 0, len(self.classes_) - 1).astype(int)]

    def _rate(self, y: Array, predicted: Array, weight: Array | None) -> float:
        return float(accuracy_score(y, predicted, sample_weight=weight))

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Go on with one epoch over X and y.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array of shape (n_classes,)
            All classes there are; needed in the first call.

        Returns
        -------
        self
        """
        if not hasattr(self, "coefs_"):
            if classes is None:
                raise ValueError("partial_fit: the first call needs classes")
            multilabel = type_of_target(y).startswith("multilabel")
            self.classes_, self._multilabel = np.unique(classes), multilabel
            self._classes_given = True
            try:
                return self._partial_fit(X, y, sample_weight)
            finally:
                del self._classes_given
        if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"partial_fit: classes={classes} differ from before: {self.classes_}")
        return self._partial_fit(X, y, sample_weight)

    def predict_proba(self, X: Any) -> Array:
        """Probabilities: softmax or sigmoid of the scores.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        scores = Tensor(self._scores(X))
        with graph.no_grad():
            if self.out_activation_ == "softmax":
                return functions.softmax(scores, axis=-1).data
            p = functions.sigmoid(scores).data
        if self._multilabel:
            return p
        return np.hstack([1.0 - p, p]) if len(self.classes_) == 2 else np.ones_like(p)

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`.

        Parameters
        ----------
        X : array or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _Perceptron):
    """Multi-layer perceptron for numbers, one or several a row.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "absolute_error", "huber"} or callable
        A function of your own is ``loss(outputs, targets)`` of chainrule ops on (rows, n_outputs),
        one value a row.
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, \
learning_rate_init, power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, \
nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon, \
n_iter_no_change, max_fun, threads
        As for `MLPClassifier`.

    Attributes
    ----------
    coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_scores_, \
best_validation_score_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
        As for `MLPClassifier`. The squared error is ``sum((z - y)^2) / 2`` over the outputs.
    """

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: int = 15000,
        threads: int | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(**given)

    def _targets(self, y: Array, dtype: Any, first: bool) -> Array:
        y = np.asarray(y, dtype)
        n = 1 if y.ndim == 1 else y.shape[1]
        if not first and n != self.n_outputs_:
            raise ValueError(f"y: expected {self.n_outputs_} outputs as before, got {n}")
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError("loss='poisson': expected y from 0 up")
        self.n_outputs_ = n
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        return y.reshape(len(y), n)

    def _loss(self) -> Callable[[Any, Any], Any]:
        if callable(self.loss):
            return self.loss
        if self.loss not in _REGRESSION:
            known = ", ".join(_REGRESSION)
            raise ValueError(f"loss: expected one of {known} or a function, got {self.loss!r}")
        return _REGRESSION[self.loss]

    def _decide(self, scores: Array) -> Array:
        if self.out_activation_ == "exp":
            with graph.no_grad():
                scores = functions.exp(Tensor(scores)).data
        return scores[:, 0] if self.n_outputs_ == 1 else scores

    def _rate(self, y: Array, predicted: Array, weight: Array | None) -> float:
        return float(r2_score(y, predicted, sample_weight=weight))

    @available_if(_is_stochastic)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Go on with one epoch over X and y.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight)


_REGRESSION: dict[str, Callable[[Any, Any], Any]] = {
    "squared_error": lambda z, y: functions.sum(functions.square(z - y), axis=1) * 0.5,
    "poisson": lambda z, y: functions.sum(functions.exp(z) - y * z, axis=1),
    "absolute_error": lambda z, y: functions.sum(functions.abs(z - y), axis=1),
    "huber": lambda z, y: functions.sum(losses.Huber()(z, y), axis=1),
}


def _dense(X: Any) -> Array:
    return X.toarray() if scipy.sparse.issparse(X) else X


def _state(optimizer: Any) -> dict[str, Any]:
    """An optimizer's counters and arrays as plain values."""
    arrays = {
        f"{path}/{i}": s.data.copy()
        for path, states in optimizer.states.items()
        for i, s in enumerate(states)
    }
    powers = list(getattr(optimizer, "_powers", ()))
    return {"steps": optimizer.steps, "lr": optimizer.lr, "powers": powers, "arrays": arrays}


def _restore(optimizer: Any, state: Mapping[str, Any]) -> None:
    optimizer.steps, optimizer.lr = state["steps"], state["lr"]
    if hasattr(optimizer, "_powers"):
        optimizer._powers = tuple(state["powers"])
    for key, array in state["arrays"].items():
        path, _, _ = key.rpartition("/")
        optimizer.states.setdefault(path, []).append(Tensor(array.copy()))


def _plain(name: str, value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if name == "loss" and callable(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return {"sequence": [_plain(name, v) for v in value], "tuple": isinstance(value, tuple)}
    if isinstance(value, dict):
        return {"items": [[_plain(name, k), _plain(name, v)] for k, v in value.items()]}
    raise UsageError(
        f"save: {name} is a {type(value).__name__}, which a file without pickle cannot hold"
    )


def _unplain(value: Any) -> Any:
    if isinstance(value, dict) and "sequence" in value:
        made = [_unplain(v) for v in value["sequence"]]
        return tuple(made) if value["tuple"] else made
    if isinstance(value, dict) and "items" in value:
        return {_unplain(k): _unplain(v) for k, v in value["items"]}
    return value
