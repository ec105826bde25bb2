"""Statistics of evaluations: estimators of pass@k and majority@k, intervals over questions, paired tests.

Pure functions of NumPy arrays. Questions are what is drawn anew: samples of one question and tokens of one answer are
not independent of each other, so that they never count as separate observations.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np

#: Resamples of a bootstrap, and random sign flips of a permutation test that is too large to be enumerated.
RESAMPLES = 10_000
#: Questions up to which a permutation test enumerates all sign flips.
MAX_EXACT = 16
_CELLS = 1 << 20  # Numbers of a resampling that are in memory at once.


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over questions with its interval.

    Attributes:
        mean: The mean, weighted if the values were.
        low: Lower end of the interval.
        high: Upper end of it.
        n: Questions.
    """

    mean: float
    low: float
    high: float
    n: int


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold a right one: 1 - C(n - c, k) / C(n, k).

    The unbiased estimator of pass@k (Chen et al. 2021, arXiv 2107.03374), as a product of k factors at most 1, so that
    no binomial coefficient overflows.

    Args:
        num_samples: n.
        num_correct: c, of 0 to n.
        k: Of 1 to n.

    Raises:
        ValueError: They do not fit.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right ones among {num_samples}; expected 0 <= c <= n, 1 <= k <= n")
    return 1.0 - math.prod((num_samples - num_correct - i) / (num_samples - i) for i in range(k))


def majority(votes: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """How right the answer with the most votes is; of several with as many, their mean, as if one were drawn.

    Args:
        votes: An answer's key for each sample, None where there is no answer.
        correct: For each sample, whether its answer is right; answers of one key may differ, and then count by halves
            and the like.

    Returns:
        Of 0 to 1; 0 where nobody votes.
    """
    groups: dict[Hashable, list[bool]] = {}
    for vote, is_correct in zip(votes, correct, strict=True):
        if vote is not None:
            groups.setdefault(vote, []).append(is_correct)
    most = max(map(len, groups.values()), default=0)
    return float(np.mean([np.mean(group) for group in groups.values() if len(group) == most])) if groups else 0.0


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """The mean over questions and its percentile interval over `RESAMPLES` resamples of the questions.

    Args:
        values: [n], one a question.
        weights: [n], at least 0, such as the number of a question's tokens where `values` are means over them: the mean
            is sum(w v) / sum(w) then, in each resample too. None for equal ones.
        level: Of the interval.
        seed: Of the resampling.

    Raises:
        ValueError: There are no values, or no weight.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    n, total = values.size, weights.sum()
    if not n or total <= 0:
        raise ValueError("a mean over no questions; expected at least one")
    rng, rows, means = np.random.default_rng(seed), max(1, _CELLS // n), []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, n, (min(rows, RESAMPLES - start), n))
        mass = weights[drawn].sum(1)
        means.append((weights * values)[drawn].sum(1)[mass > 0] / mass[mass > 0])
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return Estimate(float((weights * values).sum() / total), float(low), float(high), n)


def permutation_test(differences: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of paired differences: how often random signs give a sum at least as far from 0.

    Under the null hypothesis, that it does not matter which of the two made which result of a question, all signs are
    equally likely. All 2^n are enumerated up to `MAX_EXACT` differences that are not 0, and drawn beyond.

    Args:
        differences: [n], one a question (weighted, if its mean is to be).
        seed: Of the drawn signs.
    """
    nonzero = np.asarray([d for d in differences if d != 0], np.float64)
    n = nonzero.size
    if not n:
        return 1.0
    # Sums of the same numbers in another order differ in their last bits.
    observed = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()
    if n <= MAX_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ nonzero) >= observed))
    rng, rows, count = np.random.default_rng(seed), max(1, _CELLS // n), 0
    for start in range(0, RESAMPLES, rows):
        signs = 1 - 2 * rng.integers(0, 2, (min(rows, RESAMPLES - start), n))
        count += int(np.count_nonzero(np.abs(signs @ nonzero) >= observed))
    return (count + 1) / (RESAMPLES + 1)  # The observed signs are one of them: p is never 0.


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test of two classifications of the same questions.

    Args:
        first: [n], whether the first was right.
        second: [n], whether the second was.

    Returns:
        Questions that only the first got right, those that only the second did, and the two-sided p-value of the
        binomial distribution with chance 1/2 on them.
    """
    pairs = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return only_first, only_second, min(1.0, tail * 2 / 2**n)  # Of integers: exact for any n.
