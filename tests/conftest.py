"""What several test files share."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

import chainrule as cr

DATA = Path(os.environ.get("CHAINRULE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def shared_data():
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no data sets at {DATA} (set CHAINRULE_DATA)")
    return DATA


class Window(cr.nn.Module):
    """A small window network: embedding, concatenation, one hidden layer, scores."""

    def __init__(self, vocabulary=40, dim=6, width=3, hidden=10, classes=4, dtype="float32"):
        self.embed = cr.nn.Embedding(vocabulary, dim, dtype=dtype)
        self.flatten = cr.nn.Flatten()
        self.hidden = cr.nn.Dense(width * dim, hidden, "tanh", dtype=dtype)
        self.out = cr.nn.Dense(hidden, classes, dtype=dtype)

    def forward(self, ids):
        return self.out(self.hidden(self.flatten(self.embed(ids))))


def window_data(n=150, vocabulary=40, width=3, classes=4):
    """Ids and labels that depend on them."""
    rng = np.random.default_rng(7)
    ids = rng.integers(0, vocabulary, (n, width))
    return ids, (ids[:, width // 2] * 7 + ids[:, 0]) % classes


def table_data(n=130, n_in=9, classes=5, dtype="float32"):
    """Rows of numbers and labels that depend on them."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(n, n_in)).astype(dtype)
    return x, np.argmax(x[:, :classes] + x[:, 1 : classes + 1], axis=1)


def weight_hash(model):
    """One hash of all parameters."""
    digest = hashlib.sha256()
    for path, p in sorted(model.parameters().items()):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(p.data).tobytes())
    return digest.hexdigest()
