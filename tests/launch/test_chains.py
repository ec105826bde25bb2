"""launch.chains keeps the traces of right answers, and what it writes is data to train on."""

import dataclasses
import json
import math
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import chains, cli
from nrt_jax import tasks
from nrt_jax.data.example import Example
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.evaluation import generation, rejection
from nrt_jax.tasks.judging import Judged
from tests.fixtures_run import examples, write_rows

NUM = 6


def always(example, completion):
    """Every answer is right."""
    return None if completion.answer is None else 1.0


def never(example, completion):
    """No answer is."""
    return 0.0


def run(folder, *flags, data="clock"):
    path = folder / "chains.jsonl"
    sizes = ["--dataset.size", str(NUM), "--samples", "6", "--max-new-tokens", "64", "--batch-size", "36"]
    args = ["--checkpoint", "tiny", "--data", data, "--output", str(path), *sizes, *flags]
    cli.run(chains.main, chains.ChainsConfig, "chains", "", args=args)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_chains_are_of_right_answers_in_the_order_of_the_questions_and_can_be_trained_on(tmp_path, capsys):
    task = tasks.get("clock")
    asked = {e.question: e for e in task.examples(NUM, 0)}
    rows = run(tmp_path, "--keep", "3")
    questions = list(dict.fromkeys(row["question"] for row in rows))
    assert 0 < len(questions) <= NUM and questions == [q for q in asked if q in questions]
    pairs = [(row["question"], row["trace"]) for row in rows]
    assert len(set(pairs)) == len(pairs) and all(pairs.count((q, t)) == 1 for q, t in pairs)
    assert all(row["answer"] == asked[row["question"]].answer for row in rows)
    # A right answer is a guess in 1 of 12 or less; the model's working makes the others right.
    useful = [task.is_useful(asked[q], trace) or trace.startswith("From") for q, trace in pairs]
    assert sum(useful) >= len(useful) / 2
    read = [parse(row, DataConfig()) for row in open_rows(str(tmp_path / "chains.jsonl"), DataConfig())]
    assert [(e.question, e.trace) for e in read] == pairs
    assert f"kept {len(rows)} chains of {len(questions)} questions; {NUM} questions" in capsys.readouterr().out


def test_the_verifier_decides_and_keep_limits(tmp_path):
    all_right = run(tmp_path, "--verifier.name", f"{__name__}:always", "--keep", "2")
    kept = [sum(row["question"] == q for row in all_right) for q in {row["question"] for row in all_right}]
    assert set(kept) <= {1, 2} and 2 in kept
    assert run(tmp_path, "--verifier.name", f"{__name__}:never") == []


@given(
    st.lists(st.tuples(st.sampled_from(["q", "Q ", "r", "s"]), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_of_all_judging_tasks_on_one_question_at_most_so_many_chains_are_kept(tasks_of, number):
    asked = [question.strip().casefold() for question, _ in tasks_of]
    made = [Judged(q, f"response {i}", i % 2).example() for i, (q, _) in enumerate(tasks_of)]
    done = {i: [dataclasses.replace(made[i], trace=f"{i} {k}") for k in range(n)] for i, (_, n) in enumerate(tasks_of)}
    kept = rejection.at_most(number, done)
    for question in set(asked):
        own = [i for i in done if asked[i] == question]
        assert sum(len(kept[i]) for i in own) == min(number, sum(len(done[i]) for i in own))
        # One more of a task than of another only if that has no more.
        assert all(len(kept[i]) + 1 >= len(kept[j]) or kept[i] == done[i] for i in own for j in own)
    assert all(kept[i] == done[i][: len(kept[i])] for i in done) and kept.keys() == done.keys()


def test_the_limit_of_a_question_holds_for_what_is_written(tmp_path, monkeypatch):
    rows = [Judged(f"q{i // 4}", f"response {i}", i % 2) for i in range(13)]  # The last one is held out.
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))

    def sample(model, params, rules, rows, **how):
        yield {i: [dataclasses.replace(row.example, trace=f"{k}") for k in "ab"] for i, row in enumerate(rows)}

    monkeypatch.setattr(chains, "right_chains", sample)
    flags = ("--verifier.name", "verdict", "--keep", "2")
    assert len(run(tmp_path, *flags, data=f"judging:{path}")) == 24
    kept = run(tmp_path, *flags, "--keep-per-question", "3", data=f"judging:{path}")
    assert [(row["question"][:2], row["trace"]) for row in kept] == [(f"q{i}", "a") for i in range(3) for _ in range(3)]


def test_answers_that_were_guesses_can_be_left_out(tmp_path):
    flags = ("--keep", "6", "--verifier.name", f"{__name__}:always")
    answered = run(tmp_path, *flags)
    kept = run(tmp_path, *flags, "--min-answer-prob", "0.3")
    assert 0 < len(kept) < len(answered)
    assert all(row in answered for row in kept)
    assert run(tmp_path, *flags, "--min-answer-prob", "0") == answered
    with pytest.raises(SystemExit):
        run(tmp_path, "--min-answer-prob", "1.5")


def test_the_probability_of_an_answer_is_that_of_its_tokens_after_the_delimiter():
    rules = types.SimpleNamespace(encoder=types.SimpleNamespace(format=types.SimpleNamespace(delimiter=7)))
    completion = generation.Completion([1, 2, 7, 3, 7, 4], [-9.0, -9.0, -9.0, -0.1, -0.2, -0.3], "stop")
    assert rejection._answer_prob(rules, completion) == pytest.approx(math.exp(-0.6))
    assert rejection._answer_prob(rules, generation.Completion([1, 2], [-0.1, -0.1], "stop")) == 0.0


def test_references_that_the_verifier_cannot_read_are_left_out_before_anything_is_sampled(
    tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(
        chains, "right_chains", lambda model, params, rules, rows, **how: asked.extend(rows) or [{0: [], 1: []}]
    )
    rows = [examples(1)[0], Example("What is blue?", "a colour"), *examples(2, start=8)]  # The last one is held out.
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert run(tmp_path, "--verifier.name", "number", data=path) == []
    assert [row.example for row in asked] == [rows[0], rows[2]]
    assert "3 of 4 rows; left out: 1 answer is not right to the verifier 'number'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--samples", "0"], "samples: 0 cannot work"),
        (["--keep-per-question", "-1"], "keep_per_question: -1 cannot work"),
        (["--temperature", "0"], "temperature: 0.0 cannot work"),
        (["--verifier.name", "exakt"], "verifier.name: unknown value 'exakt'"),
        (["--max-new-tokens", "5000"], "longer than"),
        (["--verifier.name", "verdict"], "4 answer is not right to the verifier 'verdict'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, flags, problem):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *flags, data=str(write_rows(tmp_path / "rows.jsonl", examples(4))))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and problem in error
    assert not (tmp_path / "chains.jsonl").exists()
