"""Timing contenders in turn, so that what the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def in_turn(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 30, seconds: float = 0.02
) -> dict[str, float]:
    """Median seconds a call of each contender.

    Parameters
    ----------
    contenders
        Functions by name, each doing the same work once.
    rounds
        Each round times every contender once.
    seconds
        What one timing lasts at least; short calls are repeated within it.
    """
    repeats = {}
    for name, call in contenders.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(t) for name, t in times.items()}


def row(label: str, times: Mapping[str, float], flops: float = 0.0) -> str:
    """One line of a report: each contender's time and rate, and what it takes of ours."""
    ours = times["chainrule"]
    cells = []
    for name, seconds in times.items():
        rate = f" {flops / seconds / 1e9:6.1f} GFLOP/s" if flops else ""
        ratio = "" if name == "chainrule" else f" ({seconds / ours:.2f}x)"
        cells.append(f"{name} {seconds * 1e6:9.1f} us{rate}{ratio}")
    return f"{label:<28} " + "   ".join(cells)
