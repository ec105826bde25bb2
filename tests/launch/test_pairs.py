"""launch.pairs: the best and the worst response of each question, as rows that DPO learns from."""

import json

import pytest

from launch import cli, pairs
from nrt_jax.data.example import Example
from nrt_jax.data.rows import DataConfig, parse

SCORED = [
    ("a", "good", 0.9),
    ("b", "only", 0.5),
    ("a", "bad", 0.1),
    ("a", "fair", 0.6),
    ("c", "x", 0.4),
    ("c", "y", 0.4),
]


def run(tmp_path, rows, *flags) -> list[dict]:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = [f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl", *flags]
    cli.run(pairs.main, pairs.PairsConfig, "pairs", "", args=args)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_the_best_response_is_chosen_and_the_worst_rejected(tmp_path, capsys):
    rows = [{"question": q, "response": r, "p_correct": p, "reference": "7", "subset": "s"} for q, r, p in SCORED]
    (row,) = run(tmp_path, rows)
    assert row == {"question": "a", "chosen": "good", "rejected": "bad", "score_chosen": 0.9, "score_rejected": 0.1,
                   "answer": "7", "subset": "s"}  # fmt: skip
    assert parse(row, DataConfig(pairs=True)) == Example("a", "7", pair=("good", "bad"))
    assert capsys.readouterr().out.startswith("1 pairs of 3 questions with 6 responses, 0 of which are empty")
    assert run(tmp_path, rows[::-1]) == [row]


@pytest.mark.parametrize("score", [0.95, 0.7, 0.05])
def test_empty_responses_are_left_out_wherever_they_rank(score, tmp_path, capsys):
    rows = [{"question": q, "response": r, "p_correct": p} for q, r, p in [("a", " ", score), *SCORED, ("d", "", 1)]]
    (row,) = run(tmp_path, rows)
    assert (row["chosen"], row["rejected"]) == ("good", "bad")
    assert "1 pairs of 4 questions with 8 responses, 2 of which are empty" in capsys.readouterr().out


def test_columns_have_the_names_that_are_given_and_labels_are_scores(tmp_path):
    rows = [{"prompt": q, "completion": r, "label": int(p > 0.5)} for q, r, p in SCORED]
    names = ("--question-column=prompt", "--response-column=completion", "--score-column=label")
    (row,) = run(tmp_path, rows, *names)
    assert (row["chosen"], row["rejected"], row["score_chosen"]) == ("good", "bad", 1) and "answer" not in row


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        (SCORED, ["--min-gap=0.9"], "no pair is left of the 3 questions"),
        (SCORED, ["--min-gap=-1"], "min_gap: -1.0 cannot work"),
        ([("a", "x", None)], [], "'p_correct' is None; expected a number"),
        ([("a", "same", 0.1), ("a", "same ", 0.9)], [], "no pair is left"),
        ([("a", " ", 0.5), ("a", "x", 0.1)], [], "1 of whose 2 responses are empty"),
        ([("a", None, 0.5)], [], "line 1: 'response' is None; expected text"),
    ],
)
def test_what_gives_no_pair_is_refused_and_nothing_is_written(rows, flags, message, tmp_path, capsys):
    rows = [{"question": q, "response": r, "p_correct": p} for q, r, p in rows]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, rows, *flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
