"""A grid of runs that differ in one thing: controls, reward modes, baseline clip and token signal."""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nrt_jax.errors import unknown_name
from nrt_jax.rewards import AGGREGATIONS
from nrt_jax.training import loop, setup, workdir
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.metrics import METRICS_FILE, read_metrics

#: Columns of the table: heading -> key of a run's figures.
COLUMNS = {
    "accuracy": "accuracy_after",
    "mean p(y*)": "answer_prob_after",
    "hard-token p": "hard_token_prob_after",
    "trace entropy": "entropy",
    "trace words": "trace_words_after",
    "empty traces": "empty_trace_share_after",
}


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """The grid: every arm on every base with every seed.

    Attributes:
        output: Folder of the runs; finished ones in it are not run again.
        bases: Models to start from.
        seeds: Seeds of each arm.
        arms: Names of ARMS to run; empty for those of the NRT ablation, all but the last few.
        recipe: What all runs share.
    """

    output: str = "runs/ablation"
    bases: tuple[str, ...] = ("tiny", "tiny_weak")
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = ()
    recipe: TrainConfig = TrainConfig()


def _nrt(mode: str, clip: str, token_signal: str) -> Callable[[TrainConfig], TrainConfig]:
    def change(config: TrainConfig) -> TrainConfig:
        return dataclasses.replace(
            config,
            reward=dataclasses.replace(config.reward, mode=mode),
            advantage=dataclasses.replace(config.advantage, clip=clip),
            loss=dataclasses.replace(config.loss, token_signal=token_signal),
        )

    return change


def _zero_advantage(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, trace_weight=0.0))


def _hints(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, hints=dataclasses.replace(config.hints, steps=4))


#: Name of an arm -> how it changes the shared recipe: the NRT ablation.
NRT_ARMS: Mapping[str, Callable[[TrainConfig], TrainConfig]] = {
    "answer-only SFT": lambda config: dataclasses.replace(config, objective="sft"),
    "zero advantage": _zero_advantage,
    "random reward": _nrt("random", "none", "fixed"),
    **{f"{mode}, clip, fixed": _nrt(mode, "clip", "fixed") for mode in AGGREGATIONS},
    **{f"{mode}, no clip, fixed": _nrt(mode, "none", "fixed") for mode in AGGREGATIONS},
    **{f"{mode}, clip, derived": _nrt(mode, "clip", "derived") for mode in AGGREGATIONS},
    **{f"{mode}, no clip, derived": _nrt(mode, "none", "derived") for mode in AGGREGATIONS},
}
ARMS = NRT_ARMS | {"plain": lambda config: config, "hints": _hints}


def run_grid(config: AblationConfig, log: Callable[[str], None] = print) -> None:
    """Runs what is not finished yet, arm by arm so that seeds share compiled programs."""
    for name in config.arms:
        if name not in ARMS:
            raise unknown_name("arms", name, ARMS)
    for base, arm, seed, folder in _runs(config):
        run = ARMS[arm](dataclasses.replace(config.recipe, model=base, seed=seed))
        if (folder / "summary.json").exists():
            workdir.prepare(folder, to_dict(run))  # Refuses a run of another recipe.
            continue
        summary = loop.train(run, setup.prepare(run), folder, log=lambda _: None)
        figures = "  ".join(f"{heading} {summary[key]:.3f}" for heading, key in COLUMNS.items() if key in summary)
        log(f"{base}  {arm}  seed {seed}  {figures}  {summary['seconds']:.0f} s")


def collect(config: AblationConfig) -> list[dict[str, Any]]:
    """Every finished run: base, arm, seed, its summary, `entropy`, and `curve` of (step, accuracy)."""
    rows = []
    for base, arm, seed, folder in _runs(config):
        if not (folder / "summary.json").exists():
            continue
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        entropy = _last_entropy(read_metrics(folder / METRICS_FILE))
        rows.append(summary | {"base": base, "arm": arm, "seed": seed, "curve": accuracy_curve(folder)} | entropy)
    return rows


def accuracy_curve(folder: Path) -> list[tuple[int, float]]:
    """(step, accuracy) on held-out questions of a finished run, from step 0 to its last."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    measured = {r["step"]: r["accuracy"] for r in read_metrics(folder / METRICS_FILE) if "accuracy" in r}
    ends = {0: summary["accuracy_before"], summary["steps"]: summary["accuracy_after"]}
    return sorted((measured | ends).items())


def table(rows: Sequence[Mapping[str, Any]], base: str) -> str:
    """A Markdown table of one base: mean over seeds, for accuracy with the lowest and highest seed."""
    lines = [f"| arm | seeds | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 2)}"]
    for arm in ARMS:
        runs = [row for row in rows if row["base"] == base and row["arm"] == arm]
        if runs:
            cells = [_cell(heading, [run[key] for run in runs if key in run]) for heading, key in COLUMNS.items()]
            lines.append(f"| {arm} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(heading: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    return spread(values) if heading == "accuracy" else f"{statistics.fmean(values):.2f}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """A table's cell: mean over seeds, with the lowest and the highest."""
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _last_entropy(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean entropy of sampled tokens over the last ten steps; fine-tuning samples nothing and has none."""
    values = [record["entropy"] for record in records if "entropy" in record][-10:]
    return {"entropy": statistics.fmean(values)} if values else {}


def _runs(config: AblationConfig) -> Iterator[tuple[str, str, int, Path]]:
    for base in config.bases:
        for arm in config.arms or NRT_ARMS:
            for seed in config.seeds:
                name = arm.replace(", ", "-").replace(" ", "_")
                yield base, arm, seed, Path(config.output) / Path(base).name / name / f"seed{seed}"
