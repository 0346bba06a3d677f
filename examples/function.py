"""Fit a function by stochastic gradient descent written by hand: the graph, and nothing else.

    python examples/function.py [--steps N] [--picture PATH]

Twenty tanh units, `s = u . tanh(W x + b) + c`, fit sin(3x) / (1 + x^2) on [-3, 3].
"""

import argparse

import numpy as np

import chainrule as cr


def target(x):
    """What is to be learned."""
    return np.sin(3.0 * x) / (1.0 + x * x)


def fit(steps=6000, rate=0.05, seed=0):
    """The parameters, and the loss of each step."""
    rng = np.random.default_rng(seed)
    w = cr.parameter(rng.normal(scale=2.0, size=(20, 1)), name="W")
    b = cr.parameter(rng.uniform(-3.0, 3.0, size=20), name="b")
    u = cr.parameter(rng.normal(scale=0.3, size=20), name="u")
    c = cr.parameter(0.0, name="c")
    losses = []
    for _ in range(steps):
        x = rng.uniform(-3.0, 3.0, size=(32, 1))
        score = cr.tanh(x @ w.T + b) @ u + c
        loss = cr.mean(cr.square(score - target(x[:, 0])))
        loss.backward()
        for p in (w, b, u, c):
            p.data = p.data - rate * p.grad
            p.grad = None
        losses.append(loss.item())
    return (w, b, u, c), losses


def predict(parameters, x):
    """The fitted function."""
    w, b, u, c = (p.data for p in parameters)
    return np.tanh(x[:, None] @ w.T + b) @ u + c


def draw(parameters, losses, path):
    """The function, the fit, and the loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    x = np.linspace(-3.0, 3.0, 400)
    left.plot(x, target(x), color="grey", label="sin(3x) / (1 + x²)")
    left.plot(x, predict(parameters, x), "--", label="20 tanh units")
    left.set(xlabel="x", title="the fit")
    left.legend(frameon=False)
    smooth = np.convolve(losses, np.ones(50) / 50, "valid")
    right.semilogy(np.arange(len(smooth)) + 50, smooth)
    right.set(xlabel="step", title="squared error, mean of 50 steps")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--picture")
    options = parser.parse_args(arguments)
    parameters, losses = fit(options.steps)
    x = np.linspace(-3.0, 3.0, 1001)
    error = float(np.sqrt(np.mean((predict(parameters, x) - target(x)) ** 2)))
    print(f"{options.steps} steps, root mean square error {error:.4f}")
    if options.picture:
        draw(parameters, losses, options.picture)
    return error


if __name__ == "__main__":
    main()
