"""The long benchmark: `make bench-peers` runs it with the peers installed.

Prints tables, and writes everything to a JSON file and a chart beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import chart
import steps

import chainrule
from chainrule import bench

MODULES = {"numpy": "numpy", "torch": "torch", "torch.compile": "torch", "jax": "jax",
           "sklearn": "sklearn", "thinc": "thinc"}  # fmt: skip
PACKAGES = ("numpy", "torch", "jax", "scikit-learn", "thinc")


def machine() -> dict[str, Any]:
    """What it runs on, and how busy that was when the suite began."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), "")
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "chainrule": chainrule.build_info(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--cases", nargs="*", default=list(bench.CASES), choices=bench.CASES)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), metavar="FOLDER")
    parser.add_argument(
        "--sections", nargs="*", default=list(SECTIONS), choices=SECTIONS, metavar="NAME"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = [n for n, module in MODULES.items() if find_spec(module)]
    result: dict[str, Any] = {"machine": machine()}
    print("\n".join(f"{k}: {v}" for k, v in result["machine"].items()))
    for section in options.sections:
        result[section] = SECTIONS[section](names, options)
        (options.out / "bench.json").write_text(json.dumps(result, indent=1))
    if "steps" in result:
        chart.steps(result["steps"], options.out / "steps.svg")
    print(f"\nwrote {options.out}/bench.json")


SECTIONS = {"steps": lambda names, o: steps.table(names, o.cases, o.quick)}

if __name__ == "__main__":
    main()
