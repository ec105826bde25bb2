"""How well a judge judges: Libra Bench's score (arXiv 2507.21645) for responses, and pairs as in RewardBench.

    pointwise    is this response correct?           a verdict (1, 0, or none that can be read) and perhaps P(correct)
    pairwise     which of two responses is better?   two pointwise scores, or a verdict for each order of the two

Known: the score of Libra Bench is the mean of the accuracies of its subsets, and macro-F1 is reported beside it. Ours:
macro-F1 is averaged over subsets, too; what cannot be read counts as wrong everywhere; biases and calibration. Shares
are in percent, as published.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy import stats

ItemT = TypeVar("ItemT")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge said of one response.

    Attributes:
        label: 1 if the response is right, 0 if it is wrong.
        verdict: 1 or 0 as the judge says; None where it says nothing that can be read.
        p_correct: Its P(correct); None where it gives none.
        subset: Where the question comes from.
        model: Who answered.
        length: Characters of the response.
    """

    label: int
    verdict: int | None
    p_correct: float | None = None
    subset: str = ""
    model: str = ""
    length: int = 0

    @property
    def is_right(self) -> bool:
        """The judge agrees with the label."""
        return self.verdict == self.label


@dataclasses.dataclass(frozen=True)
class Preference:
    """What a judge said of a chosen response and a rejected one: scores, or a verdict for each order.

    Attributes:
        scores: Of the chosen one and of the rejected one; None where the judge sees both at once.
        verdicts: "A" or "B" where the chosen one was shown as A, and where it was shown as B; None for a verdict that
            cannot be read.
        subset: Where the pair comes from.
        lengths: Characters of the chosen one and of the rejected one.
    """

    scores: tuple[float, float] | None = None
    verdicts: tuple[str | None, str | None] = (None, None)
    subset: str = ""
    lengths: tuple[int, int] = (0, 0)

    @property
    def share_right(self) -> float:
        """1 if the chosen one is preferred, 1/2 where scores are equal or the order decides, 0 otherwise."""
        if self.scores is not None:
            return 0.5 * ((self.scores[0] > self.scores[1]) + (self.scores[0] >= self.scores[1]))
        return 0.5 * ((self.verdicts[0] == "A") + (self.verdicts[1] == "B"))


@dataclasses.dataclass(frozen=True)
class Bin:
    """Responses whose P(correct) is alike.

    Attributes:
        count: How many.
        p_correct: Mean of the judge's P.
        share_correct: Share that is right.
    """

    count: int
    p_correct: float
    share_correct: float


def percent(values: Iterable[float]) -> float:
    """100 times the mean."""
    return 100 * float(np.mean(list(values)))


def macro_f1(verdicts: Sequence[Verdict]) -> float:
    """Mean of the F1 of `correct` and of `incorrect`, in percent; 0 for a class that is neither there nor said.

    F1 = 2 TP / (2 TP + FP + FN): a response without a verdict is missed (FN) by the class of its label.
    """
    found = []
    for label in (0, 1):
        hits = sum(v.label == v.verdict == label for v in verdicts)
        size = sum(v.label == label for v in verdicts) + sum(v.verdict == label for v in verdicts)
        found.append(2 * hits / size if size else 0.0)
    return percent(found)


def groups(items: Iterable[ItemT], key: Callable[[ItemT], str]) -> dict[str, list[ItemT]]:
    """Items by key, in the order of the keys."""
    found: dict[str, list[ItemT]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return dict(sorted(found.items()))


def describe(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Numbers of a group of responses, all but `count` in percent.

    Returns:
        count, accuracy, macro_f1, unparseable; says_correct, of those with a verdict, beside label_correct, the share
        that is right.
    """
    said = [v.verdict for v in verdicts if v.verdict is not None]
    return {
        "count": len(verdicts),
        "accuracy": percent(v.is_right for v in verdicts),
        "macro_f1": macro_f1(verdicts),
        "unparseable": percent(v.verdict is None for v in verdicts),
        "says_correct": percent(said) if said else math.nan,
        "label_correct": percent(v.label for v in verdicts),
    }


def report(verdicts: Sequence[Verdict], num_bins: int = 10) -> dict[str, Any]:
    """All that is measured of a pointwise judge.

    Args:
        verdicts: At least one.
        num_bins: Of the calibration.

    Returns:
        `score`, the mean of the subsets' accuracies; `macro_f1`, the mean of theirs; `all`, `subsets` and `models`, as
        `describe` has them; `length_bias`; `calibration`, None without P(correct). What is not defined is NaN.
    """
    subsets = {name: describe(part) for name, part in groups(verdicts, lambda v: v.subset).items()}
    asked = [v for v in verdicts if v.p_correct is not None]
    calibration = None
    if asked:
        p, labels = np.array([v.p_correct for v in asked]), np.array([v.label for v in asked])
        bins = reliability(p, labels, num_bins)
        calibration = {
            "count": len(asked),
            "ece": 100 * expected_calibration_error(bins),
            "brier": float(np.mean((p - labels) ** 2)),
            "bins": [dataclasses.asdict(one) for one in bins],
        }
    return {
        "score": float(np.mean([part["accuracy"] for part in subsets.values()])),
        "macro_f1": float(np.mean([part["macro_f1"] for part in subsets.values()])),
        "all": describe(verdicts),
        "subsets": subsets,
        "models": {name: describe(part) for name, part in groups(verdicts, lambda v: v.model).items()},
        "length_bias": length_bias(verdicts),
        "calibration": calibration,
    }


def length_bias(verdicts: Sequence[Verdict], num_parts: int = 4) -> dict[str, Any]:
    """Whether longer responses are found correct more often than they are.

    Returns:
        `verdict_correlation`, Spearman's, of length with the verdict `correct` (over responses with a verdict);
        `label_correlation`, of length with the label, over the same, which is what a faultless judge would show;
        `bias`, the former less the latter; `parts`, from the shortest responses to the longest in equal parts:
        count, longest (in characters), accuracy and says_correct.
    """
    said = [v for v in verdicts if v.verdict is not None]
    lengths = [v.length for v in said]
    of_verdict, of_label = (
        rank_correlation(lengths, [getattr(v, name) for v in said]) for name in ("verdict", "label")
    )
    order = sorted(verdicts, key=lambda v: v.length)
    parts = [order[len(order) * i // num_parts : len(order) * (i + 1) // num_parts] for i in range(num_parts)]
    return {
        "verdict_correlation": of_verdict,
        "label_correlation": of_label,
        "bias": of_verdict - of_label,
        "parts": [
            {"count": len(part), "longest": part[-1].length}
            | {name: value for name, value in describe(part).items() if name in ("accuracy", "says_correct")}
            for part in parts
            if part
        ],
    }


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's; NaN where either does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(stats.spearmanr(x, y).statistic)


def reliability(p_correct: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> list[Bin]:
    """Bins of equal width over [0, 1] that hold any response; the last one holds P = 1, too.

    Args:
        p_correct: [N] from 0 to 1.
        labels: [N] 0 or 1.
        num_bins: Of them, empty ones included.
    """
    where = np.minimum((np.asarray(p_correct) * num_bins).astype(int), num_bins - 1)
    return [
        Bin(int(inside.sum()), float(p_correct[inside].mean()), float(labels[inside].mean()))
        for inside in (where == i for i in range(num_bins))
        if inside.any()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean over responses of |P(correct) - share of right ones| of their bin, from 0 to 1."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.p_correct - one.share_correct) for one in bins) / total


def pair_report(pairs: Sequence[Preference]) -> dict[str, Any]:
    """All that is measured of a judge of pairs, in percent.

    Returns:
        `score`, the mean of the subsets' accuracies; `accuracy` over all pairs; `subsets`: count and accuracy; `ties`,
        pairs with equal scores; `longer_chosen`, pairs whose better response is the longer one, and `longer_preferred`,
        those where the judge prefers the longer one (half for a tie), of pairs with unequal lengths. Of judges that see
        both responses: `position_bias`, verdicts "A" less 50, since each order puts the better one first in half of
        them; `consistent`, pairs where both orders prefer the same response; `unparseable`, verdicts.
    """
    subsets = {
        name: {"count": len(part), "accuracy": percent(pair.share_right for pair in part)}
        for name, part in groups(pairs, lambda pair: pair.subset).items()
    }
    unequal = [pair for pair in pairs if pair.lengths[0] != pair.lengths[1]]
    longer = [pair.lengths[0] > pair.lengths[1] for pair in unequal]
    preferred = [abs(pair.share_right - (not is_longer)) for pair, is_longer in zip(unequal, longer, strict=True)]
    found = {
        "score": float(np.mean([part["accuracy"] for part in subsets.values()])),
        "accuracy": percent(pair.share_right for pair in pairs),
        "subsets": subsets,
        "ties": percent(pair.scores is not None and pair.scores[0] == pair.scores[1] for pair in pairs),
        "longer_chosen": percent(longer) if longer else math.nan,
        "longer_preferred": percent(preferred) if preferred else math.nan,
    }
    shown = [pair.verdicts for pair in pairs if pair.scores is None]
    if shown:
        said = [verdict for both in shown for verdict in both if verdict is not None]
        found["position_bias"] = percent(verdict == "A" for verdict in said) - 50 if said else math.nan
        found["consistent"] = percent(None not in both and both[0] != both[1] for both in shown)
        found["unparseable"] = percent(verdict is None for both in shown for verdict in both)
    return found
