"""The contenders that only the suite has: scikit-learn and thinc."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from chainrule import bench


class Sklearn:
    """scikit-learn's MLPClassifier, which is given its minibatches in order."""

    def __init__(self, case: bench.Case, threads: int | None) -> None:
        if case.vocabulary or case.adam:
            raise ValueError("not a case for MLPClassifier")
        kind = import_module("sklearn.neural_network").MLPClassifier
        self.case, self.epoch, (self.x, self.y) = case, 0, case.data()
        self.model = kind(
            case.widths[1:-1], activation=case.activation, solver="sgd", alpha=0.0,
            batch_size=case.batch, learning_rate_init=case.lr, momentum=0.0, shuffle=False,
            max_iter=1, tol=0.0, n_iter_no_change=10**9, warm_start=True,
            nesterovs_momentum=False,
        )  # fmt: skip
        first = slice(case.batch)  # makes the arrays that the start goes into
        self.model.partial_fit(self.x[first], self.y[first], classes=np.unique(self.y))
        start = case.start()
        self.model.coefs_ = [np.ascontiguousarray(w.T) for w in start[::2]]
        self.model.intercepts_ = start[1::2]

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            order = self.case.order(self.epoch)
            self.epoch += 1
            self.model.fit(self.x[order], self.y[order])

    def parameters(self) -> list[Any]:
        pairs = zip(self.model.coefs_, self.model.intercepts_, strict=True)
        return [p for w, b in pairs for p in (w.T, b)]


class Thinc:
    """thinc, which has no tanh layer."""

    def __init__(self, case: bench.Case, threads: int | None) -> None:
        if case.activation != "relu":
            raise ValueError("thinc has no tanh layer")
        api = import_module("thinc.api")
        self.case, self.epoch, (self.x, self.y) = case, 0, case.data()
        widths = case.widths
        layers = [
            api.Relu(n, k) for k, n in pairwise(widths[:-1])
        ] + [api.Softmax(widths[-1], widths[-2])]  # fmt: skip
        self.model = api.chain(*layers)
        self.model.initialize(X=self.x[:2])
        start = iter(case.start())
        for layer in self.model.layers:
            layer.set_param("W", next(start))
            layer.set_param("b", next(start))
        options = {"L2": 0.0, "grad_clip": 0.0, "use_averages": False}
        kind = api.Adam if case.adam else api.SGD
        self.optimizer = kind(case.lr, **options)

    def train(self, epochs: int) -> None:
        batch = self.case.batch
        every = np.arange(batch)
        for _ in range(epochs):
            order = self.case.order(self.epoch)
            self.epoch += 1
            for first in range(0, len(order), batch):
                rows = order[first : first + batch]
                p, backward = self.model.begin_update(self.x[rows])
                p[every, self.y[rows]] -= 1.0
                p /= batch
                backward(p)
                self.model.finish_update(self.optimizer)

    def parameters(self) -> list[Any]:
        return [layer.get_param(name) for layer in self.model.layers for name in "Wb"]


CONTENDERS = {**bench.CONTENDERS, "sklearn": Sklearn, "thinc": Thinc}


def applies(case: bench.Case, name: str) -> bool:
    """Whether a contender has what a case needs."""
    if name == "numpy":
        return not case.ppo
    if name == "sklearn":
        return case.name in ("rl", "mnist", "mid")
    return name != "thinc" or case.activation == "relu"
