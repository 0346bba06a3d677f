"""How many units in the last place the C core's functions are off.

float32: every STRIDE-th of the 2^32 inputs, and runs of neighbours; the truth is computed in
float64. STRIDE is CHAINRULE_ULP_STRIDE from the environment; 1 takes them all (hours).
float64: samples; the truth is computed by mpmath.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
from cases import Array, ulp

from chainrule import backend, reference

STRIDE = int(os.environ.get("CHAINRULE_ULP_STRIDE", "9973"))
BLOCK = 1 << 20

# the contract's bounds
BOUNDS = {
    **dict.fromkeys(("exp", "log", "tanh", "sigmoid", "erf", "expm1", "log1p"), 2),
    **dict.fromkeys(("elu", "softplus", "swish", "gelu", "gelu_tanh"), 4),
}
MONOTONE = ("exp", "log", "tanh", "sigmoid", "erf", "expm1", "log1p", "elu", "softplus")
PARAM = {name: row.param for name, row in reference.ACTIVATIONS.items()}


def attrs_of(op: str) -> dict[str, float]:
    return {"param": PARAM[op]} if op in PARAM else {}


def in_c(op: str, x: Array) -> Array:
    return backend.get("c").evaluate(op, [x], attrs_of(op), [(x.shape, x.dtype)])[0]


def worst(got: Array, truth: Array, dtype: str) -> tuple[float, int]:
    """Return the largest error in ULP of the exact results, and where it is."""
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(truth.dtype) - truth) / ulp(truth, dtype)
        same = (got == truth.astype(dtype)) | (np.isnan(got) & np.isnan(truth))
    error = np.where(same & ~np.isfinite(error), 0, error)
    error[np.isnan(error)] = np.inf
    at = int(np.argmax(error))
    return float(error[at]), at


def all_float32(stride: int) -> Iterator[Array]:
    for start in range(0, 2**32, BLOCK * stride):
        stop = min(start + BLOCK * stride, 2**32)
        yield np.arange(start, stop, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)


def neighbours(dtype: str) -> Array:
    """Return runs of 512 consecutive numbers, of both signs, ascending: all over the range."""
    integer = np.dtype(f"u{np.dtype(dtype).itemsize}")
    largest = int(np.array(np.finfo(dtype).max).view(integer))
    rng = np.random.default_rng(0)
    starts = [0, largest - 511]
    # where the functions are not flat, and where they might change their formula
    points = (1e-8, 1e-4, 0.1, 0.3, 0.34, 0.5, 0.625, 0.69, 1, 1.4, 2, 4, 9, 20, 88, 700)
    starts += [int(np.array(point, dtype).view(integer)) - 256 for point in points]
    starts += rng.integers(0, largest - 512, 100).tolist()
    runs = (np.array(sorted(starts))[:, None] + np.arange(512)).ravel()
    positive = runs.astype(integer).view(dtype)
    return np.concatenate([-positive[::-1], positive])


@pytest.mark.parametrize("op", BOUNDS)
def test_float32(op: str) -> None:
    found, where = 0.0, np.float32(0)
    for x in (*all_float32(STRIDE), neighbours("float32")):
        with np.errstate(invalid="ignore"):  # signalling NaN
            wide = x.astype(np.float64)
        truth = reference.OPS[op](wide, **attrs_of(op))
        error, at = worst(in_c(op, x), truth, "float32")
        if error > found:
            found, where = error, x[at]
    print(f"{op}: {found:.3f} ULP at {where!r}")
    assert found <= BOUNDS[op]


EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "tanh": mpmath.tanh,
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "erf": mpmath.erf,
    "expm1": mpmath.expm1,
    "log1p": mpmath.log1p,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "swish": lambda z: z / (1 + mpmath.exp(-z)),
    "gelu": lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda z: (
        z
        / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (z + mpmath.mpf(44715) / 10**6 * z**3)))
    ),
}


def samples(op: str, n: int) -> Array:
    """Return float64 inputs: over all exponents, and densely where the function bends."""
    rng = np.random.default_rng(1)
    exponent = rng.uniform(-30, 9.6, n // 2)
    everywhere = rng.choice([-1.0, 1.0], n // 2) * 2.0**exponent
    near = rng.uniform(-3, 3, n // 4)
    far = rng.uniform(-40, 40, n // 4)
    x = np.concatenate([everywhere, near, far])
    if op == "log":
        x = np.concatenate([np.abs(x), 1 + 2.0 ** rng.uniform(-50, -1, n // 4), [5e-324, 1e308]])
        x = np.concatenate([x, 1 - 2.0 ** rng.uniform(-50, -1, n // 4)])
    if op == "log1p":
        x = np.where(x <= -1, -1 / (1 - x), x)
    return x


@pytest.mark.parametrize("op", BOUNDS)
def test_float64(op: str) -> None:
    x = samples(op, 2000)
    got = in_c(op, x)
    units = ulp(got.astype(np.longdouble), "float64").astype(np.float64)
    found, where = 0.0, 0.0
    with mpmath.workprec(200):
        for value, y, unit in zip(x.tolist(), got.tolist(), units.tolist(), strict=True):
            truth = EXACT[op](mpmath.mpf(value))
            if not np.isfinite(y):
                error = 0.0 if abs(truth) > np.finfo(np.float64).max else np.inf
            else:
                error = float(abs(mpmath.mpf(y) - truth) / unit)
            if error > found:
                found, where = error, value
    print(f"{op}: {found:.3f} ULP at {where!r}")
    assert found <= BOUNDS[op] * 1.0001  # the unit is that of the result, not of the truth


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", MONOTONE)
def test_non_decreasing_but_for_one_ulp(op: str, dtype: str) -> None:
    x = neighbours(dtype)
    if op == "log":
        x = x[x > 0]
    if op == "log1p":
        x = x[x > -1]
    y = in_c(op, x)
    finite = np.isfinite(y)
    highest = np.maximum.accumulate(y)
    with np.errstate(invalid="ignore", over="ignore"):
        drop = (highest - y) / np.spacing(np.abs(np.where(finite, highest, 1)))
    assert not np.isnan(y).any()
    assert drop[finite].max() <= 1, x[finite][np.argmax(drop[finite])]
