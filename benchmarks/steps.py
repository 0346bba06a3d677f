"""The table of training steps: every case, every contender, on one thread and on two."""

from __future__ import annotations

import statistics
import sys
from typing import Any

import peers
from measure import Peak, Worker, alternate, cpus, interval

from chainrule import bench

# Aimed at on two threads, beside the best peer.
TWO_THREADS = dict.fromkeys(("ner", "ner256", "rl", "ppo", "mid"), 1.1) | {"mnist": 1.0, "big": 1.0}
AGREE = 1e-3


def measure(case: bench.Case, threads: int, names: list[str], quick: bool) -> dict[str, Any]:
    """Check the contenders' losses against ours, then time them in turn.

    Returns
    -------
    dict
        "us": medians, "ratio": name -> (median, low, high) of time(peer) / time(ours), "peak":
        the same of the share of the FMA peak, "left out": name -> why, counts of rounds.
    """
    workers = {n: Worker(threads, cpus(), case.name, n) for n in names}
    left_out: dict[str, str] = {}
    ours: float | None = None
    try:
        for name, worker in list(workers.items()):  # one after the other: they compile
            loss = worker.ask("check")
            if isinstance(loss, dict):
                left_out[name] = loss["error"]
            elif name == "chainrule":
                ours = loss
            elif ours is None or not abs(loss - ours) <= AGREE:
                left_out[name] = f"its loss is {loss:.6f}, ours {ours}"
            if name in left_out:
                workers.pop(name).close()
        if ours is None:
            raise SystemExit(f"{case.name}: {left_out['chainrule']}")
        seconds = 0.02 if quick else 0.06
        repeats = {
            n: max(1, round(seconds / min(w.ask("time", 1) for _ in range(2)) / case.steps))
            for n, w in workers.items()
        }
        peak = Peak()
        settle = 0.0 if threads == 1 else 0.02  # other teams' threads go on spinning for a while
        timed = alternate(workers, repeats, 5 if quick else 30, peak, settle)
    finally:
        for worker in workers.values():
            worker.close()
    times = timed["times"]
    mine = times["chainrule"]
    shares = [
        case.flops / t / peak.rate(f) / threads for t, f in zip(mine, timed["fma"], strict=True)
    ]
    return {
        "case": case.name,
        "threads": threads,
        "us": {n: statistics.median(t) * 1e6 for n, t in times.items()},
        "ratio": {
            n: interval([a / b for a, b in zip(t, mine, strict=True)])
            for n, t in times.items()
            if n != "chainrule"
        },
        "peak": interval(shares),
        "peak_gflops": statistics.median(peak.rate(f) for f in timed["fma"]) / 1e9,
        "rounds": len(mine),
        "dropped": timed["dropped"],
        "quiet": timed["quiet"],
        "left out": left_out,
    }


def judge(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at beside what was measured; it holds if the interval's better end does."""
    case = bench.CASES[row["case"]]
    ratios = dict(row["ratio"])
    both = [n for n in ("torch", "torch.compile") if n in ratios]
    if both:  # the faster of the two is the one that counts
        ratios["torch"] = ratios[min(both, key=lambda n: ratios[n][0])]
    if row["threads"] == 1:
        figures = dict(case.figures)
    else:
        figures = {"best peer": TWO_THREADS[case.name]} if case.name in TWO_THREADS else {}
        if row["ratio"]:
            ratios["best peer"] = min(row["ratio"].values())
    verdicts = []
    for name, figure in figures.items():
        value = row["peak"] if name == "peak" else ratios.get(name)
        if value is None:
            verdicts.append({"name": name, "figure": figure, "value": None, "holds": None})
        else:
            holds = value[2] >= figure
            verdicts.append({"name": name, "figure": figure, "value": value, "holds": holds})
    return verdicts


def line(row: dict[str, Any]) -> str:
    """A row of the table on the terminal."""
    cells = [f"{row['case']:<11}{row['us']['chainrule']:>10.1f} us"]
    for name, us in row["us"].items():
        if name != "chainrule":
            low, high = row["ratio"][name][1:]
            middle = row["ratio"][name][0]
            cells.append(f"{name} {us:.1f} us {middle:.2f}x [{low:.2f}, {high:.2f}]")
    share = row["peak"][0]
    cells.append(f"{share:.0%} of {row['threads']} x {row['peak_gflops']:.0f} GFLOP/s")
    cells.append(f"{row['rounds']} rounds, {row['dropped']} dropped")
    if not row["quiet"]:
        cells.append("NOT QUIET: slow rounds kept")
    text = "  ".join(cells)
    for verdict in judge(row):
        value = "not measured" if verdict["value"] is None else f"{verdict['value'][0]:.2f}"
        state = {True: "holds", False: "SHORT", None: "?"}[verdict["holds"]]
        text += f"\n{'':13}{verdict['name']:<10} aim {verdict['figure']:<5} got {value:<13} {state}"
    for name, why in row["left out"].items():
        text += f"\n{'':13}{name} left out: {why}"
    return text


def table(names: list[str], cases: list[str], quick: bool) -> list[dict[str, Any]]:
    """Measure and print all rows, on one thread and then, where there are two cores, on two."""
    rows = []
    for threads in range(1, min(2, len(cpus())) + 1):
        print(f"\na training step, {threads} thread(s): time, and time(peer) / ours [95%]")
        for name in cases:
            case = bench.CASES[name]
            if threads == 2 and name not in TWO_THREADS:
                continue
            chosen = ["chainrule", *(n for n in names if peers.applies(case, n))]
            if threads == 2:
                chosen = [n for n in chosen if n not in ("sklearn", "thinc")]
            row = measure(case, threads, chosen, quick)
            rows.append(row | {"verdicts": judge(row)})
            print(line(row))
            sys.stdout.flush()
    return rows
