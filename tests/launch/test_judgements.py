"""launch.judgements keeps what the verifier said of every answer, and its files are judging tasks to train on."""

import dataclasses
import json

import pytest

from launch import cli, judgements
from nrt_jax import tasks
from nrt_jax.data.encode import Encoded
from nrt_jax.data.example import Example
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.evaluation.rejection import Sampled
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged
from tests.fixtures_run import examples, tokenizer, write_model, write_rows, write_run


def run(folder, *flags) -> dict[str, list[Judged]]:
    cli.run(
        judgements.main, judgements.JudgementsConfig, "judgements", "", args=["--output", str(folder / "out"), *flags]
    )
    files = {name: (folder / "out" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    return {name: [judging.parse_row(json.loads(line)) for line in lines] for name, lines in files.items()}


def test_answers_of_a_model_become_balanced_tasks_with_the_verifiers_label(tmp_path, capsys):
    sizes = ["--dataset.size", "12", "--held-out", "12", "--samples", "4", "--max-new-tokens", "64"]
    made = run(tmp_path, "--checkpoints", "tiny", "--data", "clock", "--batch-size", "48", *sizes, "--test-share", "0")
    task = tasks.get("clock")
    asked = {
        name: {e.question: e.answer for e in task.examples(size, 0, split)}
        for name, size, split in (("train", 12, "train"), ("test", 12, "heldout"))
    }
    assert made["train"]
    for name, rows in made.items():
        assert all(row.question in asked[name] and row.reference == asked[name][row.question] for row in rows)
        assert all(row.label == task.is_correct(Example("", row.reference), row.response) for row in rows)
        assert sum(row.label for row in rows) * 2 == len(rows)
        assert {(row.subset, row.model) for row in rows} <= {("clock", "tiny")}
    source = open_rows(f"judging:{tmp_path / 'out' / 'train.jsonl'}", DataConfig())
    assert [parse(source[i], DataConfig()) for i in range(len(source))] == [row.example() for row in made["train"]]
    assert f"{len(made['train'])} judging tasks to train on" in capsys.readouterr().out


def test_files_with_labels_are_divided_by_question(tmp_path):
    rows = [Judged(f"q{i // 4}", f"r{i}", i % 2, model="m") for i in range(80)]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
    made = run(tmp_path, "--labelled", str(path), "--test-share", "0.3")
    assert made["train"] and made["test"]
    given = {(row.question, row.response): row.label for row in rows}
    for row in made["train"] + made["test"]:
        assert given[row.question, row.response] == row.label and row.subset == str(path)
    assert not {r.question for r in made["train"]} & {r.question for r in made["test"]}


@pytest.fixture
def random_model(tmp_path) -> str:
    return str(write_model(tmp_path / "model"))


@pytest.fixture
def answered(monkeypatch) -> list[Encoded]:
    """Samples nothing: of each question, its reference answer and a wrong one; the questions that were asked."""
    asked: list[Encoded] = []

    def answer(model, params, rules, rows, **how):
        asked.extend(rows)
        for i, row in enumerate(rows):
            yield i, Sampled(row.example.answer, "hm", True if how["is_verified"] else None)
            yield i, Sampled("no", "so", False if how["is_verified"] else None)

    monkeypatch.setattr(judgements, "answers", lambda *args, **how: list(answer(*args, **how)))
    return asked


def test_a_task_of_a_chat_tells_the_turns_before_its_question(tmp_path, random_model, answered):
    chats = [
        [*({"role": "user", "content": f"What is {i} plus 3?"}, {"role": "assistant", "content": f"It is {i + 3}."}),
         *({"role": "user", "content": "And then?"}, {"role": "assistant", "content": f"It is {i + 4}."})]
        for i in range(6)
    ]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    made = run(tmp_path, "--checkpoints", random_model, "--data", str(tmp_path / "chats.jsonl"), "--test-share", "0")
    asked = {f"What is {i} plus 3?\nIt is {i + 3}.\nAnd then?" for i in range(6)}
    assert {row.question for row in made["train"]} == asked and len(made["train"]) == 12


def test_references_that_the_verifier_cannot_read_are_left_out_before_anything_is_sampled(
    tmp_path, random_model, answered, capsys
):
    rows = [*examples(5), Example("What is blue?", "a colour"), *examples(1, start=30)]
    data = ["--data", str(write_rows(tmp_path / "rows.jsonl", rows)), "--verifier.name", "number"]
    made = run(tmp_path, "--checkpoints", random_model, *data, "--test-share", "0")
    assert {row.question for row in made["train"]} == {e.question for e in rows if e.answer != "a colour"}
    assert "6 of 7 rows; left out: 1 answer is not right to the verifier 'number'" in capsys.readouterr().err


def test_where_the_verifier_can_read_no_reference_of_a_source_nobody_is_asked(tmp_path, random_model, answered, capsys):
    good, bad = (str(tmp_path / name) for name in ("good.jsonl", "bad.jsonl"))
    write_rows(tmp_path / "good.jsonl", examples(4))
    write_rows(tmp_path / "bad.jsonl", [Example("What is blue?", "a colour")] * 3)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--checkpoints", random_model, "--data", good, bad, "--verifier.name", "number")
    error = capsys.readouterr().err
    assert "no example is left of the 3 rows" in error and "not right to the verifier 'number'" in error
    assert error.count("\n") == 1
    assert not answered and not (tmp_path / "out").exists()


def test_a_run_answers_as_it_was_trained_but_for_what_the_user_says(tmp_path, monkeypatch, answered):
    trained = {"text": {"template": "Q: {question}", "max_answer_length": 50}, "trace": {"closing": "</think>"}}
    model = write_run(tmp_path / "run", monkeypatch, **trained)
    data = ["--data", str(write_rows(tmp_path / "rows.jsonl", examples(2))), "--test-share", "0"]
    prompts = []
    for flags in ([], ["--text.template", "{question}!"]):
        run(tmp_path, "--checkpoints", model, *data, *flags)
        prompts += [tokenizer().decode(row.prompt, skip_special_tokens=True) for row in answered]
        answered.clear()
    asked = [e.question for e in examples(2)]
    assert prompts == [f"Q: {q}" for q in asked] + [f"{q}!" for q in asked]


def test_answers_without_labels_are_those_of_all_questions_whatever_stands_for_their_references(
    tmp_path, random_model, answered
):
    rows = [Example(e.question, "-") for e in examples(4)]
    flags = ["--checkpoints", random_model, "--data", str(write_rows(tmp_path / "rows.jsonl", rows)), "clock"]
    sizes = ["--dataset.size", "3", "--held-out", "3", "--verifier.name", "number"]
    args = ["--output", str(tmp_path / "out"), *flags, *sizes, "--unlabelled", "true"]
    cli.run(judgements.main, judgements.JudgementsConfig, "judgements", "", args=args)
    (path,) = (tmp_path / "out").iterdir()
    made = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [e.question for e in (*rows, *tasks.get("clock").examples(3, 0))]
    assert path.name == "responses.jsonl" and [row["question"] for row in made] == [q for q in asked for _ in "ab"]
    assert made[1] == {
        "question": asked[0],
        "response": "no",
        "completion": "so<|response_start|>no",
        "model": random_model,
    }


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ([], "expected --data and --checkpoints together"),
        (["--data", "clock"], "expected --data and --checkpoints together"),
        (["--labelled", "bad.jsonl", "--unlabelled", "true"], "unlabelled: True cannot work with --labelled"),
        (["--unlabelled", "true"], "expected --data and --checkpoints together"),
        (["--labelled", "bad.jsonl"], "row 1: column 'label' is missing"),
        (["--labelled", "bad.jsonl", "--test-share", "1"], "test_share: 1.0 cannot work"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, flags, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "response": "r"}\n')
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, *flags)
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
