"""Measures of judges: a fixture worked out by hand, judges of known quality and bias, and scikit-learn's numbers."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from nrt_jax.evaluation.judging import (
    Preference,
    Verdict,
    expected_calibration_error,
    length_bias,
    macro_f1,
    pair_report,
    reliability,
    report,
)
from nrt_jax.tasks.judging import vote

#: (subset, model, label, verdict, P(correct), length)
FIXTURE = [
    Verdict(label, verdict, p, subset=subset, model=model, length=length)
    for subset, model, label, verdict, p, length in (
        ("aime", "m1", 1, 1, 0.95, 10),
        ("aime", "m2", 0, None, 0.55, 40),
        ("math", "m1", 1, 1, 0.85, 20),
        ("math", "m1", 0, 1, 0.65, 50),
        ("math", "m2", 0, 0, 0.05, 30),
        ("math", "m2", 1, 0, 0.35, 60),
    )
]
verdicts = st.lists(
    st.builds(
        Verdict,
        st.integers(0, 1),
        st.sampled_from([0, 1, None]),
        st.floats(0, 1),
        subset=st.sampled_from("ab"),
        model=st.sampled_from("xy"),
        length=st.integers(0, 9),
    ),
    min_size=1,
    max_size=20,
)


def test_the_report_of_a_fixture_is_that_worked_out_by_hand():
    found = report(FIXTURE)
    # aime: 1 of 2 right; F1 of correct 2/2, of incorrect 0 / 1. math: 2 of 4; F1 of both 2 / (2 + 2).
    assert found["score"] == 50 and found["macro_f1"] == 50
    aime, math_ = found["subsets"]["aime"], found["subsets"]["math"]
    assert aime == {"count": 2, "accuracy": 50, "macro_f1": 50, "unparseable": 50, "says_correct": 100,
                    "label_correct": 50}  # fmt: skip
    assert math_ == {"count": 4, "accuracy": 50, "macro_f1": 50, "unparseable": 0, "says_correct": 50,
                     "label_correct": 50}  # fmt: skip
    assert found["models"]["m1"]["accuracy"] == pytest.approx(200 / 3)
    assert found["models"]["m2"]["accuracy"] == pytest.approx(100 / 3)
    # All: correct has TP 2, FP 1, FN 1; incorrect TP 1, FP 1, FN 2.
    assert found["all"]["macro_f1"] == pytest.approx(100 * (4 / 6 + 2 / 5) / 2)
    # Six bins of one response each: |0.95 - 1|, |0.55 - 0|, |0.85 - 1|, |0.65 - 0|, |0.05 - 0|, |0.35 - 1|.
    assert found["calibration"]["ece"] == pytest.approx(100 * (0.05 + 0.55 + 0.15 + 0.65 + 0.05 + 0.65) / 6)
    squares = [0.05**2, 0.55**2, 0.15**2, 0.65**2, 0.05**2, 0.65**2]
    assert found["calibration"]["brier"] == pytest.approx(np.mean(squares))


def test_the_score_counts_every_subset_alike_whatever_its_size():
    right, wrong = Verdict(1, 1, subset="large"), Verdict(1, 0, subset="small")
    found = report([right] * 9 + [wrong])
    assert found["score"] == 50 and found["all"]["accuracy"] == 90


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_judge_that_tosses_a_coin_scores_50_however_often_it_does(n):
    tosses = list(itertools.product((0, 1), repeat=n))
    found = report([Verdict(label, vote(toss)) for label in (0, 1) for toss in tosses])
    assert found["score"] == 50 and found["all"]["unparseable"] == 0


@pytest.mark.parametrize(("always", "score", "f1"), [(1, 50, 100 / 3), (0, 50, 100 / 3), (None, 0, 0)])
def test_a_judge_that_always_says_the_same_scores_50_on_balanced_data(always, score, f1):
    found = report([Verdict(label, always, subset=subset) for subset in "ab" for label in (0, 1) for _ in range(3)])
    assert found["score"] == score and found["macro_f1"] == pytest.approx(f1)


@hypothesis.given(verdicts)
def test_order_does_not_matter_and_a_faultless_judge_scores_100(rows):
    np.testing.assert_equal(_flat(report(rows)), _flat(report(rows[::-1])))
    faultless = [Verdict(row.label, row.label, float(row.label), subset=row.subset, length=row.length) for row in rows]
    found = report(faultless)
    assert found["score"] == 100 and found["calibration"]["ece"] == 0
    assert math.isnan(found["length_bias"]["bias"]) or found["length_bias"]["bias"] == 0
    assert found["macro_f1"] <= 100


def _flat(found):
    """Numbers that may differ by the rounding of another order."""
    parts = [found["all"], *found["subsets"].values(), *found["models"].values()]
    numbers = [found["score"], found["macro_f1"], found["calibration"]["ece"], found["length_bias"]["bias"]]
    return [round(number, 6) for number in numbers] + [round(x, 6) for part in parts for x in part.values()]


@hypothesis.given(verdicts)
def test_what_cannot_be_read_is_wrong(rows):
    """A lost verdict is never better than any verdict."""
    lost = report([Verdict(row.label, None, subset=row.subset) for row in rows])
    assert lost["score"] == 0 and lost["macro_f1"] == 0 and lost["all"]["unparseable"] == 100
    kept = [row for row in rows if row.verdict is not None]
    right = sum(row.is_right for row in rows)
    assert report(rows)["all"]["accuracy"] == pytest.approx(100 * right / len(rows))
    assert right == sum(row.is_right for row in kept)


@hypothesis.given(verdicts)
def test_macro_f1_is_that_of_scikit_learn(rows):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, said = [row.label for row in rows], [2 if row.verdict is None else row.verdict for row in rows]
    expected = metrics.f1_score(labels, said, labels=[0, 1], average="macro", zero_division=0)
    assert macro_f1(rows) == pytest.approx(100 * expected)


@hypothesis.given(verdicts)
def test_bins_hold_every_response_once_and_one_bin_compares_means(rows):
    p, labels = np.array([row.p_correct for row in rows]), np.array([row.label for row in rows])
    bins = reliability(p, labels)
    assert sum(one.count for one in bins) == len(rows)
    assert sum(one.count * one.share_correct for one in bins) == pytest.approx(labels.sum())
    single = expected_calibration_error(reliability(p, labels, 1))
    assert single == pytest.approx(abs(p.mean() - labels.mean()))
    assert single <= expected_calibration_error(bins) + 1e-9


def test_a_calibrated_judge_has_no_error_and_one_that_is_too_sure_has():
    p = np.repeat([0.25, 0.75], 4)
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert expected_calibration_error(reliability(p, labels)) == 0
    assert expected_calibration_error(reliability(np.round(p), labels)) == 0.25
    assert [one.count for one in reliability(np.array([0.0, 0.1, 1.0]), np.array([0, 0, 1]))] == [1, 1, 1]


def test_a_judge_that_likes_length_has_a_length_bias_and_one_that_follows_labels_has_none():
    labels, lengths = [0, 1, 0, 1, 1, 0, 1, 0], [10, 20, 30, 40, 50, 60, 70, 80]
    likes = [Verdict(label, int(n > 40), length=n) for label, n in zip(labels, lengths, strict=True)]
    found = length_bias(likes)
    expected = stats.spearmanr(lengths, [n > 40 for n in lengths]).statistic
    assert found["verdict_correlation"] == pytest.approx(expected)
    assert found["label_correlation"] == pytest.approx(stats.spearmanr(lengths, labels).statistic)
    assert found["bias"] == pytest.approx(expected - found["label_correlation"]) and found["bias"] > 0.5
    assert [part["says_correct"] for part in found["parts"]] == [0, 0, 100, 100]
    assert [part["longest"] for part in found["parts"]] == [20, 40, 60, 80]


def test_pairs_are_judged_by_scores_with_half_for_a_tie():
    pairs = [
        Preference((0.9, 0.1), subset="chat", lengths=(5, 1)),
        Preference((0.5, 0.5), subset="chat", lengths=(5, 1)),
        Preference((0.2, 0.7), subset="code", lengths=(1, 5)),
    ]
    found = pair_report(pairs)
    assert found["score"] == (75 + 0) / 2 and found["accuracy"] == 50 and found["ties"] == pytest.approx(100 / 3)
    # The longer one is better in 2 of 3, and preferred in 1 + 1/2 + 1 of 3.
    assert found["longer_chosen"] == pytest.approx(200 / 3) and found["longer_preferred"] == pytest.approx(250 / 3)
    assert "position_bias" not in found


@pytest.mark.parametrize(
    ("verdicts", "accuracy", "bias", "consistent", "unparseable"),
    [
        (("A", "B"), 100, 0, 100, 0),  # always the chosen one
        (("B", "A"), 0, 0, 100, 0),
        (("A", "A"), 50, 50, 0, 0),  # always the first
        (("B", "B"), 50, -50, 0, 0),
        (("A", None), 50, 50, 0, 50),
    ],
)
def test_both_orders_of_a_pair_tell_a_preference_from_a_position(verdicts, accuracy, bias, consistent, unparseable):
    found = pair_report([Preference(verdicts=verdicts)] * 3)
    assert (found["score"], found["position_bias"]) == (accuracy, bias)
    assert (found["consistent"], found["unparseable"]) == (consistent, unparseable)
