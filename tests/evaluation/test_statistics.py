"""Estimators against enumeration, intervals against their promise, tests against their definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.evaluation import statistics
from nrt_jax.evaluation.statistics import bootstrap, majority, mcnemar, pass_at_k, permutation_test


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < c for i in range(n)], k))
        assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]), abs=1e-14)


def test_pass_at_k_of_many_samples_is_exact():
    exact = 1 - math.comb(10_000 - 3, 5000) / math.comb(10_000, 5000)  # integers of 3,000 digits
    assert pass_at_k(10_000, 3, 5000) == pytest.approx(exact, abs=1e-12)
    for bad in ((3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*bad)


@given(st.permutations(range(6)))
def test_a_majority_does_not_depend_on_the_order_of_samples(order):
    votes, correct = ["8", "8", "3", None, "3", "5"], [True, True, False, False, False, False]
    assert majority([votes[i] for i in order], [correct[i] for i in order]) == 0.5  # 8 and 3 tie
    assert majority(["8", *votes], [True, *correct]) == 1.0
    assert majority([None, None], [False, False]) == 0.0


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_promise():
    """Of 200 draws of 60 questions, a 90 % interval must hold the mean in about 180: 5 standard deviations are 21."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = bootstrap(rng.exponential(2.0, 60), level=0.9, seed=seed)
        covered += found.low <= 2.0 <= found.high
    assert 159 <= covered <= 200


def test_a_weighted_bootstrap_is_that_of_the_tokens_of_whole_questions():
    tokens = [[0.1, 0.2, 0.9], [0.5], [0.7, 0.8]]
    found = bootstrap([np.mean(t) for t in tokens], [len(t) for t in tokens])
    assert found.mean == pytest.approx(np.mean(np.concatenate(tokens))) and found.n == 3
    assert bootstrap([1.0, 2.0], seed=3) == bootstrap([1.0, 2.0], seed=3)
    with pytest.raises(ValueError, match="no questions"):
        bootstrap([])


def test_a_weighted_interval_is_that_of_all_draws_of_whole_questions():
    """Six questions of 1 to 9 tokens are drawn in 46,656 equally likely ways, a tenth of them below the interval."""
    rng = np.random.default_rng(3)
    tokens = [rng.normal(i, 1.0, n) for i, n in enumerate((9, 1, 7, 1, 2, 1))]
    found = bootstrap([np.mean(t) for t in tokens], [len(t) for t in tokens], level=0.8)
    draws = np.array(list(itertools.product(range(6), repeat=6)))
    sums, lengths = (np.array(x)[draws].sum(1) for x in ([t.sum() for t in tokens], [len(t) for t in tokens]))
    ways = sums / lengths
    assert np.mean(ways < found.low) == pytest.approx(0.1, abs=0.015)
    assert np.mean(ways > found.high) == pytest.approx(0.1, abs=0.015)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
def test_a_small_permutation_test_counts_all_signs(differences):
    signs = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(sum(differences))
    expected = np.mean([abs(np.dot(s, differences)) >= observed for s in signs])
    assert permutation_test(differences) == pytest.approx(expected)


def test_drawn_signs_agree_with_enumerated_ones(monkeypatch):
    differences = np.random.default_rng(1).normal(0.4, 1.0, 14)
    exact = permutation_test(differences)
    monkeypatch.setattr(statistics, "MAX_EXACT", 0)
    assert permutation_test(differences) == pytest.approx(exact, abs=5 * math.sqrt(exact / statistics.RESAMPLES))
    assert permutation_test(np.ones(200)) == 1 / (statistics.RESAMPLES + 1)


def test_mcnemar_is_the_binomial_test_of_the_questions_on_which_they_differ():
    first, second = [True] * 9 + [False] * 2 + [True] * 5, [False] * 9 + [True] * 2 + [True] * 5
    p = 2 * sum(math.comb(11, i) for i in range(3)) * 0.5**11
    assert mcnemar(first, second) == (9, 2, pytest.approx(p, rel=1e-12))
    assert mcnemar(second, first) == (2, 9, pytest.approx(p, rel=1e-12))
    assert mcnemar(first, first) == (0, 0, 1.0)
    assert mcnemar([True, False], [False, True])[2] == 1.0
    scipy_stats = pytest.importorskip("scipy.stats")
    assert p == pytest.approx(scipy_stats.binomtest(2, 11).pvalue, rel=1e-9)
