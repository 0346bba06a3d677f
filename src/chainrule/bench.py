"""Whole training steps beside other libraries: the cases, and the contenders as experts write them.

Every contender starts from the same weights and trains on the same shuffled minibatches; losses are
compared before anything is timed. `chainrule bench` runs the short form below; the repository's
``benchmarks/suite.py`` runs the long one, with pinned threads and intervals.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import backend, functions, losses, nn, optim
from .errors import UsageError
from .graph import Tensor
from .trainer import Trainer

Array = NDArray[Any]

CHECKED_STEPS = 100
CLIP, VALUE_COST, ENTROPY_BONUS, MAX_NORM = 0.2, 0.5, 0.01, 0.5  # of the ppo case
_ORDERS = 16  # shuffles that the peers are given for nothing, over and over


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes
    ----------
    batch, widths, activation, lr, adam
        The network and how it is trained: softmax cross entropy but for ppo, whose two towers
        have these widths and two and one outputs.
    steps
        Steps of an epoch.
    vocabulary, dim
        Of a trained embedding in front, whose window fills the first width; 0 for none.
    figures
        What is aimed at: time(peer) / time(chainrule), and the share of the FMA peak.
    """

    name: str
    batch: int
    widths: tuple[int, ...]
    activation: str
    steps: int
    lr: float
    adam: bool = False
    vocabulary: int = 0
    dim: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def ppo(self) -> bool:
        """Whether this is the case of two towers."""
        return self.name == "ppo"

    @property
    def towers(self) -> tuple[tuple[int, ...], ...]:
        """The widths of each network."""
        return ((*self.widths, 2), (*self.widths, 1)) if self.ppo else (self.widths,)

    @property
    def flops(self) -> int:
        """Of a step's matrix products; the first layer's dx counts where a table needs it."""
        total = 0
        for widths in self.towers:
            for i, (k, n) in enumerate(pairwise(widths)):
                total += (6 if i or self.vocabulary else 4) * self.batch * k * n
        return total

    def data(self) -> tuple[Array, Any]:
        """Inputs and targets of an epoch: learnable, a tenth of the labels random."""
        rng = np.random.default_rng(1)
        x: Array
        n, k = self.steps * self.batch, self.widths[0]
        if self.ppo:
            x = rng.normal(size=(n, k)).astype(np.float32)
            return x, {
                "action": rng.integers(0, 2, n),
                "old": np.log(rng.uniform(0.4, 0.6, n)).astype(np.float32),
                "advantage": rng.normal(size=n).astype(np.float32),
                "value": np.tanh(x.sum(axis=1)).astype(np.float32),
            }
        classes = self.widths[-1]
        if self.vocabulary:
            x = rng.integers(0, self.vocabulary, (n, k // self.dim))
            y = x[:, 0] % classes
        else:
            x = rng.normal(size=(n, k)).astype(np.float32)
            y = (x @ rng.normal(size=(k, classes))).argmax(axis=1)
        return x, np.where(rng.random(n) < 0.1, rng.integers(0, classes, n), y)

    def start(self) -> list[Array]:
        """The first weights: the table where there is one, then w and b of each layer."""
        rng = np.random.default_rng(2)
        first = []
        if self.vocabulary:
            first.append(rng.uniform(-0.2, 0.2, (self.vocabulary, self.dim)).astype(np.float32))
        for widths in self.towers:
            for k, n in pairwise(widths):
                limit = (6.0 / (k + n)) ** 0.5
                first.append(rng.uniform(-limit, limit, (n, k)).astype(np.float32))
                first.append(np.zeros(n, np.float32))
        return first

    def order(self, epoch: int) -> Array:
        """The shuffle of an epoch, as the Trainer draws it from seed 0."""
        key = backend.stream_key(0, "shuffle")
        return backend.permutation(key, epoch, self.steps * self.batch)

    def loss(self, parameters: list[Array]) -> float:
        """The mean loss over all rows in float64, by which contenders are compared."""
        x, y = self.data()
        weights = [p.astype(np.float64) for p in parameters]
        h: Array = x.astype(np.float64)
        if self.vocabulary:
            h, weights = weights[0][x].reshape(len(x), -1), weights[1:]
        outputs = []
        for widths in self.towers:
            z = h
            for i in range(len(widths) - 1):
                w, b, *weights = weights
                z = z @ w.T + b
                if i < len(widths) - 2:
                    z = np.tanh(z) if self.activation == "tanh" else np.maximum(z, 0.0)
            outputs.append(z)
        top = outputs[0].max(axis=1, keepdims=True)
        logs = outputs[0] - top
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        if not self.ppo:
            return float(-logs[np.arange(len(x)), y].mean())
        ratio = np.exp(logs[np.arange(len(x)), y["action"]] - y["old"])
        gain = np.minimum(
            ratio * y["advantage"], np.clip(ratio, 1.0 - CLIP, 1.0 + CLIP) * y["advantage"]
        )
        entropy = -(np.exp(logs) * logs).sum(axis=1)
        value = np.square(outputs[1][:, 0] - y["value"])
        return float((VALUE_COST * value - gain - ENTROPY_BONUS * entropy).mean())


CASES = {
    c.name: c
    for c in (
        Case("ner", 32, (250, 100, 5), "tanh", 200, 0.1, vocabulary=20_000, dim=50,
             figures={"torch": 8.5, "jax": 1.8, "numpy": 3.2, "peak": 0.62}),
        Case("ner256", 256, (250, 100, 9), "tanh", 50, 0.1, vocabulary=20_000, dim=50,
             figures={"torch": 2.5, "jax": 1.5, "numpy": 2.4, "peak": 0.64}),
        Case("rl", 64, (8, 64, 64, 4), "tanh", 200, 0.05,
             figures={"torch": 18, "jax": 1.7, "numpy": 5.7, "peak": 0.56, "sklearn": 20}),
        Case("ppo", 64, (8, 64, 64), "tanh", 100, 3e-4, adam=True,
             figures={"torch": 15, "jax": 1.5}),
        Case("mnist", 128, (784, 128, 10), "relu", 50, 0.02,
             figures={"torch": 1.8, "jax": 1.08, "numpy": 1.2, "peak": 0.83, "sklearn": 4}),
        Case("mid", 256, (512, 512, 512, 10), "relu", 20, 0.02,
             figures={"torch": 1.2, "jax": 1.2, "numpy": 1.1, "peak": 0.86, "sklearn": 2}),
        Case("big", 1024, (1024, 1024, 1024, 1024), "relu", 4, 0.02,
             figures={"torch": 1.0, "jax": 1.35, "numpy": 1.0, "peak": 0.82}),
        Case("mnist-adam", 128, (784, 128, 10), "relu", 50, 3e-4, adam=True,
             figures={"torch": 1.75, "jax": 1.1, "numpy": 1.4, "peak": 0.79}),
    )
}  # fmt: skip


class Contender(Protocol):
    """One library's way to train a case."""

    def train(self, epochs: int) -> None:
        """Train for some epochs; the work is done when it returns."""
        ...

    def parameters(self) -> list[Array]:
        """The weights in the order of `Case.start`, as (outputs, inputs) matrices."""
        ...


class Chainrule:
    """This library: one `Trainer.fit`."""

    def __init__(self, case: Case, threads: int | None) -> None:
        self.case, (self.x, self.y) = case, case.data()
        start = case.start()
        layers: list[nn.Module] = []
        if case.vocabulary:
            layers += [nn.Embedding(case.vocabulary, case.dim, init=start.pop(0)), nn.Flatten()]
        towers = []
        for widths in case.towers:
            for i, (k, n) in enumerate(pairwise(widths)):
                last = i == len(widths) - 2
                layers.append(nn.Dense(k, n, None if last else case.activation, init=start.pop(0)))
                start.pop(0)  # biases start at 0
            towers.append(nn.Sequential(*layers))
            layers = []
        model = _Towers(*towers) if case.ppo else towers[0]
        loss = _ppo_loss if case.ppo else losses.SoftmaxCrossEntropy()
        clip = MAX_NORM if case.ppo else None
        kind = optim.Adam if case.adam else optim.SGD
        self.trainer = Trainer(model, loss, kind(case.lr, clip_norm=clip), seed=0, threads=threads)

    def train(self, epochs: int) -> None:
        self.trainer.fit(self.x, self.y, epochs=epochs, batch_size=self.case.batch)

    def parameters(self) -> list[Array]:
        return [p.data for p in self.trainer.model.parameters().values()]


class _Towers(nn.Module):
    def __init__(self, policy: nn.Module, value: nn.Module) -> None:
        self.policy, self.value = policy, value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(x), self.value(x)


def _ppo_loss(outputs: tuple[Tensor, Tensor], y: dict[str, Tensor]) -> Tensor:
    logs, batch = functions.log_softmax(outputs[0]), outputs[0].shape[0]
    chosen = functions.take_along_axis(logs, functions.reshape(y["action"], (batch, 1)), axis=1)
    ratio = functions.exp(functions.reshape(chosen, (batch,)) - y["old"])
    bounded = functions.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
    gain = functions.minimum(ratio * y["advantage"], bounded * y["advantage"])
    entropy = -functions.sum(functions.exp(logs) * logs, axis=1)
    value = functions.square(functions.reshape(outputs[1], (batch,)) - y["value"])
    return value * VALUE_COST - gain - entropy * ENTROPY_BONUS


class Numpy:
    """By hand in numpy: no array is made in a step, every operation that can works in place."""

    def __init__(self, case: Case, threads: int | None) -> None:
        if case.ppo:
            raise UsageError("ppo is not written by hand in numpy")
        self.case, self.epoch = case, 0
        (self.x, self.y), (self.w, self.b) = case.data(), ([], [])
        self.orders = [case.order(e) for e in range(_ORDERS)]
        weights = case.start()
        self.table = weights.pop(0) if case.vocabulary else None
        self.w, self.b = weights[::2], weights[1::2]
        self.h = [np.empty((case.batch, k), np.float32) for k in case.widths]
        self.d = [np.empty_like(h) for h in self.h]
        self.g = [np.empty_like(p) for p in (*self.w, *self.b)]
        self.moments = [(np.zeros_like(p), np.zeros_like(p), np.empty_like(p)) for p in self.g]
        self.updates = 0

    def train(self, epochs: int) -> None:
        batch = self.case.batch
        for _ in range(epochs):
            order = self.orders[self.epoch % _ORDERS]
            self.epoch += 1
            for first in range(0, len(order), batch):
                self._step(order[first : first + batch])

    def _step(self, rows: Array) -> None:
        case, h, d = self.case, self.h, self.d
        depth, tanh = len(self.w), case.activation == "tanh"
        y = self.y[rows]
        if self.table is None:
            np.take(self.x, rows, axis=0, out=h[0], mode="clip")
        else:
            ids = self.x[rows].ravel()
            np.take(self.table, ids, axis=0, out=h[0].reshape(-1, case.dim), mode="clip")
        for i in range(depth):
            z = np.matmul(h[i], self.w[i].T, out=h[i + 1])
            z += self.b[i]
            if i < depth - 1:
                np.tanh(z, out=z) if tanh else np.maximum(z, 0.0, out=z)
        p = h[depth]
        p -= p.max(axis=1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True) * np.float32(case.batch)
        p[np.arange(case.batch), y] -= np.float32(1.0 / case.batch)
        delta = p
        for i in reversed(range(depth)):
            np.matmul(delta.T, h[i], out=self.g[i])
            delta.sum(axis=0, out=self.g[depth + i])
            if not i and self.table is None:
                break
            np.matmul(delta, self.w[i], out=d[i])
            if not i and self.table is not None:
                d[0] *= np.float32(-case.lr)
                at = (ids[:, None] * case.dim + np.arange(case.dim)).ravel()
                np.add.at(self.table.reshape(-1), at, d[0].ravel())  # 1-d has a fast path
            elif tanh:
                h[i] *= h[i]
                d[i] *= np.subtract(1.0, h[i], out=h[i])
            else:
                d[i] *= h[i] > 0.0
            delta = d[i]
        self._update()

    def _update(self) -> None:
        self.updates += 1
        if not self.case.adam:
            for p, g in zip((*self.w, *self.b), self.g, strict=True):
                g *= np.float32(self.case.lr)
                p -= g
            return
        rate = np.float32(self.case.lr / (1.0 - 0.9**self.updates))
        scale = np.float32(1.0 / (1.0 - 0.999**self.updates) ** 0.5)
        for p, g, (m, v, t) in zip((*self.w, *self.b), self.g, self.moments, strict=True):
            m *= np.float32(0.9)
            m += np.multiply(g, np.float32(0.1), out=t)
            v *= np.float32(0.999)
            g *= g
            v += np.multiply(g, np.float32(0.001), out=g)
            np.sqrt(v, out=t)
            t *= scale
            t += np.float32(1e-8)
            np.divide(m, t, out=t)
            p -= np.multiply(t, rate, out=t)

    def parameters(self) -> list[Array]:
        head = [] if self.table is None else [self.table]
        return head + [p for pair in zip(self.w, self.b, strict=True) for p in pair]


class Torch:
    """PyTorch: fused optimizers, a sparse embedding, the loss eager or through torch.compile."""

    compiled = False

    def __init__(self, case: Case, threads: int | None) -> None:
        self.torch = torch = import_module("torch")
        if threads:
            torch.set_num_threads(threads)
        self.case, self.epoch = case, 0
        x, y = case.data()
        self.x = torch.from_numpy(x)
        self.y = {k: torch.from_numpy(v) for k, v in (y if case.ppo else {"y": y}).items()}
        self.orders = [torch.from_numpy(case.order(e)) for e in range(_ORDERS)]
        weights = [torch.from_numpy(w) for w in case.start()]
        self.optimizers = []
        self.embed = None
        if case.vocabulary:
            self.embed = torch.nn.Embedding.from_pretrained(
                weights.pop(0), freeze=False, sparse=True
            )
            self.optimizers.append(torch.optim.SGD(self.embed.parameters(), lr=case.lr))
        act = torch.nn.Tanh if case.activation == "tanh" else torch.nn.ReLU
        self.towers = []
        for widths in case.towers:
            layers: list[Any] = []
            for k, n in pairwise(widths):
                layer = torch.nn.Linear(k, n)
                layer.weight.data.copy_(weights.pop(0))
                layer.bias.data.copy_(weights.pop(0))
                layers += [layer, act()]
            self.towers.append(torch.nn.Sequential(*layers[:-1]))
        self.dense = [p for tower in self.towers for p in tower.parameters()]
        kind = torch.optim.Adam if case.adam else torch.optim.SGD
        self.optimizers.append(kind(self.dense, lr=case.lr, fused=True))
        plain = self._ppo if case.ppo else self._cross_entropy
        self.loss = torch.compile(plain) if self.compiled else plain

    def _cross_entropy(self, x: Any, y: dict[str, Any]) -> Any:
        return self.torch.nn.functional.cross_entropy(self.towers[0](x), y["y"])

    def _ppo(self, x: Any, y: dict[str, Any]) -> Any:
        torch = self.torch
        logs = torch.log_softmax(self.towers[0](x), dim=1)
        ratio = (logs.gather(1, y["action"][:, None])[:, 0] - y["old"]).exp()
        bounded = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
        gain = torch.minimum(ratio * y["advantage"], bounded * y["advantage"])
        entropy = -(logs.exp() * logs).sum(dim=1)
        value = (self.towers[1](x)[:, 0] - y["value"]).square()
        return (VALUE_COST * value - gain - ENTROPY_BONUS * entropy).mean()

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            order = self.orders[self.epoch % _ORDERS]
            self.epoch += 1
            for rows in order.split(self.case.batch):
                x = self.x.index_select(0, rows)
                y = {k: v.index_select(0, rows) for k, v in self.y.items()}
                if self.embed is not None:
                    x = self.embed(x).flatten(1)
                for optimizer in self.optimizers:
                    optimizer.zero_grad(set_to_none=True)
                self.loss(x, y).backward()
                if self.case.ppo:
                    self.torch.nn.utils.clip_grad_norm_(self.dense, MAX_NORM, foreach=True)
                for optimizer in self.optimizers:
                    optimizer.step()

    def parameters(self) -> list[Array]:
        head = [] if self.embed is None else [self.embed.weight]
        return [p.detach().numpy() for p in (*head, *self.dense)]


class TorchCompiled(Torch):
    """The same with the loss and its gradient compiled."""

    compiled = True


class Jax:
    """JAX: an epoch is one jit of a lax.scan, its state donated, the table updated row by row."""

    def __init__(self, case: Case, threads: int | None) -> None:
        self.jax = jax = import_module("jax")
        jnp = import_module("jax.numpy")
        self.case, self.epoch = case, 0
        x, y = case.data()
        self.x = jnp.asarray(x)
        self.y = {k: jnp.asarray(v) for k, v in (y if case.ppo else {"y": y}).items()}
        self.orders = [
            jnp.asarray(case.order(e).reshape(case.steps, case.batch)) for e in range(_ORDERS)
        ]
        weights = [jnp.asarray(w) for w in case.start()]
        table = weights.pop(0) if case.vocabulary else None
        zeros = [jnp.zeros_like(w) for w in weights] if case.adam else []
        self.state = (table, weights, zeros, [jnp.copy(z) for z in zeros], jnp.float32(0.0))
        act = jnp.tanh if case.activation == "tanh" else jax.nn.relu

        def towers(weights: list[Any], x: Any) -> list[Any]:
            outputs, at = [], iter(weights)
            for widths in case.towers:
                h = x
                for i in range(len(widths) - 1):
                    h = h @ next(at).T + next(at)
                    h = act(h) if i < len(widths) - 2 else h
                outputs.append(h)
            return outputs

        def loss(weights: list[Any], x: Any, y: dict[str, Any]) -> Any:
            outputs = towers(weights, x.reshape(case.batch, -1))
            logs = jax.nn.log_softmax(outputs[0])
            label = y["action" if case.ppo else "y"]
            chosen = jnp.take_along_axis(logs, label[:, None], axis=1)[:, 0]
            if not case.ppo:
                return -chosen.mean()
            ratio = jnp.exp(chosen - y["old"])
            bounded = jnp.clip(ratio, 1.0 - CLIP, 1.0 + CLIP)
            gain = jnp.minimum(ratio * y["advantage"], bounded * y["advantage"])
            entropy = -(jnp.exp(logs) * logs).sum(axis=1)
            value = jnp.square(outputs[1][:, 0] - y["value"])
            return (VALUE_COST * value - gain - ENTROPY_BONUS * entropy).mean()

        def step(state: Any, rows: Any, x: Any, y: dict[str, Any]) -> tuple[Any, None]:
            table, weights, m, v, t = state
            inputs, targets = x[rows], {k: a[rows] for k, a in y.items()}
            if table is None:
                grads = jax.grad(loss)(weights, inputs, targets)
            else:
                grads, dx = jax.grad(loss, argnums=(0, 1))(weights, table[inputs], targets)
                table = table.at[inputs].add(-case.lr * dx)
            if case.ppo:
                norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads))
                scale = jnp.minimum(1.0, MAX_NORM / norm)
                grads = [g * scale for g in grads]
            if not case.adam:
                weights = [w - case.lr * g for w, g in zip(weights, grads, strict=True)]
                return (table, weights, m, v, t), None
            t = t + 1.0
            m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
            v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
            rate, scale = case.lr / (1.0 - 0.9**t), 1.0 / jnp.sqrt(1.0 - 0.999**t)
            weights = [
                w - rate * a / (jnp.sqrt(b) * scale + 1e-8)
                for w, a, b in zip(weights, m, v, strict=True)
            ]
            return (table, weights, m, v, t), None

        def epoch(state: Any, order: Any, x: Any, y: dict[str, Any]) -> Any:
            return jax.lax.scan(lambda s, rows: step(s, rows, x, y), state, order)[0]

        self.run = jax.jit(epoch, donate_argnums=0)

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            order = self.orders[self.epoch % _ORDERS]
            self.epoch += 1
            self.state = self.run(self.state, order, self.x, self.y)
        self.jax.block_until_ready(self.state)

    def parameters(self) -> list[Array]:
        head = [] if self.state[0] is None else [self.state[0]]
        return [np.asarray(p) for p in (*head, *self.state[1])]


CONTENDERS: dict[str, Callable[[Case, int | None], Contender]] = {
    "chainrule": Chainrule,
    "numpy": Numpy,
    "torch": Torch,
    "torch.compile": TorchCompiled,
    "jax": Jax,
}


def checked(case: Case, contender: Contender) -> float:
    """Train for CHECKED_STEPS steps or the epochs they fill; the loss after them."""
    contender.train(-(-CHECKED_STEPS // case.steps))
    return case.loss(contender.parameters())


def short(peers: bool, rounds: int = 9, seconds: float = 0.03) -> Iterator[str]:
    """The short form: medians of some alternated rounds on one thread, in this process.

    Parameters
    ----------
    peers
        Beside numpy, time PyTorch and JAX where they are installed.
    rounds, seconds
        How often each contender is timed, and for how long at least.

    Yields
    ------
    str
        A line a case.
    """
    names = ["chainrule", "numpy"]
    if peers:
        names += [n for n in ("torch", "jax") if find_spec(n)]
    yield (f"{'a step':<12}" + "".join(f"{n:>12}{'':10}" for n in names)).rstrip()
    for case in CASES.values():
        if case.name == "big":  # takes minutes: for the long form
            continue
        mine = {n: CONTENDERS[n](case, 1) for n in names if not (case.ppo and n == "numpy")}
        results = {n: checked(case, c) for n, c in mine.items()}
        for name, loss in results.items():
            if not abs(loss - results["chainrule"]) <= 1e-3:
                raise UsageError(
                    f"bench: {name}'s loss of {case.name} after {CHECKED_STEPS} steps is {loss}, "
                    f"ours {results['chainrule']}: not the same training, so not compared"
                )
        times = _in_turn(case, mine, rounds, seconds)
        line = f"{case.name:<12}"
        for name in names:
            if name not in times:
                line += f"{'-':>12}{'':10}"
                continue
            ratio = "" if name == "chainrule" else f"({times[name] / times['chainrule']:.2f}x)"
            line += f"{times[name] * 1e6:9.1f} us {ratio:<10}"
        yield line.rstrip()


def _in_turn(
    case: Case, contenders: Mapping[str, Contender], rounds: int, seconds: float
) -> dict[str, float]:
    """Median seconds a step of each contender."""
    repeats = {n: max(1, round(seconds / timed(case, c, 1) / case.steps))
               for n, c in contenders.items()}  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(timed(case, contender, repeats[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def timed(case: Case, contender: Contender, epochs: int) -> float:
    """Seconds a step."""
    start = time.perf_counter()
    contender.train(epochs)
    return (time.perf_counter() - start) / (epochs * case.steps)


if __name__ == "__main__":
    for text in short("--peers" in sys.argv):
        print(text, flush=True)
