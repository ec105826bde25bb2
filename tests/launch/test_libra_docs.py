"""The commands of docs/libra.md and docs/dpo.md, in their order, on a random model of one layer."""

import dataclasses
import inspect
import json
import pathlib
import re
import shlex

import pytest

from launch import chains, cli, judge, judgements, pairs
from nrt_jax.rewards.verifiable import Completion
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged
from nrt_jax.training import setup
from nrt_jax.training.config import TrainConfig
from tests.fixtures_run import examples, write_model, write_rows

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def command(page: str, start: str) -> list[str]:
    """Flags of the one command of a page that starts so."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)).replace("\\\n", " ")
    (line,) = {line for line in blocks.splitlines() if line.startswith(f"python -m {start}")}
    return shlex.split(line)[3:]


def always(example, completion):
    """A verifier that finds every answer right."""
    return None if completion.answer is None else 1.0


def run(module, page: str, start: str, *flags: str) -> None:
    """Runs a command as it stands in the page, and more flags."""
    (parameter,) = inspect.signature(module.main, eval_str=True).parameters.values()
    cli.run(module.main, parameter.annotation, start, "", args=[*command(page, start), *flags])


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: pathlib.Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the commands find what they name."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "path" / "to" / "model")
    return tmp_path


def test_what_sft_holds_out_has_verdicts_though_other_data_is_mixed_in(folder):
    tasks = [Judged(e.question, e.answer, i % 2).example(e.trace) for i, e in enumerate(examples(12))]
    write_rows(folder / "chains.jsonl", tasks)
    write_rows(folder / "other.jsonl", examples(12, start=20))
    write(folder / "judging" / "test.jsonl", [vars(Judged(e.question, e.answer, 1)) for e in examples(3, start=40)])
    config = cli.parse(TrainConfig, "", "", args=command("libra.md", "launch.train --config libra/sft"))
    made = setup.prepare(config)
    assert len(made.held_out) == 3
    said = Completion("", judging.verdict(1), well_formed=True)
    assert [made.rules.verdict(row, said) for row in made.held_out] == [1.0] * 3


def test_labels_become_chains_that_sft_learns_from(folder):
    rows = [Judged(e.question, text, label) for e in examples(8) for label, text in enumerate(("No.", e.answer))]
    write(folder / "path" / "to" / "labelled.jsonl", list(map(vars, rows)))
    run(judgements, "libra.md", "launch.judgements --labelled", "--test-share", "0.3")
    train, test = (read(folder / "judging" / f"{name}.jsonl") for name in ("train", "test"))
    assert len(train) + len(test) == 16 and test
    small = ["--samples", "16", "--max-new-tokens", "192", "--batch-size", "128"]
    run(chains, "libra.md", "launch.chains", *small, "--verifier.name", f"{__name__}:always")
    kept = read(folder / "chains.jsonl")
    known = {Judged(row["question"], row["response"], row["label"]).example().question: row["label"] for row in train}
    assert kept and all(row["answer"] == judging.verdict(known[row["question"]]) for row in kept)
    write_rows(folder / "other.jsonl", examples(4, start=20))
    made = setup.prepare(cli.parse(TrainConfig, "", "", args=command("libra.md", "launch.train --config libra/sft")))
    assert len(made.held_out) == len(test) and made.train.num_without_trace == 0
    assert len(made.train) == len(kept) + 4


def test_questions_without_labels_become_pairs_that_dpo_learns_from(folder):
    questions = [dataclasses.replace(e, answer="-") for e in examples(4)]
    write_rows(folder / "path" / "to" / "questions.jsonl", questions)
    write_model(folder / "path" / "to" / "judge")
    small = ["--samples", "64", "--max-new-tokens", "192", "--batch-size", "128"]
    run(judgements, "dpo.md", "launch.judgements", *small)
    sampled = read(folder / "sampled" / "responses.jsonl")
    assert {row["question"] for row in sampled} <= {e.question for e in questions}
    run(judge, "dpo.md", "launch.judge ", "--max-thought-length", "8", "--batch-size", "16", "--samples", "2")
    judged = read(folder / "judged.jsonl")
    assert [{name: row[name] for name in sampled[0]} for row in judged] == sampled
    run(pairs, "dpo.md", "launch.pairs", "--min-gap", "0")
    made = setup.prepare(
        cli.parse(
            TrainConfig,
            "",
            "",
            args=command("dpo.md", "launch.train --config dpo --model path/to/model --data pairs.jsonl"),
        )
    )
    assert len(made.train) + len(made.held_out) == len(read(folder / "pairs.jsonl")) > 1
    delimiter = made.trace_format.delimiter
    assert all(ids.count(delimiter) == 1 for row in made.train for ids in row.pair)
