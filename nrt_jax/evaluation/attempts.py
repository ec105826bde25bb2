"""What a policy makes of each question: a greedy completion, samples, and c_i of the reference answer after each trace.

A completion is `trace, delimiter, answer, EOS`, all of it the policy's. y* is scored after its trace on the caches that
sampling left, as in training, whatever answer the policy wrote itself.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax.data.batch import Prompts, Reference
from nrt_jax.data.encode import Encoded, bucket, pad
from nrt_jax.evaluation.accuracy import Limits
from nrt_jax.models import Model, Params
from nrt_jax.rewards import Rules, score_reference, vote
from nrt_jax.rollout import SamplingConfig, engine, until_delimiter


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How completions are sampled.

    Attributes:
        temperature: Divides the logits of the samples; the greedy completion has none.
        max_trace_length: Most tokens of a trace; of a run's checkpoint by default those of the run.
        max_answer_length: Most tokens after the delimiter, EOS included; 0 for as many as the longest reference answer
            has.
        batch_size: Completions decoded at once.
        chunk_size: Steps between two looks at which completions are done.
        seed: Of the sampling, the resampling of intervals, and a task's questions.
    """

    temperature: float = 1.0
    max_trace_length: int = 512
    max_answer_length: int = 0
    batch_size: int = 64
    chunk_size: int = 128
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One completion.

    Attributes:
        trace: z as text.
        answer: What the verifier judged; None where there is no answer.
        vote: The answer as the verifier simplifies it, for majorities; None where there is nothing to count.
        correct: The verifier finds it right.
        trace_tokens: Tokens of z.
        entropy: Mean entropy of the policy over z and the token that ended it, in nats.
        token_log_probs: log c_i of y* after z, EOS included, in nats.
    """

    trace: str
    answer: str | None
    vote: str | None
    correct: bool
    trace_tokens: int
    entropy: float
    token_log_probs: list[float]


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one question.

    Attributes:
        question: x.
        reference: y*.
        base_token_log_probs: log c_i,base of y* after the empty trace, in nats.
        greedy: The greedy completion.
        samples: The sampled ones, K or none.
        source: Where the question comes from; empty where that is not known.
    """

    question: str
    reference: str
    base_token_log_probs: list[float]
    greedy: Attempt
    samples: list[Attempt]
    source: str = ""

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Record":
        """What `dataclasses.asdict` made of one; raises TypeError or KeyError for anything else."""
        attempts = {
            "greedy": Attempt(**fields["greedy"]),
            "samples": [Attempt(**sample) for sample in fields["samples"]],
        }
        return cls(**{**fields, **attempts})


def attempt(
    model: Model,
    params: Params,
    rules: Rules,
    rows: Sequence[Encoded],
    *,
    samples: int,
    limits: Limits,
    config: DecodingConfig,
) -> Iterator[dict[int, Record]]:
    """Completes each question greedily and, where `samples` is above 0, so often at the config's temperature.

    Sample k of question i draws with fold_in(key(seed), i K + k), whatever else is asked.

    Args:
        model: The policy.
        params: Its parameters.
        rules: Reads and judges.
        rows: The questions, at least one.
        samples: K.
        limits: Most tokens of a trace and of an answer.
        config: The rest; its lengths are not read.

    Yields:
        The records of some questions, by index: first with the greedy completion alone, later, where `samples` is above
        0, whole.
    """
    greedy: dict[int, Record] = {}
    for i, base, attempts in _sampled(model, params, rules, rows, 1, 0.0, limits, config):
        example = rows[i].example
        greedy[i] = Record(example.question, example.answer, base, attempts[0], [])
        yield {i: greedy[i]}
    if samples:
        for i, _, attempts in _sampled(model, params, rules, rows, samples, config.temperature, limits, config):
            yield {i: dataclasses.replace(greedy[i], samples=attempts)}


def _sampled(model, params, rules, rows, group_size, temperature, limits, config):
    """For each question, as they come: its index, log c_base of y*, and `group_size` attempts."""
    sampling = SamplingConfig(
        stop_ids=jnp.array([rules.encoder.format.eos], jnp.int32),
        temperature=jnp.float32(temperature),
        max_new_tokens=limits.trace + 1 + limits.answer,
        group_size=group_size,
        chunk_size=limits.chunk_size,
        max_rows=max(config.batch_size, group_size),
    )
    rng, delimiter = jax.random.key(config.seed), np.int32(rules.encoder.format.delimiter)
    answers, answer_mask = pad([row.answer for row in rows])
    buckets = np.array([bucket(len(row.prompt)) for row in rows])
    for size in sorted(set(buckets), reverse=True):  # What does not fit into memory fails at once.
        part = np.flatnonzero(buckets == size)
        tokens, mask = pad([rows[i].prompt for i in part])
        keys = _keys(rng, np.uint32(part[:, None] * group_size + np.arange(group_size)))
        for done in engine.stream(model, params, Prompts(tokens=tokens, mask=mask), keys, sampling):
            places = len(done.rollout.finished)
            ids = part[np.pad(done.prompts, (0, places - len(done.prompts)), mode="edge")]
            reference = Reference(tokens=answers[ids], mask=answer_mask[ids], delimiter=delimiter)
            arrays = jax.device_get(_score(model, params, done.rollout, reference))
            for place, i in enumerate(ids[: len(done.prompts)]):
                *own, base = (x[place] for x in arrays)
                attempts = [_attempt(rules, rows[i], *(x[k] for x in own)) for k in range(group_size)]
                yield int(i), base[: len(rows[i].answer)].tolist(), attempts


def _attempt(rules: Rules, row: Encoded, tokens, length, trace_length, entropy, log_probs) -> Attempt:
    read = rules.read(tokens[:length])
    return Attempt(
        trace=read.trace,
        answer=read.answer,
        vote=None if read.answer is None else vote(rules.config.name, read.answer),
        correct=rules.is_correct(row, read),
        trace_tokens=int(trace_length),
        entropy=float(entropy),
        token_log_probs=log_probs[: len(row.answer)].tolist(),
    )


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, rollout, reference):
    """[P, K] rows: tokens [.., Z], their number, those of the trace, mean entropy, log c [.., Y]; log c_base [P, Y]."""
    traces = until_delimiter(rollout, reference.delimiter)
    log_probs, base = score_reference(model, params, traces, reference)
    entropy = jnp.sum(traces.entropy, -1) / jnp.sum(traces.mask, -1)
    return rollout.tokens, jnp.sum(rollout.mask, -1), traces.trace_length, entropy, log_probs, base


@jax.jit
def _keys(rng, rows):
    return jax.vmap(jax.vmap(functools.partial(jax.random.fold_in, rng)))(rows)
