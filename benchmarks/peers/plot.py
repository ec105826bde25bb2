"""Bars of the ratios that run.py measured: python benchmarks/peers/plot.py OUT.png NAME=FILE.json .."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

COLOURS = {"google-tunix": "tab:blue", "trl": "tab:orange"}


def main(target: str, *named: str) -> None:
    """One panel for rollouts and one for steps; the whiskers span the rounds."""
    runs = {name: json.loads(Path(path).read_text())["rounds"] for name, path in (n.rsplit("=", 1) for n in named)}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for panel, work in zip(panels, ("rollout", "step"), strict=True):
        labels, heights, spans, colours = [], [], [], []
        for name, rounds in runs.items():
            for peer in COLOURS:
                ratios = [r[peer][work] / r["nrt_jax"][work] for r in rounds if work in (r.get(peer) or ())]
                if ratios:
                    middle = statistics.median(ratios)
                    labels.append(f"{peer}\n{name}")
                    heights.append(middle)
                    spans.append((middle - min(ratios), max(ratios) - middle))
                    colours.append(COLOURS[peer])
        panel.bar(labels, heights, yerr=list(zip(*spans, strict=True)), color=colours, capsize=3)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_title(f"{work}: seconds of the peer / ours")
        panel.tick_params(axis="x", labelsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
