"""Run the ablation grid on the embedded task and write its table and plots.

python -m launch.ablate --output runs/ablation                    all arms, bases and seeds; resumes
python -m launch.ablate --arms "zero advantage" --seeds 0         a part of the grid
python -m launch.ablate --config stephint                         hints against plain rollouts (docs/stephint.md)
"""

from pathlib import Path

from launch import cli
from nrt_jax.training.ablation import AblationConfig, collect, run_grid, table


def main(config: AblationConfig) -> None:
    """Runs the grid, then writes `tables.md` and, with matplotlib installed, a plot of each base."""
    run_grid(config)
    rows = collect(config)
    tables = [f"### Base `{base}`\n\n{table(rows, base)}\n" for base in config.bases]
    path = Path(config.output) / "tables.md"
    path.write_text("\n".join(tables), encoding="utf-8")
    print("\n".join(tables))
    print(f"written to {path}", *_plots(rows, config), sep="\n")


def _plots(rows, config: AblationConfig) -> list[Path]:
    """Accuracy over steps, one panel for controls, clip, no clip and the derived signal; mean of the seeds."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plots: matplotlib is not installed (pip install 'nrt_jax[docs]')")
        return []
    variants = ("clip, fixed", "no clip, fixed", "clip, derived", "no clip, derived")
    panels = {"controls": ""} | {variant: f", {variant}" for variant in variants}
    written = []
    for base in config.bases:
        mine = [row for row in rows if row["base"] == base]
        shown = {}  # Arms of each panel that has any.
        for title, suffix in panels.items():
            arms = [row["arm"] for row in mine if (row["arm"].endswith(suffix) if suffix else "," not in row["arm"])]
            if arms:
                shown[title] = dict.fromkeys(arms)
        figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown) + 1, 4), sharey=True, squeeze=False)
        for axis, (title, arms) in zip(axes[0], shown.items(), strict=True):
            suffix = panels[title]
            for arm in arms:
                curves = [row["curve"] for row in mine if row["arm"] == arm]
                steps = [step for step, _ in curves[0]]
                means = [sum(point[1] for point in points) / len(points) for points in zip(*curves, strict=True)]
                axis.plot(steps, means, marker=".", label=arm.removesuffix(suffix) if suffix else arm)
            axis.set(title=title if len(shown) > 1 else Path(base).name, xlabel="step", ylim=(0, 1.02))
            axis.legend(fontsize=7)
        axes[0, 0].set_ylabel("accuracy on held-out questions")
        figure.tight_layout()
        written.append(Path(config.output) / f"{Path(base).name}.png")
        figure.savefig(written[-1], dpi=110)
        plt.close(figure)
    return written


if __name__ == "__main__":
    cli.run(main, AblationConfig, "python -m launch.ablate", __doc__, default_config="ablation")
