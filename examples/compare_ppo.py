"""Run `ppo.py` and `ppo_torch.py` in turn over some seeds, print the ratios, draw the returns.

    python examples/compare_ppo.py --torch PYTHON [--seeds N] [--picture PATH]

PYTHON is an interpreter that has torch, gymnasium and chainrule; the other runs are this one's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def run(python, script, seed, steps):
    """What one run wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        options = ["--seed", str(seed), "--steps", str(steps), "--json", str(path)]
        subprocess.run([python, str(HERE / script), *options], check=True)
        return json.loads(path.read_text())


def draw(runs, path):
    """Returns over the seconds of training, a line a seed; and the median of the times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(2, 1))
    for (name, several), colour in zip(runs.items(), ("C0", "C1"), strict=True):
        for i, r in enumerate(several):
            episodes = np.array(r["episodes"])
            mean = np.convolve(episodes[:, 2], np.ones(50) / 50, "valid")
            label = name if i == 0 else None
            left.plot(episodes[49:, 1], mean, color=colour, lw=1, label=label)
    left.axhline(475, color="grey", lw=0.8, ls="--")
    left.set(xlabel="seconds", ylabel="return, mean of 50 episodes", xscale="log")
    left.set_title("PPO on CartPole, five seeds each" if len(several) == 5 else "PPO on CartPole")
    left.legend(frameon=False)
    for row, (_, several) in enumerate(runs.items()):
        updates = np.median([r["updates"] for r in several])
        whole = np.median([r["seconds"] for r in several])
        right.barh(row, updates, color=f"C{row}")
        right.barh(row, whole - updates, left=updates, color=f"C{row}", alpha=0.4)
        right.text(whole, row, f" {whole:.1f} s", va="center")
    right.set_yticks(range(len(runs)), list(runs))
    right.set(xlabel="seconds (dark: updates, light: playing)", xlim=(0, whole * 1.25))
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", required=True, help="an interpreter that has torch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--picture")
    options = parser.parse_args()
    runs = {"chainrule": [], "PyTorch": []}
    for seed in range(1, options.seeds + 1):
        runs["chainrule"].append(run(sys.executable, "ppo.py", seed, options.steps))
        runs["PyTorch"].append(run(options.torch, "ppo_torch.py", seed, options.steps))
    for key in ("updates", "seconds"):
        pairs = np.array([[r[key] for r in several] for several in runs.values()])
        ours, theirs = np.median(pairs, axis=1)
        ratios = pairs[1] / pairs[0]  # seed by seed: the two ran one after the other
        print(
            f"{key}: chainrule {ours:.2f} s, PyTorch {theirs:.2f} s; ratio {np.median(ratios):.1f} "
            f"({ratios.min():.1f} to {ratios.max():.1f})"
        )
    if options.picture:
        draw(runs, options.picture)
