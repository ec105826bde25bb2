"""Train a judge that thinks, measure it, and train a policy with it: Libra's pipeline (docs/libra.md).

python -m launch.libra                                            the embedded model; resumes
python -m launch.libra --seeds 0 --output runs/libra0             a part of it

Stages, each in a folder or a file of its own: a base that knows judging (or --base), judging tasks from its answers and
other models', a judge trained on verdicts alone; rejection sampling, SFT, GRPO; a test of all judges, and a policy
trained with the last one on questions without labels, beside those trained on labels with a verifier in its place, and
with NRT.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import chains, cli, judgements, pretrain
from nrt_jax.tasks import judging
from nrt_jax.training import loop, setup, workdir
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import to_dict
from nrt_jax.training.judged import load_judge
from nrt_jax.training.libra import JUDGES, POLICIES, LibraConfig, measure, tables
from nrt_jax.training.metrics import METRICS_FILE, read_metrics

#: Seed of the questions that judging tasks and non-judging chains are made of. Policies have other seeds, and so none
#: of them is trained on a question whose labels its judge has seen.
QUESTIONS_SEED = 2**31


def main(config: LibraConfig) -> None:
    """Runs what is not finished, and writes the tables."""
    config.validate()
    output = Path(config.output)
    with workdir.disk_errors(output), workdir.owned(output):
        workdir.prepare(output, to_dict(config), resume_may_change=("output", "seeds"))
        _run(config, output)


def _run(config: LibraConfig, output: Path) -> None:
    started = time.monotonic()
    base = config.base or str(_unless_there(output / "base", lambda path: _pretrain(config, path)))
    tasks = _unless_there(output / "judging", lambda path: _judging_tasks(config, base, path))
    other = _unless_there(output / "other.jsonl", lambda p: _chains(config, base, config.data, p, QUESTIONS_SEED))
    judged: dict[str, list] = {name: [] for name in JUDGES}
    summaries: dict[str, list] = {name: [] for name in POLICIES}
    for seed in config.seeds:
        folder = output / f"seed{seed}"
        trained = _train_judge(config, base, tasks, other, folder, seed)
        for name, checkpoint in trained.items():
            path = folder / f"{name}.json"
            _unless_there(path, lambda path, checkpoint=checkpoint: _measure(config, checkpoint, tasks, path))
            judged[name].append(json.loads(path.read_text(encoding="utf-8")))
        for name, run in config.policies(trained["grpo"], seed).items():
            summaries[name].append(_train(run, folder / name))
    text = tables(judged, summaries)
    (output / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nin {time.monotonic() - started:.0f} s; written to {output / 'tables.md'}")


def _unless_there(path: Path, make: Callable[[Path], Any]) -> Path:
    """Makes a file or folder, under another name until it is complete."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial.{path.name}")
        _remove(partial)
        make(partial)
        partial.rename(path)
    return path


def _remove(path: Path) -> None:
    """What an earlier attempt left."""
    for child in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
        child.rmdir() if child.is_dir() else child.unlink()
    if path.exists():
        path.rmdir() if path.is_dir() else path.unlink()


def _pretrain(config: LibraConfig, path: Path) -> None:
    pretrain.main(dataclasses.replace(config.pretrain, output=str(path)))


def _judging_tasks(config: LibraConfig, base: str, path: Path) -> None:
    """V2V: what the generators and the base answer, judged by the verifier of the policy's run."""
    policy = config.policy
    for_all = {
        "data": (config.data,),
        "questions": config.questions,
        "held_out": config.tests,
        "samples": config.samples,
        "max_new_tokens": _longest(policy),
        "verifier": policy.verifier,
        "dataset": dataclasses.replace(policy.dataset, size=config.questions),
        "text": policy.text,
        "seed": QUESTIONS_SEED,
    }
    rows: dict[str, list[judging.Judged]] = {"train.jsonl": [], "test.jsonl": []}
    for i, (models, trace) in enumerate(((config.generators, policy.trace), ((base,), config.sft.trace))):
        part = path.with_name(f"{path.name}.{i}")
        judgements.main(judgements.JudgementsConfig(output=str(part), checkpoints=models, trace=trace, **for_all))
        for name, of_all in rows.items():
            of_all += _read(part / name)
        _remove(part)
    made = judging.make_tasks(rows["train.jsonl"], test_share=0.0, tests=rows["test.jsonl"])
    path.mkdir()
    for name, chosen in zip(rows, (made.train, made.test), strict=True):
        lines = (json.dumps(dataclasses.asdict(row)) + "\n" for row in chosen)
        (path / name).write_text("".join(lines), encoding="ascii")
    print(made)


def _read(path: Path) -> list[judging.Judged]:
    return [judging.parse_row(json.loads(line)) for line in path.read_text(encoding="ascii").splitlines()]


def _chains(config: LibraConfig, base: str, data: str, path: Path, seed: int) -> None:
    """Rejection sampling; on judging tasks by the verdict."""
    stage = config.sft if data.startswith(judging.PREFIX) else config.policy
    chains.main(
        chains.ChainsConfig(
            checkpoint=base,
            data=(data,),
            output=str(path),
            held_out=1,
            samples=config.samples,
            keep=config.keep,
            min_answer_prob=config.min_answer_prob,
            max_new_tokens=_longest(stage),
            seed=seed,
            verifier=stage.verifier,
            dataset=dataclasses.replace(stage.dataset, size=config.questions),
            text=config.sft.text,
            trace=config.sft.trace,
        )
    )


def _longest(run: TrainConfig) -> int:
    """Most tokens of a trace, delimiter and answer, whether the run itself samples answers or not."""
    return run.rollout.max_trace_length + 1 + run.text.max_answer_length


def _train_judge(config: LibraConfig, base: str, tasks: Path, other: Path, folder: Path, seed: int) -> dict[str, str]:
    """The judges' checkpoints, by the names of JUDGES."""
    train, test = (f"{judging.PREFIX}{tasks / name}" for name in ("train.jsonl", "test.jsonl"))
    kept = _unless_there(folder / "chains.jsonl", lambda path: _chains(config, base, train, path, seed))
    trained = {"base": base}
    for name, run in config.judges(
        base, train, test, (str(kept), str(other)), str(folder / "sft" / "hf"), seed
    ).items():
        _train(run, folder / name)
        trained[name] = str(folder / name)
    return trained


def _measure(config: LibraConfig, checkpoint: str, tasks: Path, path: Path) -> None:
    judge = load_judge(dataclasses.replace(config.judge, model=checkpoint))
    found = measure(judge, _read(tasks / "test.jsonl"))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{checkpoint}: {', '.join(f'{name} {value:.3f}' for name, value in found.items())}")


def _train(run: TrainConfig, folder: Path) -> dict[str, Any]:
    """The summary of a run, which is resumed, or only read where it is finished; and its best accuracy."""
    path = folder / "summary.json"
    if path.exists():
        workdir.prepare(folder, to_dict(run))  # Refuses a run of another recipe.
    else:
        summary = loop.train(run, setup.prepare(run), folder, log=lambda _: None)
        before, after = summary["accuracy_before"], summary["accuracy_after"]
        print(f"{folder}: accuracy {before:.3f} -> {after:.3f}, {summary['seconds']:.0f} s")
    on_the_way = [record["accuracy"] for record in read_metrics(folder / METRICS_FILE) if "accuracy" in record]
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary | {"accuracy_best": max([*on_the_way, summary["accuracy_after"]])}


if __name__ == "__main__":
    cli.run(main, LibraConfig, "python -m launch.libra", __doc__, default_config="libra/embedded")
