"""The charts of the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"numpy": "#8da0cb", "torch": "#fc8d62", "torch.compile": "#e5c494", "jax": "#66c2a5",
           "sklearn": "#e78ac3", "thinc": "#a6d854"}  # fmt: skip


def steps(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of time(peer) / time(chainrule) with their intervals; one panel a thread count."""
    teams = sorted({r["threads"] for r in rows})
    figure, panels = plt.subplots(len(teams), 1, figsize=(9, 3.2 * len(teams)), squeeze=False)
    for panel, team in zip(panels[:, 0], teams, strict=True):
        mine = [r for r in rows if r["threads"] == team]
        names = [n for n in COLOURS if any(n in r["ratio"] for r in mine)]
        width = 0.8 / max(1, len(names))
        for j, name in enumerate(names):
            at = [i for i, r in enumerate(mine) if name in r["ratio"]]
            values = [mine[i]["ratio"][name] for i in at]
            errors = [[m - low for m, low, _ in values], [high - m for m, _, high in values]]
            panel.bar(
                [i + (j + 0.5) * width - 0.4 for i in at], [v[0] for v in values], width,
                yerr=errors, label=name, color=COLOURS[name], error_kw={"lw": 0.8},
            )  # fmt: skip
        panel.axhline(1.0, color="black", lw=1)
        panel.set_yscale("log")
        panel.set_xticks(range(len(mine)), [r["case"] for r in mine])
        panel.set_ylabel("time / chainrule's")
        panel.set_title(f"a training step, {team} thread{'s' if team > 1 else ''}", fontsize=10)
        panel.legend(fontsize=8, ncols=len(names) or 1, frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
