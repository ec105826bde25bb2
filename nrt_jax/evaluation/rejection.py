"""Sampling with a verifier: chains of thought that end in a right answer, and answers with verified labels.

The former are what StepHint cuts into hints and `sft_with_trace` learns from; the latter are what judges learn from.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoded
from nrt_jax.evaluation import generation
from nrt_jax.models import Model, Params
from nrt_jax.rewards import Rules
from nrt_jax.rollout import Truncation
from nrt_jax.tasks import judging


def right_chains(
    model: Model,
    params: Params,
    rules: Rules,
    rows: Sequence[Encoded],
    *,
    samples: int,
    keep: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    min_answer_prob: float = 0.0,
) -> Iterator[dict[int, list[Example]]]:
    """Samples completions of questions and keeps the traces of right ones, each trace once.

    Args:
        model: Who thinks.
        params: Its parameters.
        rules: Reads and judges.
        rows: The questions, at least one.
        samples: Completions of each.
        keep: Most that are kept of each; the first ones.
        max_new_tokens: Of a trace, delimiter, answer and EOS together.
        temperature: Of the sampling.
        seed: Of the sampling.
        batch_size: Completions decoded at once.
        min_answer_prob: Least probability that the right answer had after its trace, EOS included, under
            softmax(logits / temperature). Where there are few answers, a guess is often right; after a trace that
            found the answer out, it is no guess.

    Yields:
        By index of the row, for those whose completions are all there: the examples with a trace, none where no answer
        was right.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "batch_size": batch_size}
    for groups in _sample(model, params, rules, rows, samples, **sampling):
        yield {i: _right(rules, rows[i], sampled, min_answer_prob)[:keep] for i, sampled in groups.items()}


def at_most(number: int, chains: Mapping[int, Sequence[Example]]) -> dict[int, list[Example]]:
    """Keeps so many chains of each question that was judged: the first of each of its tasks, then the second ones.

    Args:
        number: Most chains of all judging tasks whose responses are to one question.
        chains: By index of the task.
    """
    ranked = sorted((rank, i) for i, found in chains.items() for rank in range(len(found)))
    count: collections.Counter[str] = collections.Counter()
    kept: dict[int, list[Example]] = {i: [] for i in chains}
    for rank, i in ranked:
        key = judging.question_key(chains[i][rank].conversation)
        count[key] += 1
        if count[key] <= number:
            kept[i].append(chains[i][rank])
    return kept


@dataclasses.dataclass(frozen=True)
class Sampled:
    """An answer, which a verifier may have judged.

    Attributes:
        text: The answer without the thought.
        trace: The thought.
        is_right: Whether the verifier finds it right; None where it was not asked.
    """

    text: str
    trace: str
    is_right: bool | None


def answers(
    model: Model,
    params: Params,
    rules: Rules,
    rows: Sequence[Encoded],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
    is_verified: bool = True,
) -> list[tuple[int, Sampled]]:
    """Samples answers to questions, with what the verifier says of each: what a judge can learn from (V2V).

    Args:
        model: Who answers.
        params: Its parameters.
        rules: Reads and judges.
        rows: The questions, at least one.
        samples: Completions of each.
        max_new_tokens: Of a trace, delimiter, answer and EOS together.
        temperature: Of the sampling.
        seed: Of the sampling.
        batch_size: Completions decoded at once.
        is_verified: Whether the verifier is asked; else nothing looks at the reference answers.

    Returns:
        (index of the row, answer), in the order of the rows; completions that do not end in an answer, or in none that
        a verifier that is asked can judge, are left out.
    """
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "batch_size": batch_size}
    found: dict[int, list[Sampled]] = {}
    for groups in _sample(model, params, rules, rows, samples, **sampling):
        for i, sampled in groups.items():
            read = [rules.read(np.array(completion.token_ids, np.int32)) for completion in sampled]
            read = [c for c in read if c.well_formed]
            if is_verified:
                verdicts = [(c, rules.verdict(rows[i], c)) for c in read]
                found[i] = [Sampled(c.answer, c.trace, v == 1.0) for c, v in verdicts if v is not None]
            else:
                found[i] = [Sampled(c.answer, c.trace, None) for c in read]
    return [(i, answer) for i in sorted(found) for answer in found[i]]


def _sample(
    model: Model, params: Params, rules: Rules, rows: Sequence[Encoded], samples: int, *, seed: int, **how
) -> Iterator[dict[int, list[generation.Completion]]]:
    """All completions of a row, by its index, once they are all there."""
    found: dict[int, dict[int, generation.Completion]] = {}
    for completions in generation.complete(
        model,
        params,
        [row.prompt for row in rows for _ in range(samples)],
        range(samples * len(rows)),
        stop_ids=rules.encoder.format.stop_ids[1:],  # It goes on after the delimiter.
        truncation=Truncation(),
        seed=seed,
        **how,
    ):
        complete = {}
        for index, completion in completions.items():
            i, sample = divmod(index, samples)
            found.setdefault(i, {})[sample] = completion
            if len(found[i]) == samples:
                own = found.pop(i)
                complete[i] = [own[k] for k in range(samples)]
        yield complete


def _right(
    rules: Rules, row: Encoded, sampled: Sequence[generation.Completion], min_answer_prob: float
) -> list[Example]:
    traces = []
    for completion in sampled:
        read = rules.read(np.array(completion.token_ids, np.int32))
        is_likely = _answer_prob(rules, completion) >= min_answer_prob
        if read.well_formed and read.trace.strip() and is_likely and rules.is_correct(row, read):
            traces.append(read.trace)
    return [dataclasses.replace(row.example, trace=trace) for trace in dict.fromkeys(traces)]


def _answer_prob(rules: Rules, completion: generation.Completion) -> float:
    """Probability of what follows the delimiter, given what stands before it."""
    delimiter = rules.encoder.format.delimiter
    if delimiter not in completion.token_ids:
        return 0.0
    return math.exp(math.fsum(completion.log_probs[completion.token_ids.index(delimiter) + 1 :]))
