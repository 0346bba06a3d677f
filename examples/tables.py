"""Tables: classification and regression on two of scikit-learn's bundled sets.

    python examples/tables.py [--epochs N] [--picture PATH]

Needs scikit-learn. The diabetes table has a category (sex) beside its numbers, which the model
looks up in an embedding; both fits stop early, on rows held out of the training rows.
"""

import argparse

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split

import chainrule as cr


def standard(train, *others):
    """Each column with mean 0 and standard deviation 1 on the training rows."""
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-9
    return [(part - mean) / spread for part in (train, *others)]


def classify(epochs=100):
    """Handwritten digits, 64 grey values each."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x / 16.0, y, test_size=0.25, random_state=0, stratify=y)
    model = cr.nn.Sequential(cr.nn.Dense(64, 64, "relu"), cr.nn.Dropout(0.3), cr.nn.Dense(64, 10))
    trainer = cr.Trainer(model, cr.losses.SoftmaxCrossEntropy(), cr.optim.Adam(3e-3), seed=1)
    history = trainer.fit(
        x, y, epochs=epochs, batch_size=32, validation=0.2, metrics=["accuracy"],
        callbacks=[cr.callbacks.EarlyStopping(patience=10)],
    )  # fmt: skip
    return history, trainer.evaluate(x_test, y_test, metrics=["accuracy"])


class Diabetes(cr.nn.Module):
    """Numbers and one category, side by side."""

    def __init__(self, n_numbers):
        self.sex = cr.nn.Embedding(2, 2)
        self.body = cr.nn.Sequential(
            cr.nn.Dense(n_numbers + 2, 32, "tanh"), cr.nn.Dropout(0.2), cr.nn.Dense(32, 1)
        )

    def forward(self, x):
        return self.body(cr.concatenate([x["numbers"], self.sex(x["sex"])], axis=1))


def regress(epochs=300):
    """Progress of diabetes after a year, from a frame-like table of ten columns."""
    table = load_diabetes(scaled=False)
    sex = table.data[:, table.feature_names.index("sex")].astype(int) - 1
    numbers = np.delete(table.data, table.feature_names.index("sex"), axis=1)
    train, test = train_test_split(np.arange(len(sex)), test_size=0.25, random_state=0)
    target = table.target[:, None]
    (numbers_train, numbers_test), (y, y_test) = (
        standard(a[train], a[test]) for a in (numbers, target)
    )
    optimizer = cr.optim.AdamW(2e-3, weight_decay=0.05, groups={"*.bias": {"weight_decay": 0.0}})
    trainer = cr.Trainer(Diabetes(9), cr.losses.Huber(), optimizer, seed=1)
    history = trainer.fit(
        {"numbers": numbers_train, "sex": sex[train]}, y, epochs=epochs, batch_size=32,
        validation=0.2, metrics=[r2_score], callbacks=[cr.callbacks.EarlyStopping(patience=30)],
    )  # fmt: skip
    x_test = {"numbers": numbers_test, "sex": sex[test]}
    return history, trainer.evaluate(x_test, y_test, metrics=[r2_score])


def draw(digits, diabetes, path):
    """Training and validation loss of both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axes, history, title in zip(
        panels, (digits, diabetes), ("digits: cross entropy", "diabetes: Huber loss"), strict=True
    ):
        epochs = np.arange(1, len(history) + 1)
        axes.plot(epochs, history["loss"], label="training (with dropout)")
        axes.plot(epochs, history["val_loss"], label="validation")
        best = int(np.argmin(history["val_loss"]))
        axes.plot(epochs[best], history["val_loss"][best], "o", color="C1", label="kept")
        axes.set(title=title, xlabel="epoch")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--picture")
    options = parser.parse_args(arguments)
    digits, digit_scores = classify(options.epochs)
    diabetes, diabetes_scores = regress(options.epochs)
    print(f"digits: {len(digits)} epochs, test accuracy {digit_scores['accuracy']:.3f}")
    print(f"diabetes: {len(diabetes)} epochs, test R2 {diabetes_scores['r2_score']:.3f}")
    if options.picture:
        draw(digits, diabetes, options.picture)
    return digit_scores["accuracy"], diabetes_scores["r2_score"]


if __name__ == "__main__":
    main()
