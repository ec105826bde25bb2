"""Align deduction, induction and abduction, merge the specialists, train the merge on a domain; table and plot.

python -m launch.meta                                     the embedded demo (docs/meta_abilities.md); resumes
python -m launch.meta --seeds 0 --normalize false         one seed, the merge's weights as they are
"""

from collections.abc import Sequence
from pathlib import Path

from launch import cli, merge
from nrt_jax.training.meta import MetaConfig, collect, run_all, tables


def main(config: MetaConfig) -> None:
    """Runs what is not finished, then writes `tables.md` and, with matplotlib installed, the plot of stage C."""

    def merge_specialists(models: Sequence[str], output: Path) -> None:
        merge.main(merge.MergeConfig(tuple(models), str(output), weights=config.weights, normalize=config.normalize))

    run_all(config, merge_specialists)
    accuracies, curves = collect(config)
    text = tables(config, accuracies, curves)
    path = config.folder / "tables.md"
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nwritten to {path}")
    _plot(curves, config.folder / "domain.png")


def _plot(curves, path: Path) -> None:
    """Accuracy on the domain over steps from both starts: each seed thin, their mean thick."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'nrt_jax[docs]')")
        return
    figure, axis = plt.subplots(figsize=(5, 4))
    for i, (start, seeds) in enumerate(curves.items()):
        for curve in seeds:
            axis.plot(*zip(*curve, strict=True), color=f"C{i}", alpha=0.3)
        steps = [step for step, _ in seeds[0]]
        means = [sum(point[1] for point in points) / len(points) for points in zip(*seeds, strict=True)]
        axis.plot(steps, means, marker=".", color=f"C{i}", linewidth=2, label=f"from the {start}")
    axis.set(xlabel="step", ylabel="accuracy on held-out questions of the domain", ylim=(0, 1.02))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main, MetaConfig, "python -m launch.meta", __doc__, default_config="meta/embedded")
