"""How well a policy answers held-out questions: by what it writes, and by how likely it finds the known answer."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Batch
from nrt_jax.data.encode import Encoded
from nrt_jax.models import Model, Params
from nrt_jax.rewards import Rules, score_reference
from nrt_jax.rollout import SamplingConfig, cut_traces, sample

_KEY_BLOCK = 256  # Questions whose keys are folded from one: the default batch, so that published figures stay.


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training.

    Attributes:
        questions: Held-out questions, at most.
        every: Steps between evaluations; 0 for before and after only.
        temperature: Of the sampled traces and answers; 0 is greedy.
        batch_size: Questions that a replica decodes at once; caches for so many whole samples must fit beside what
            trains. Changes no result but for rounding.
        examples: Questions whose traces are shown before and after.
    """

    questions: int = 512
    every: int = 0
    temperature: float = 1.0
    batch_size: int = 256
    examples: int = 3


@dataclasses.dataclass(frozen=True)
class Answered:
    """What the policy wrote for one question.

    Attributes:
        question: The question.
        reference: y*.
        trace: The sampled trace, as text.
        answer: The answer as text, None where there is none.
        correct: The verifier finds it right.
        empty_trace_answer: The greedy answer when the delimiter follows the question at once.
        empty_trace_correct: Whether the verifier finds that right.
        token_log_probs: log c_i of y* after this trace, in nats.
        base_token_log_probs: log c_i,base of y* after the empty trace, in nats.
    """

    question: str
    reference: str
    trace: str
    answer: str | None
    correct: bool
    empty_trace_answer: str
    empty_trace_correct: bool
    token_log_probs: tuple[float, ...]
    base_token_log_probs: tuple[float, ...]

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> "Answered":
        """What `dataclasses.asdict` made of one, as JSON gives it back."""
        tuples = ("token_log_probs", "base_token_log_probs")
        return cls(**fields | {name: tuple(fields[name]) for name in tuples})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Most tokens of a trace and of an answer, and the slots by which the decoding cache grows."""

    trace: int
    answer: int
    chunk_size: int = 128


def answer_questions(
    model: Model,
    params: Params | Sequence[Params],
    rules: Rules,
    rows: Sequence[Encoded],
    rng: jax.Array,
    config: EvaluationConfig,
    limits: Limits,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Samples one trace and answer for each question, answers it without a trace, and scores y* after both.

    Copies of the params take batches in turn, each while the others are at theirs. So do the processes of a run, and
    each gets the answers of all. `before_batch` is called before each batch, equally often in all processes, and ends
    the evaluation by raising. `rules` judge the answers.
    """
    answered, running, encoder = {}, collections.deque(), rules.encoder
    copies = [params] if isinstance(params, Mapping) else params
    own = sampling_of(config, limits, encoder.format.eos)
    direct = own.replace(temperature=jnp.float32(0.0), max_new_tokens=limits.answer)
    process, num_processes = jax.process_index(), jax.process_count()
    for i, first in enumerate(range(0, len(rows), num_processes * config.batch_size)):
        before_batch()
        start = first + process * config.batch_size
        if start >= len(rows):  # In the last round some have none left.
            break
        part = list(rows[start : start + config.batch_size])
        padded = part + part[-1:] * (
            min(config.batch_size, len(rows)) - len(part)
        )  # The last batch is as large as the others.
        skipping = [dataclasses.replace(row, prompt=(*row.prompt, encoder.format.delimiter)) for row in padded]
        copy = copies[i % len(copies)]
        with parallel.on(copy):
            keys = _keys(rng, start, len(padded))
            sampled = sample_and_score(model, copy, encoder.batch(padded), keys, own)
            empty = sample(model, copy, encoder.batch(skipping).prompts, rng, direct)
            running.append((start, part, (sampled, (empty.tokens[:, 0], empty.mask[:, 0]))))
        if len(running) == len(copies):
            answered |= _fetch(rules, *running.popleft())
    for batch in running:
        answered |= _fetch(rules, *batch)
    return _of_all_processes(answered)


def sampling_of(config: EvaluationConfig, limits: Limits, eos: int) -> SamplingConfig:
    """How evaluation samples a trace and an answer for each question."""
    return SamplingConfig(
        stop_ids=jnp.array([eos], jnp.int32),
        temperature=jnp.float32(config.temperature),
        max_new_tokens=limits.trace + 1 + limits.answer,
        chunk_size=limits.chunk_size,
    )


def _keys(rng: jax.Array, first: int, num: int) -> jax.Array:
    """[num, 1] keys of the questions from `first` on: a question's follows from its index alone, not from its batch."""
    block, index = np.divmod(np.arange(first, first + num, dtype=np.uint32), _KEY_BLOCK)
    return _fold_in(rng, block * _KEY_BLOCK, index)[:, None]


@jax.jit
def _fold_in(rng: jax.Array, *numbers: jax.Array) -> jax.Array:
    """[N] keys, into which the numbers [N] are folded one after the other."""
    return jax.vmap(lambda *number: functools.reduce(jax.random.fold_in, number, rng))(*numbers)


def _of_all_processes(answered: Mapping[int, Answered]) -> list[Answered]:
    """In the order of the questions."""
    if jax.process_count() > 1:
        given = parallel.share([(i, dataclasses.asdict(item)) for i, item in answered.items()])
        answered = {i: Answered.of_json(fields) for part in given for i, fields in part}
    return [answered[i] for i in sorted(answered)]


def _fetch(rules: Rules, start: int, rows: Sequence[Encoded], results) -> dict[int, Answered]:
    """Waits for a batch; by the number of the question, of which the batch's first is `start`."""
    sampled, empty = jax.device_get(results)
    return {start + i: _answered(rules, row, sampled, empty, i) for i, row in enumerate(rows)}


def _answered(rules: Rules, row: Encoded, sampled, empty, i: int) -> Answered:
    """What row i of a batch amounts to, in text."""
    tokens, lengths, log_probs, base = sampled
    num, delimiter = len(row.answer), rules.encoder.format.delimiter
    own = rules.read(tokens[i, : lengths[i]])
    direct = rules.read(np.append(delimiter, empty[0][i][empty[1][i]]))
    return Answered(
        question=row.example.question,
        reference=row.example.answer,
        trace=own.trace,
        answer=own.answer,
        correct=rules.is_correct(row, own),
        empty_trace_answer=direct.answer or "",
        empty_trace_correct=rules.is_correct(row, direct),
        token_log_probs=tuple(log_probs[i, :num].tolist()),
        base_token_log_probs=tuple(base[i, :num].tolist()),
    )


def summarise(answered: Sequence[Answered], hard: Sequence[np.ndarray] | None = None) -> dict[str, float]:
    """Means over questions.

    Args:
        answered: Of `answer_questions`.
        hard: For each question, which tokens of y* count as hard (`hard_tokens` of the policy before training).

    Returns:
        accuracy; answer_prob, the mean of prod_i c_i; token_prob, the mean c_i; all three again for the empty trace;
        empty_trace_share; trace_words; hard_token_prob, the mean c_i over hard tokens, if given.
    """
    c = [np.exp(a.token_log_probs) for a in answered]
    base = [np.exp(a.base_token_log_probs) for a in answered]
    summary = {
        "accuracy": np.mean([a.correct for a in answered]),
        "answer_prob": np.mean([np.prod(x) for x in c]),
        "token_prob": np.mean(np.concatenate(c)),
        "accuracy_empty_trace": np.mean([a.empty_trace_correct for a in answered]),
        "answer_prob_empty_trace": np.mean([np.prod(x) for x in base]),
        "token_prob_empty_trace": np.mean(np.concatenate(base)),
        "empty_trace_share": np.mean([not a.trace.strip() for a in answered]),
        "trace_words": np.mean([len(a.trace.split()) for a in answered]),
    }
    if hard is not None and any(h.any() for h in hard):
        summary["hard_token_prob"] = np.mean(np.concatenate([x[h] for x, h in zip(c, hard, strict=True)]))
    return {name: float(value) for name, value in summary.items()}


def hard_tokens(answered: Sequence[Answered], threshold: float = 0.5) -> list[np.ndarray]:
    """For each question, which tokens of y* have c_base below the threshold."""
    return [np.exp(a.base_token_log_probs) < threshold for a in answered]


@functools.partial(jax.jit, static_argnums=0)
def sample_and_score(model: Model, params: Params, batch: Batch, keys: jax.Array, sampling: SamplingConfig):
    """One row a question: its tokens [P, T], their number [P], log c and log c_base [P, Y]; keys are [P, 1]."""
    rollout = sample(model, params, batch.prompts, keys, sampling)
    tokens, lengths = rollout.tokens[:, 0], jnp.sum(rollout.mask[:, 0], -1)
    # The row holds trace, delimiter and answer; cut before the delimiter, its caches are those of the trace alone.
    is_delimiter = tokens == batch.reference.delimiter
    trace_length = jnp.where(jnp.any(is_delimiter, -1), jnp.argmax(is_delimiter, -1), rollout.trace_length[:, 0])
    log_probs, base = score_reference(model, params, cut_traces(rollout, trace_length), batch.reference)
    return tokens, lengths, log_probs[:, 0], base
