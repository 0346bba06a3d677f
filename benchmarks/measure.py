"""How the suite measures: pinned processes in turn, a fixed FMA loop beside, paired ratios."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
SLOW = 1.05  # rounds whose FMA loop is slower than this times the best are dropped


def compile_probe(source: Path = HERE / "probe.c", flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """probe.c as a library, compiled for this machine."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit("the suite needs a C compiler (cc) for its FMA loop")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "probe.so"
        command = [compiler, "-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-shared"]
        subprocess.run(
            [*command, "-fPIC", *flags, "-o", str(target), str(source), "-lm"], check=True
        )
        library = ctypes.CDLL(str(target))
    library.fma_loop.restype = ctypes.c_double
    library.fma_loop.argtypes = [ctypes.c_long]
    return library


class Peak:
    """The fixed FMA loop: some milliseconds of it, and what rate it reaches."""

    def __init__(self, seconds: float = 0.004) -> None:
        self._loop = compile_probe().fma_loop
        self._rounds = 1000
        while (t := self.once()) < seconds:
            self._rounds = int(self._rounds * min(10.0, 1.2 * seconds / t))

    def once(self) -> float:
        """Seconds of the loop."""
        start = time.perf_counter()
        self._flops = self._loop(self._rounds)
        return time.perf_counter() - start

    def rate(self, seconds: float) -> float:
        """Flops a second of a loop that took so long."""
        return self._flops / seconds


def environment(threads: int, cpus: list[int]) -> dict[str, str]:
    """What a contender's process must have in its environment before it imports anything."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    one = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    return {
        **os.environ,
        **{name: str(threads) for name in names},
        "XLA_FLAGS": one,
        "JAX_PLATFORMS": "cpu",
        "BENCH_CPUS": json.dumps(cpus[:threads]),
        "PYTHONPATH": str(HERE),
    }


class Worker:
    """A process that does what it is told, line by line: see worker.py."""

    def __init__(self, threads: int, cpus: list[int], *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(threads), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(threads, cpus),
        )

    def ask(self, *words: object) -> Any:
        """Send a command and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"error": f"ended with status {self._process.wait()}"}
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"ended with status {self._process.wait()}"}
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def cpus() -> list[int]:
    """The cores this process may use, the last first: the first tends to serve interrupts."""
    return sorted(os.sched_getaffinity(0), reverse=True)


def alternate(
    workers: dict[str, Worker],
    repeats: dict[str, int],
    rounds: int,
    peak: Peak,
    settle: float = 0.0,
    patience: float = 2.0,
) -> dict[str, Any]:
    """Time the workers in turn.

    A round times every worker once, between two runs of the FMA loop. Rounds in which the loop is
    over 5% slow are dropped and counted, and made up for until `patience` times as many rounds
    have been run; where fewer than five remain, all are kept, and the result says so.

    Returns
    -------
    dict
        "times": seconds by name and round; "fma": the loop's seconds by round; "dropped",
        "quiet".
    """
    names = list(workers)
    times: dict[str, list[float]] = {n: [] for n in names}
    loops: list[float] = []

    def kept() -> np.ndarray[Any, Any]:
        return np.asarray(loops) <= SLOW * min(loops)

    while len(loops) < rounds or (kept().sum() < rounds and len(loops) < patience * rounds):
        before = peak.once()
        turn = len(loops) % len(names)
        for name in names[turn:] + names[:turn]:
            time.sleep(settle)
            times[name].append(workers[name].ask("time", repeats[name]))
        loops.append(max(before, peak.once()))
    good = kept()
    quiet = bool(good.sum() >= min(rounds, 5))
    if not quiet:
        good[:] = True
    return {
        "times": {n: np.asarray(t)[good].tolist() for n, t in times.items()},
        "fma": np.asarray(loops)[good].tolist(),
        "dropped": int(len(loops) - good.sum()),
        "quiet": quiet,
    }


def interval(values: Any, draws: int = 2000) -> tuple[float, float, float]:
    """The median and its bootstrap 95% interval."""
    values = np.asarray(values)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)
