"""What the bridges cost and gain, beside the libraries they lead to.

``python benchmarks/bridges.py``: one thread, the two sides in turn, medians.
Needs scikit-learn and PyTorch.
"""

import os
import statistics
import time
import warnings
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn import neural_network
from torch import nn

from chainrule.interop.sklearn import MLPClassifier
from chainrule.interop.torch import accelerate, fuse

ROUNDS = 7


def medians(*calls):
    """Seconds of each call, run in turn."""
    for call in calls:
        call()
    times = [[] for _ in calls]
    for _ in range(ROUNDS):
        for taken, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def mlp(*widths):
    """A tanh network."""
    torch.manual_seed(0)
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def window():
    """A window network with a sparse embedding."""
    torch.manual_seed(0)
    table = nn.Embedding(20000, 50, sparse=True)
    return nn.Sequential(table, nn.Flatten(), *mlp(250, 100, 5))


def torch_epoch(module, loss, optimizer, x, y):
    """PyTorch's own loop."""
    order = torch.randperm(len(x))
    for i in range(0, len(x), 64):
        rows = order[i : i + 64]
        optimizer.zero_grad()
        loss(module(x[rows]), y[rows]).backward()
        optimizer.step()


def accelerated():
    """An epoch of SGD, batch 64, and one call a step."""
    loss, steps = nn.CrossEntropyLoss(), 100
    x = torch.randn(64 * steps, 8)
    ids = torch.randint(0, 20000, (64 * steps, 5))
    cases = {
        "8-64-64-4": (lambda: mlp(8, 64, 64, 4), x, x[:, :4].argmax(1)),
        "20000x50, 250-100-5": (window, ids, ids[:, 2] % 5),
    }
    for name, (make, x, y) in cases.items():
        own, module, single = make(), make(), make()
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (own, module, single)]
        fast = accelerate(module, loss, optimizers[1], threads=1)
        slow = accelerate(single, loss, optimizers[2], threads=1)

        def epoch(fast=fast, x=x, y=y):
            fast.fit(x, y, epochs=1, batch_size=64)

        def singles(slow=slow, x=x, y=y):
            for i in range(0, len(x), 64):
                slow.step(x[i : i + 64], y[i : i + 64])

        def theirs(own=own, optimizer=optimizers[0], x=x, y=y):
            torch_epoch(own, loss, optimizer, x, y)

        peer, ours, calls = (1e6 * t / steps for t in medians(theirs, epoch, singles))
        print(f"{name}: torch {peer:.1f} us a step, fit {ours:.1f} ({peer / ours:.1f} times)")
        print(f"  step() {calls:.1f}: {(calls - ours) * 1e3:.0f} ns a call beyond the kernels")


def fused():
    """Forward and backward."""
    cases = [((8, 64, 64, 4), 64), ((250, 100, 5), 64), ((54, 100, 7), 200), ((256, 512, 10), 128)]
    for widths, batch in cases:
        module, x = mlp(*widths), torch.randn(batch, widths[0])
        node = fuse(module, threads=1)

        def run(m, x=x):
            for _ in range(50):
                m(x).sum().backward()

        peer, ours = medians(lambda m=module: run(m), lambda m=node: run(m))
        name = "-".join(map(str, widths))
        print(f"{name}, batch {batch}: torch {2e4 * peer:.1f} us, fuse {2e4 * ours:.1f}, ", end="")
        print(f"{peer / ours:.2f} times")


def estimators():
    """An epoch of 54-100-7, batch 200, Adam."""
    rng = np.random.default_rng(0)
    options = {"batch_size": 200, "max_iter": 5, "random_state": 0, "tol": 0}
    for dtype in ("float64", "float32"):
        x = rng.normal(size=(20000, 54)).astype(dtype)
        y = np.argmax(x[:, :7] + 0.5 * x[:, 7:14] * x[:, 14:21], axis=1)
        peer, ours = medians(
            lambda x=x, y=y: neural_network.MLPClassifier(**options).fit(x, y),
            lambda x=x, y=y: MLPClassifier(**options, threads=1).fit(x, y),
        )
        print(f"{dtype}: scikit-learn {200 * peer:.2f} ms an epoch, MLPClassifier {200 * ours:.2f}")
        print(f"  {peer / ours:.1f} times; ", end="")
        small = MLPClassifier(threads=1).fit(x[:200], y[:200])
        (call,) = medians(lambda s=small, x=x, y=y: s.partial_fit(x[:200], y[:200]))
        print(f"partial_fit of one step {1e6 * call:.0f} us")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    accelerated()
    fused()
    estimators()
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
