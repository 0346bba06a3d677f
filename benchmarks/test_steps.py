"""Whole training steps beside the same steps written by hand in numpy (see `make bench`)."""

import numpy as np
from contenders import in_turn, row

import chainrule as cr

STEPS = 100


class Window(cr.nn.Module):
    def __init__(self, vocabulary, dim, width, hidden, classes):
        self.embed = cr.nn.Embedding(vocabulary, dim)
        self.flatten = cr.nn.Flatten()
        self.hidden = cr.nn.Dense(dim * width, hidden, "tanh")
        self.out = cr.nn.Dense(hidden, classes)

    def forward(self, ids):
        return self.out(self.hidden(self.flatten(self.embed(ids))))


def test_window_step_with_trained_vectors(report):
    """250-100-5 tanh, batch 32, vocabulary 20,000 x 50: at most half of numpy's time."""
    batch, lr = 32, np.float32(0.1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20_000, (STEPS * batch, 5))
    labels = ids[:, 2] % 5
    model = Window(20_000, 50, 5, 100, 5)
    trainer = cr.Trainer(
        model, cr.losses.SoftmaxCrossEntropy(), cr.optim.SGD(float(lr)), seed=0, threads=1
    )
    table, w1, b1, w2, b2 = (p.data.copy() for p in model.parameters().values())

    def by_hand():
        for first in range(0, STEPS * batch, batch):
            window, y = ids[first : first + batch], labels[first : first + batch]
            x = table[window].reshape(batch, -1)
            h = np.tanh(x @ w1.T + b1)
            z = h @ w2.T + b2
            p = np.exp(z - z.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(batch), y] -= 1.0
            p /= np.float32(batch)
            delta = (p @ w2) * (1 - h * h)
            dx = (delta @ w1).reshape(-1, 50)
            w2[...] -= lr * (p.T @ h)
            b2[...] -= lr * p.sum(axis=0)
            w1[...] -= lr * (delta.T @ x)
            b1[...] -= lr * delta.sum(axis=0)
            np.subtract.at(table, window.ravel(), lr * dx)

    def ours():
        trainer.fit(ids, labels, epochs=1, batch_size=batch, shuffle=False)

    ours()
    by_hand()
    for mine, theirs in zip(model.parameters().values(), (table, w1, b1, w2, b2), strict=True):
        np.testing.assert_allclose(mine.data, theirs, rtol=0, atol=2e-5)
    times = {k: t / STEPS for k, t in in_turn({"chainrule": ours, "numpy": by_hand}).items()}
    report(row("step, window 250-100-5", times))
    assert times["chainrule"] <= times["numpy"] / 2
