"""Learning-rate schedules: the factor of the learning rate at each step, counted from 0.

They use additions and multiplications of Python floats only, so a run has the same bits wherever
it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import UsageError

Schedule = Callable[[int], float]


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0


def linear(steps: int, end: float = 0.0) -> Schedule:
    """From 1 in a straight line to `end` at step `steps`, and `end` from there on."""
    _count("linear", steps)
    return lambda step: end + (1.0 - end) * (1.0 - min(step, steps) / steps)


def cosine(steps: int, end: float = 0.0) -> Schedule:
    """From 1 along half a cosine to `end` at step `steps` (Loshchilov and Hutter, 2017)."""
    _count("cosine", steps)
    return lambda step: end + (1.0 - end) * (0.5 + 0.5 * _cospi(min(step, steps) / steps))


def step(every: int, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` after every `every` steps."""
    _count("step", every)

    def schedule(number: int) -> float:
        value = 1.0
        for _ in range(number // every):
            value *= factor
        return value

    return schedule


def warmup(steps: int, then: Schedule | None = None) -> Schedule:
    """From 1 / steps in a straight line to 1 at step ``steps - 1``; from there on `then`.

    `then` counts its own steps from 0.
    """
    _count("warmup", steps)
    after = constant() if then is None else then
    return lambda step: (step + 1) / steps if step < steps else after(step - steps)


def _count(name: str, steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"{name}: expected a number of steps from 1 up, got {steps!r}")


# Taylor coefficients of cos(x) and sin(x) / x in x^2; on [0, pi/4] the next term is below 2^-56.
_COS = [1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200]
_SIN = [1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800]


def _cospi(t: float) -> float:
    """cos(pi t) for t in [0, 1], from the four basic operations only."""
    if t > 0.5:
        return -_cospi(1.0 - t)
    small = t <= 0.25
    x = 3.141592653589793 * (t if small else 0.5 - t)
    value = 0.0
    for c in reversed(_COS if small else _SIN):
        value = value * (x * x) + c
    return value if small else value * x
