"""Rejection sampling: chains of thought that end in an answer which a verifier finds right.

They are what StepHint cuts into hints, what `sft_with_trace` learns from, and where a judge's training starts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoded
from nrt_jax.evaluation import generation
from nrt_jax.models import Model, Params
from nrt_jax.rewards import Rules
from nrt_jax.rollout import Truncation


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

    Yields:
        By index of the row, for those whose completions are all there: the examples with a trace, none where no answer
        was right.
    """
    stop_ids = rules.encoder.format.stop_ids[1:]  # It goes on after the delimiter.
    found: dict[int, dict[int, list[int]]] = {}
    for completions in generation.complete(
        model,
        params,
        [row.prompt for row in rows for _ in range(samples)],
        range(samples * len(rows)),
        stop_ids=stop_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        truncation=Truncation(),
        seed=seed,
        batch_size=batch_size,
    ):
        complete = {}
        for index, completion in completions.items():
            i, sample = divmod(index, samples)
            found.setdefault(i, {})[sample] = completion.token_ids
            if len(found[i]) == samples:
                tokens = found.pop(i)
                complete[i] = _right(rules, rows[i], [tokens[k] for k in range(samples)])[:keep]
        yield complete


def _right(rules: Rules, row: Encoded, sampled: Sequence[Sequence[int]]) -> list[Example]:
    read = [rules.read(np.array(tokens, np.int32)) for tokens in sampled]
    traces = [c.trace for c in read if c.well_formed and c.trace.strip() and rules.is_correct(row, c)]
    return [dataclasses.replace(row.example, trace=trace) for trace in dict.fromkeys(traces)]
