"""The commands of docs/libra.md and docs/dpo.md, in their order, on a random model of one layer.

What it samples as an answer is replaced by text; what a judge of it says is its own.
"""

import dataclasses
import inspect
import json
import pathlib
import re
import shlex

import pytest

from launch import chains, cli, judge, judgements, pairs
from nrt_jax.evaluation import generation
from nrt_jax.rewards.verifiable import Completion
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged
from nrt_jax.training import setup
from nrt_jax.training.config import TrainConfig
from tests.fixtures_run import examples, tokenizer, write_model, write_rows

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def command(page: str, start: str) -> list[str]:
    """Flags of the one command of a page that starts so."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)).replace("\\\n", " ")
    (line,) = {line for line in blocks.splitlines() if line.startswith(f"python -m {start}")}
    return shlex.split(line)[3:]


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """What is sampled, in turn, of each prompt: texts whose special tokens are meant."""
    texts: list[str] = []

    def complete(model, params, prompts, indices, **how):
        for i in indices:
            yield {i: generation.Completion(tokenizer().encode(texts[i % len(texts)]), [-0.1] * 9, "stop")}

    monkeypatch.setattr(generation, "complete", complete)
    return texts


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


def test_labels_become_chains_that_sft_learns_from(folder, written):
    rows = [Judged(e.question, text, label) for e in examples(8) for label, text in enumerate(("No.", e.answer))]
    write(folder / "path" / "to" / "labelled.jsonl", list(map(vars, rows)))
    run(judgements, "libra.md", "launch.judgements --labelled", "--test-share", "0.3")
    train, test = (read(folder / "judging" / f"{name}.jsonl") for name in ("train", "test"))
    assert len(train) + len(test) == 16 and test
    written += [f"Hm, {i}.</think>{judging.verdict(i % 2)}<eos>" for i in range(8)]
    run(chains, "libra.md", "launch.chains", "--held-out", "1")
    kept = read(folder / "chains.jsonl")
    label_of = {Judged(**row).example().question: row["label"] for row in train}
    right = {label: [written[i].partition("</think>")[0] for i in range(label, 8, 2)][:2] for label in (0, 1)}
    asked = [Judged(**row).example().question for row in train[:-1]]
    assert [(row["question"], row["trace"]) for row in kept] == [(q, z) for q in asked for z in right[label_of[q]]]
    write_rows(folder / "other.jsonl", examples(4, start=20))
    made = setup.prepare(cli.parse(TrainConfig, "", "", args=command("libra.md", "launch.train --config libra/sft")))
    assert (len(made.train), len(made.held_out)) == (len(kept) + 4, len(test))
    assert made.train.num_without_trace == 0


def test_questions_without_labels_become_pairs_that_dpo_learns_from(folder, written):
    questions = [dataclasses.replace(e, answer="-") for e in examples(4)]
    write_rows(folder / "path" / "to" / "questions.jsonl", questions)
    write_model(folder / "path" / "to" / "judge")
    written += [f"{i} + 3<|response_start|>It is {i}.<eos>" for i in range(3)] + ["never an answer<eos>"]
    run(judgements, "dpo.md", "launch.judgements")
    sampled = read(folder / "sampled" / "responses.jsonl")
    assert [(row["question"], row["response"]) for row in sampled] == [
        (e.question, f"It is {i}.") for e in questions for i in range(3)
    ]
    assert [row["completion"] for row in sampled] == [text.removesuffix("<eos>") for text in written[:3]] * 4
    run(
        judge,
        "dpo.md",
        "launch.judge --checkpoint",
        "--max-thought-length",
        "4",
        "--batch-size",
        "16",
        "--samples",
        "1",
    )
    judged = read(folder / "judged.jsonl")
    assert [{name: row[name] for name in sampled[0]} for row in judged] == sampled
    run(pairs, "dpo.md", "launch.pairs", "--min-gap", "0")
    made_of = read(folder / "pairs.jsonl")
    assert [row["question"] for row in made_of] == [e.question for e in questions]
    assert {text for row in made_of for text in (row["chosen"], row["rejected"])} <= {r["completion"] for r in sampled}
    config = cli.parse(TrainConfig, "", "", args=command("dpo.md", "launch.train --config dpo"))
    made = setup.prepare(config)
    assert len(made.train) + len(made.held_out) == 4
    assert all(ids.count(made.trace_format.delimiter) == 1 for row in made.train for ids in row.pair)
