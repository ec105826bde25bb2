"""Meta-ability alignment end to end (arXiv 2505.10554) on an embedded model, over several seeds.

    A   the base ──RL──> a specialist for each of deduction, induction, abduction, level after level
    B   the specialists ──> one merged model
    C   the merged model ──RL──> the domain        against        the base ──RL──> the domain

Every piece has a folder of its own; finished pieces are not run again, and a run that was stopped goes on from its
last checkpoint. A curriculum is one run a level, each from what the one before gave: nothing new can go wrong when one
is resumed. Its KL is against the start of the level's own run.

    OUTPUT/base                                     the base in Hugging Face format
    OUTPUT/seed0/deduction-1, ..                    runs: ability and level
    OUTPUT/seed0/merged                             the merge in Hugging Face format
    OUTPUT/seed0/domain_from_base, domain_from_merge
    OUTPUT/seed0/accuracy.json                      of each model on each task, held-out questions
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from nrt_jax import hf
from nrt_jax.errors import UserError
from nrt_jax.evaluation import answer_questions, summarise
from nrt_jax.tasks import TASKS
from nrt_jax.training import loop, setup, workdir
from nrt_jax.training.ablation import accuracy_curve, spread
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.pretrain import PretrainConfig, pretrain

#: Where stage C starts from.
STARTS = ("base", "merge")


@dataclasses.dataclass(frozen=True)
class MetaConfig:
    """All three stages.

    Attributes:
        output: Folder of all pieces; finished ones in it are not run again.
        base: Model to start from; empty for one that is pretrained first.
        pretraining: Of that one.
        seeds: Each runs the stages A to C; the base is shared.
        abilities: Built-in tasks, a specialist each.
        levels: Levels that a specialist is trained on, one after the other.
        weights: Of the specialists in the merge, in the order of `abilities`.
        normalize: Divide the merge by the sum of its weights.
        recipe: Training of a specialist; its model, data, level, verifier's name and seed are set from the above.
        domain: Training on the domain; its model and seed are set from the above.
    """

    output: str = "runs/meta"
    base: str = ""
    pretraining: PretrainConfig = PretrainConfig()
    seeds: tuple[int, ...] = (0, 1, 2)
    abilities: tuple[str, ...] = ("deduction", "induction", "abduction")
    levels: tuple[str, ...] = ("1", "2")
    weights: tuple[float, ...] = (1.0, 0.2, 0.1)
    normalize: bool = True
    recipe: TrainConfig = TrainConfig()
    domain: TrainConfig = TrainConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work, before anything is written."""
        if len(self.weights) != len(self.abilities):
            raise UserError(f"weights: {self.weights} for {len(self.abilities)} abilities; expected one for each")
        for field in ("seeds", "abilities", "levels"):
            if not getattr(self, field):
                raise UserError(f"{field}: is empty; expected one or more")
        unknown = [name for name in self.abilities if name not in TASKS]
        if unknown:
            raise UserError(f"abilities: {unknown[0]!r} is no built-in task; expected some of {', '.join(TASKS)}")
        self.specialist(self.abilities[0], self.levels[0], "tiny", 0).validate()
        self.on_domain("tiny", 0).validate()

    @property
    def folder(self) -> Path:
        """Of all pieces."""
        return Path(self.output)

    @property
    def base_model(self) -> str:
        """What all runs start from."""
        return self.base or str(self.folder / "base")

    def specialist(self, ability: str, level: str, model: str, seed: int) -> TrainConfig:
        """The run of one ability on one level."""
        return dataclasses.replace(
            self.recipe,
            model=model,
            seed=seed,
            data=(ability,),
            dataset=dataclasses.replace(self.recipe.dataset, level=level),
            verifier=dataclasses.replace(self.recipe.verifier, name=ability),
        )

    def on_domain(self, model: str, seed: int) -> TrainConfig:
        """A run of stage C."""
        return dataclasses.replace(self.domain, model=model, seed=seed)

    def specialist_folder(self, ability: str, level: str, seed: int) -> Path:
        """Of such a run."""
        return self.folder / f"seed{seed}" / f"{ability}-{level}"

    def models(self, seed: int) -> dict[str, str]:
        """The models that are compared, by their names in the table."""
        last = self.levels[-1]
        specialists = {a: str(self.specialist_folder(a, last, seed) / "hf") for a in self.abilities}
        return {"base": self.base_model} | specialists | {"merge": str(self.folder / f"seed{seed}" / "merged")}


Merge = Callable[[Sequence[str], Path], None]


def run_all(config: MetaConfig, merge: Merge, log: Callable[[str], None] = print) -> None:
    """Runs what is not finished yet.

    Args:
        config: What to run.
        merge: Writes the merge of some folders, in the order of `config.abilities`, to a new one.
        log: Takes lines meant for a person.

    Raises:
        UserError: A value cannot work, or the folder holds pieces of another config.
        Stopped: A signal asked for it; the same command goes on.
    """
    config.validate()
    with workdir.disk_errors(config.folder), workdir.owned(config.folder):
        workdir.prepare(config.folder, to_dict(config), resume_may_change=("output", "seeds"))
        if not config.base and not (config.folder / "base").exists():
            hf.save(config.folder / "base", *pretrain(config.pretraining, log))
        for seed in config.seeds:
            _run_seed(config, seed, merge, log)


def _run_seed(config: MetaConfig, seed: int, merge: Merge, log: Callable[[str], None]) -> None:
    """Stages A to C of one seed."""
    for ability in config.abilities:
        model = config.base_model
        for level in config.levels:
            folder = config.specialist_folder(ability, level, seed)
            _train(config.specialist(ability, level, model, seed), folder, log)
            model = str(folder / "hf")
    models = config.models(seed)
    if not Path(models["merge"]).exists():
        merge([models[ability] for ability in config.abilities], Path(models["merge"]))
    accuracies = config.folder / f"seed{seed}" / "accuracy.json"
    if not accuracies.exists():
        found = {name: _accuracies(config, model, seed) for name, model in models.items()}
        workdir.write_json(accuracies, found)
        log(f"seed {seed}  " + "  ".join(f"{name}: {_short(tasks)}" for name, tasks in found.items()))
    for start in STARTS:
        _train(config.on_domain(models[start], seed), _domain_folder(config, start, seed), log)


def _domain_folder(config: MetaConfig, start: str, seed: int) -> Path:
    return config.folder / f"seed{seed}" / f"domain_from_{start}"


def _train(run: TrainConfig, folder: Path, log: Callable[[str], None]) -> None:
    """A run, unless it is finished."""
    if (folder / "summary.json").exists():
        return
    summary = loop.train(run, setup.prepare(run), folder, log=lambda _: None)
    log(
        f"{folder}: accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f}  "
        f"{summary['seconds']:.0f} s"
    )


def _accuracies(config: MetaConfig, model: str, seed: int) -> dict[str, float]:
    """Accuracy of a model on held-out questions of every task: those that its runs of this seed are evaluated on."""
    level = config.levels[-1]
    runs = {ability: config.specialist(ability, level, model, seed) for ability in config.abilities}
    return {task: accuracy(run) for task, run in (runs | {"domain": config.on_domain(model, seed)}).items()}


def accuracy(run: TrainConfig) -> float:
    """Accuracy of a run's model, before training, on the run's held-out questions."""
    prepared = setup.prepare(run)
    args = (prepared.model, prepared.policy(prepared.params), prepared.rules, prepared.held_out)
    answered = answer_questions(*args, jax.random.key(run.seed), run.evaluation, prepared.limits)
    return summarise(answered)["accuracy"]


def collect(config: MetaConfig) -> tuple[list[dict[str, Any]], dict[str, list[list[tuple[int, float]]]]]:
    """What the finished pieces found.

    Returns:
        accuracies: For each finished seed, {model: {task: accuracy}}.
        curves: For each start of stage C, a curve of (step, accuracy) for each seed.
    """
    accuracies, curves = [], {start: [] for start in STARTS}
    for seed in config.seeds:
        file = config.folder / f"seed{seed}" / "accuracy.json"
        if file.exists():
            accuracies.append(json.loads(file.read_text(encoding="utf-8")))
        for start in STARTS:
            folder = _domain_folder(config, start, seed)
            if (folder / "summary.json").exists():
                curves[start].append(accuracy_curve(folder))
    return accuracies, curves


def tables(
    config: MetaConfig,
    accuracies: Sequence[Mapping[str, Mapping[str, float]]],
    curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
) -> str:
    """Two Markdown tables, means over seeds with the lowest and highest: models by tasks; stage C by steps."""
    columns = [*config.abilities, "domain"]
    lines = [f"| model | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for model in ("base", *config.abilities, "merge"):
        cells = [_cell([seed[model][task] for seed in accuracies]) for task in columns]
        name = f"specialist, {model}" if model in config.abilities else model
        lines.append(f"| {name} | {' | '.join(cells)} |")
    steps = [step for step, _ in next((seeds[0] for seeds in curves.values() if seeds), [])]
    lines += [
        "",
        f"| domain RL from | {' | '.join(f'step {step}' for step in steps)} |",
        f"|{'---|' * (len(steps) + 1)}",
    ]
    for start, seeds in curves.items():
        cells = [_cell([value for _, value in points]) for points in zip(*seeds, strict=True)]
        lines.append(f"| {start} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    return spread(values) if values else "-"


def _short(accuracies: Mapping[str, float]) -> str:
    return " ".join(f"{value:.2f}" for value in accuracies.values())
