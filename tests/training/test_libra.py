"""Figures of judges by hand, and the pipeline's promise that half-made pieces do not count."""

import pytest

from launch import libra
from nrt_jax.rewards import Judgement
from nrt_jax.training.libra import figures, tables


def judgement(verdicts, p_correct, p_without_thought) -> Judgement:
    return Judgement(("a b",) * len(verdicts), verdicts, p_correct, p_without_thought)


def test_figures_by_hand():
    judgements = [
        judgement((1, 1, 0), (0.9, 0.8, 0.1), 0.9),
        judgement((0, 0, None), (0.6, 0.7, 0.4), 0.2),
        judgement((1, 0), (0.4, 0.4), 0.7),
        judgement((None, None), (0.1, 0.1), 0.8),
    ]
    found = figures(judgements, [1, 0, 1, 0])
    assert found == {
        "accuracy": 0.5,
        "accuracy_soft": 0.5,
        "accuracy_without_thought": 0.75,
        "unparseable": pytest.approx(0.3),
        "says_correct": 0.25,
        "thought_words": 2.0,
        "rows": 4,
    }


def test_a_judge_that_always_says_correct_is_right_on_half_of_balanced_rows():
    always = [judgement((1, 1), (1.0, 1.0), 1.0)] * 6
    found = figures(always, [0, 1] * 3)
    assert found["accuracy"] == found["accuracy_soft"] == found["accuracy_without_thought"] == 0.5
    assert found["says_correct"] == 1.0


def test_tables_have_means_and_extremes_of_the_seeds():
    row = figures([judgement((1,), (1.0,), 0.0)], [1])
    policy = {"accuracy_before": 0.1, "accuracy_best": 0.95, "accuracy_after": 0.9}
    text = tables({"base": [row, row | {"accuracy": 0.5}]}, {"with_nrt": [policy]})
    assert "| base | 2 | 0.000 (0.000 to 0.000) | 0.750 (0.500 to 1.000) |" in text
    cells = "0.100 (0.100 to 0.100) | 0.950 (0.950 to 0.950) | 0.900 (0.900 to 0.900)"
    assert f"| NRT, labelled questions | 1 | {cells} |" in text


def test_a_piece_counts_once_it_is_whole(tmp_path):
    made = []

    def make(path, *, fails=False):
        made.append(path)
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("part")
        if fails:
            raise OSError

    with pytest.raises(OSError):
        libra._unless_there(tmp_path / "piece", lambda path: make(path, fails=True))
    assert not (tmp_path / "piece").exists()
    for _ in range(2):
        assert libra._unless_there(tmp_path / "piece", make) == tmp_path / "piece"
    assert (tmp_path / "piece" / "inner" / "file").exists() and len(made) == 2
