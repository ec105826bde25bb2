"""From records of questions to numbers: accuracies, likelihoods, lengths, and the comparison of two checkpoints."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nrt_jax.errors import UserError
from nrt_jax.evaluation.attempts import Attempt, Record
from nrt_jax.evaluation.statistics import bootstrap, majority, mcnemar, pass_at_k, permutation_test

#: Bounds of the classes of -log c_base, in nats: how hard a token of y* is without a trace.
DIFFICULTY = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, float("inf"))
GREEDY = "greedy accuracy"

#: For each quantity, its value [n] and weight [n] for each question.
Quantities = dict[str, tuple[np.ndarray, np.ndarray]]


def quantities(records: Sequence[Record]) -> Quantities:
    """Every number that is averaged over questions.

    Those of tokens weigh a question by the tokens of its y*, so that each token counts alike. Likelihoods, lengths and
    entropies are means over a question's samples or, where there are none, those of its greedy completion.
    """
    ones, tokens = np.ones(len(records)), np.array([float(len(r.base_token_log_probs)) for r in records])
    found: Quantities = {GREEDY: (np.array([float(r.greedy.correct) for r in records]), ones)}
    k = len(records[0].samples)
    if k:
        right = [sum(s.correct for s in r.samples) for r in records]
        found[f"avg@{k}"] = (np.array(right) / k, ones)
        for j in sorted({k, *(2**i for i in range(1, k.bit_length()) if 2**i < k)} - {1}):
            found[f"pass@{j}"] = (np.array([pass_at_k(k, c, j) for c in right]), ones)
        voted = [majority([s.vote for s in r.samples], [s.correct for s in r.samples]) for r in records]
        found[f"majority@{k}"] = (np.array(voted), ones)
    c, base = [_token_probs(r) for r in records], [np.exp(r.base_token_log_probs) for r in records]
    found["mean c"] = (np.array([x.mean() for x in c]), tokens)
    found["mean c_base"] = (np.array([x.mean() for x in base]), tokens)
    found["mean c - c_base"] = (np.array([np.mean(x - b) for x, b in zip(c, base, strict=True)]), tokens)
    for name, of in (("trace tokens", _tokens), ("empty traces", _is_empty), ("entropy", _entropy)):
        found[name] = (np.array([np.mean([of(a) for a in _attempts(r)]) for r in records]), ones)
    return found


def _tokens(attempt: Attempt) -> int:
    return attempt.trace_tokens


def _is_empty(attempt: Attempt) -> bool:
    return not attempt.trace.strip()


def _entropy(attempt: Attempt) -> float:
    return attempt.entropy


def _attempts(record: Record) -> list[Attempt]:
    return record.samples or [record.greedy]


def _token_probs(record: Record) -> np.ndarray:
    """[T] c_i, the mean over traces."""
    return np.mean(np.exp([attempt.token_log_probs for attempt in _attempts(record)]), 0)


def summarise(records: Sequence[Record], seed: int) -> dict[str, dict[str, float]]:
    """For each of `quantities`: mean, low and high of its 95 % interval, and n."""
    return {name: vars(bootstrap(*pair, seed=seed)) for name, pair in quantities(records).items()}


def by_source(records: Sequence[Record], seed: int) -> dict[str, dict[str, Any]]:
    """For each of several sources, its number of `questions` and its `metrics`: accuracies and what traces do for c.

    Empty where all questions are of one source.
    """
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(record.source, []).append(record)
    if len(parts) == 1:
        return {}
    names = (GREEDY, f"avg@{len(records[0].samples)}", "mean c - c_base")
    found = {}
    for source, part in parts.items():
        metrics = {name: value for name, value in summarise(part, seed).items() if name in names}
        found[source] = {"questions": len(part), "metrics": metrics}
    return found


def by_difficulty(records: Sequence[Record], seed: int) -> list[dict[str, float]]:
    """What traces do for tokens of y* that are easy and hard without one.

    Returns:
        For each class of -log c_base that has tokens: its bounds (an upper one of None is none), tokens, mean c_base
        and c, and `gain`, the mean of c - c_base with its interval over the n questions that have such tokens.
    """
    classes, probs = [], [(_token_probs(r), np.array(r.base_token_log_probs)) for r in records]
    for low, high in itertools.pairwise(DIFFICULTY):
        where = [_within(log_base, low, high) for _, log_base in probs]
        held = [(c[i], np.exp(log_base[i])) for (c, log_base), i in zip(probs, where, strict=True) if i.any()]
        if not held:
            continue
        c, base = (np.concatenate(x) for x in zip(*held, strict=True))
        gain = bootstrap([np.mean(x - b) for x, b in held], [len(x) for x, _ in held], seed=seed)
        bounds = {"from": low, "to": None if np.isinf(high) else high}
        classes.append(bounds | {"tokens": c.size, "c_base": base.mean(), "c": c.mean(), "gain": vars(gain)})
    return classes


def _within(log_base: np.ndarray, low: float, high: float) -> np.ndarray:
    difficulty = np.maximum(-log_base, 0.0)  # Rounding may leave a log-probability above 0.
    return (difficulty >= low) & (difficulty < high)


def compare(first: Sequence[Record], second: Sequence[Record], seed: int) -> dict[str, dict[str, Any]]:
    """Two checkpoints on the same questions, paired.

    Args:
        first: Records of one.
        second: Records of the other, in the same order.
        seed: Of the resampling.

    Returns:
        For each quantity that both have: the two means; `difference`, first - second, with its 95 % interval of a
        paired bootstrap over questions; and `p`, of McNemar's exact test for greedy accuracy, with the questions that
        only one got right, and of a permutation test for means.

    Raises:
        UserError: They are not of the same questions.
    """
    if len(first) != len(second):
        raise UserError(f"compare: {len(first)} and {len(second)} questions; expected the same questions in both")
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if (a.question, a.reference) != (b.question, b.reference):
            raise UserError(f"compare: question {i} (from 0) is another one: {a.question!r:.60} and {b.question!r:.60}")
    ours, theirs = quantities(first), quantities(second)
    same_tokens = all(map(_same_tokens, first, second))
    found = {}
    for name in ours:
        if name not in theirs or (name.startswith("mean c") and not same_tokens):
            continue  # Other numbers of samples, or other tokenizers.
        (a, weights), (b, _) = ours[name], theirs[name]
        found[name] = {"first": _mean(a, weights), "second": _mean(b, weights)}
        found[name]["difference"] = vars(bootstrap(a - b, weights, seed=seed))
        if name == GREEDY:
            only_first, only_second, p = mcnemar(a > 0, b > 0)
            found[name] |= {"only_first": only_first, "only_second": only_second, "p": p}
        else:
            found[name]["p"] = permutation_test((a - b) * weights, seed=seed)
    return found


def _same_tokens(a: Record, b: Record) -> bool:
    return len(a.base_token_log_probs) == len(b.base_token_log_probs)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())


def table(
    summary: Mapping[str, Mapping[str, float]],
    difficulty: Sequence[Mapping[str, Any]],
    sources: Mapping[str, Mapping[str, Any]],
) -> str:
    """`summarise`, `by_difficulty` and `by_source` for people."""
    n = next(iter(summary.values()))["n"]
    lines = [f"{'':20}{'mean':>8}   95 % over {n} questions", *_rows(summary)]
    lines += ["", f"{'-log c_base':14}{'tokens':>8}{'c_base':>8}{'c':>8}{'gain':>8}   95 %"]
    for row in difficulty:
        bounds = f"{row['from']:g} and more" if row["to"] is None else f"{row['from']:g} to {row['to']:g}"
        gain = row["gain"]
        lines.append(
            f"{bounds:14}{row['tokens']:8}{row['c_base']:8.3f}{row['c']:8.3f}{gain['mean']:+8.3f}   "
            f"{gain['low']:+.3f} to {gain['high']:+.3f}"
        )
    for source, found in sources.items():
        lines += ["", f"{source}: {found['questions']} questions", *_rows(found["metrics"])]
    return "\n".join(lines)


def _rows(summary: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [f"{name:20}{x['mean']:8.3f}   {x['low']:.3f} to {x['high']:.3f}" for name, x in summary.items()]


def comparison_table(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """`compare` for people."""
    lines = [f"{'':20}{'first':>8}{'second':>8}{'diff':>8}   {'95 %':18}       p"]
    for name, row in compared.items():
        difference = row["difference"]
        interval = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
        lines.append(
            f"{name:20}{row['first']:8.3f}{row['second']:8.3f}{difference['mean']:+8.3f}   {interval:18}{row['p']:8.2g}"
        )
    greedy = compared[GREEDY]
    lines.append(f"only the first was right: {greedy['only_first']}; only the second: {greedy['only_second']}")
    return "\n".join(lines)
