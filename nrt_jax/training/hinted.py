"""A step's rollout with hints (`nrt_jax.rollout.hints`), on the host: chains are read, cut, and gone on from.

    chains    teacher-forced by the policy that samples: where they are cut, and what their tokens' ratios refer to
    prompts   x z*_1, x z*_1 z*_2, ..: the hinted rows are sampled as if their hints were part of the questions
    groups    plain rows | hinted rows, each behind its hint | the chain

What comes out has the form of any rollout, so rewards, advantages and the learner see nothing new but `hint_length`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Batch, Prompts
from nrt_jax.data.encode import Encoded, pad
from nrt_jax.data.formats import TraceFormat
from nrt_jax.models import Model, Params
from nrt_jax.rollout import Rollout, SamplingConfig, engine, force, row_keys
from nrt_jax.rollout.hints import HintConfig, boundaries
from nrt_jax.training.step import Scored


@dataclasses.dataclass(frozen=True)
class Chains:
    """Right chains of thought, one a question.

    Attributes:
        tokens: [P, 1, Z] int32, z* and its delimiter, and, where answers are sampled, y* in its tags and EOS; -1 after
            the end.
        config: How they are cut and used.
    """

    tokens: np.ndarray
    config: HintConfig

    @classmethod
    def of(
        cls,
        rows: Sequence[Encoded],
        trace_format: TraceFormat,
        config: HintConfig,
        *,
        written: Sequence[Sequence[int]] | None,
        max_length: int,
    ) -> "Chains":
        """The demonstrations of some rows, all of which have one; a trace that does not fit loses its tail.

        Args:
            rows: P questions.
            trace_format: In token ids.
            config: How they are cut and used.
            written: What follows the delimiter of each, where answers are sampled (`Rules.written`); None elsewhere.
            max_length: Most tokens of prompt, trace, delimiter and answer together.
        """
        answers = [()] * len(rows) if written is None else written
        ends = [(trace_format.delimiter, *answer) for answer in answers]
        room = [
            max_length - len(row.prompt) - 1 - max(len(row.answer), len(answer))
            for row, answer in zip(rows, answers, strict=True)
        ]
        tokens, mask = pad([(*row.trace[: max(n, 0)], *end) for row, n, end in zip(rows, room, ends, strict=True)])
        return cls(np.where(mask, tokens, -1)[:, None], config)


def score_hinted(
    model: Model,
    params: Params | Sequence[Params],
    batch: Batch,
    chains: Chains,
    rng: jax.Array,
    sampling: SamplingConfig,
    score_parts: Any,
) -> Scored:
    """Samples the rows of each group, behind their hints, and scores them.

    Args:
        model: The policy.
        params: Its parameters, or copies of them (`engine.stream`).
        batch: P questions with their answers.
        chains: Theirs.
        rng: Of the sampling.
        sampling: How to sample; its group size is `chains.config.group_size`.
        score_parts: Scores parts of a rollout of a batch: a function of both.

    Returns:
        Groups whose rows are in this order: plain, hinted by one step, by two, .., the chain.
    """
    copies, config = [params] if isinstance(params, Mapping) else params, chains.config
    plain_rng, hinted_rng = jax.random.split(rng)
    given = score_parts(_forced(model, copies, batch.prompts, chains.tokens, sampling), batch)
    given = jax.device_get(given)
    cuts = np.stack(
        [
            boundaries(log_probs[: length + 1], config.steps, config.min_distance)
            for log_probs, length in zip(
                given.rollout.delimiter_log_probs[:, 0], given.rollout.trace_length[:, 0], strict=True
            )
        ]
    )
    hinted_batch = _with_hints(batch, chains.tokens[:, 0], cuts)

    def sample(batch, rng, group_size):
        keys = own_keys(rng, len(batch.prompts.tokens), group_size)
        parts = engine.stream(model, params, batch.prompts, keys, sampling.replace(group_size=group_size))
        return jax.device_get(score_parts(parts, batch))

    plain = sample(batch, plain_rng, config.plain)
    hinted = sample(hinted_batch, hinted_rng, config.per_level)
    return jax.tree.map(jnp.asarray, _assemble(plain, hinted, given, np.repeat(cuts, config.per_level, 1)))


def own_keys(rng: jax.Array, num_prompts: int, group_size: int) -> jax.Array:
    """[P, K] keys of this process's prompts among those of all processes, `num_prompts` in each."""
    count = jax.process_count()
    keys = row_keys(rng, count * num_prompts, group_size)
    return keys if count == 1 else keys.reshape(count, num_prompts, group_size)[jax.process_index()]


def _forced(
    model: Model, copies: Sequence[Params], prompts: Prompts, tokens: np.ndarray, sampling: SamplingConfig
) -> Iterator[engine.Part]:
    """The chains as a rollout, in parts as large as the engine's would be."""
    num_prompts = len(tokens)
    size = min(-(-num_prompts // len(copies)), sampling.max_rows or num_prompts)
    for i, start in enumerate(range(0, num_prompts, size)):
        ids = np.arange(start, min(start + size, num_prompts))
        padded = np.append(ids, np.repeat(ids[:1], size - len(ids)))
        copy = copies[i % len(copies)]
        args = jax.tree.map(lambda x: x[padded], (prompts, tokens))  # noqa: B023
        args = jax.device_put((*args, np.ones((size, 1), bool)), parallel.beside(copy))
        with parallel.on(copy):
            yield engine.Part(ids, force(model, copy, *args, sampling), copy)


def _with_hints(batch: Batch, chains: np.ndarray, cuts: np.ndarray) -> Batch:
    """The questions with the first tokens of their chains behind them: cuts [P, L] makes P x L."""
    prompts = [x[mask] for x, mask in zip(batch.prompts.tokens, batch.prompts.mask, strict=True)]
    tokens, mask = pad([(*prompts[p], *chains[p, :length]) for p, lengths in enumerate(cuts) for length in lengths])
    repeated = batch.take(np.repeat(np.arange(len(cuts)), cuts.shape[1]))
    return repeated.replace(prompts=Prompts(tokens=tokens, mask=mask))


def _assemble(plain: Scored, hinted: Scored, given: Scored, hint_length: np.ndarray) -> Scored:
    """Groups of all rows: arrays on the host.

    Args:
        plain: [P, k, ..].
        hinted: [P x L, k, ..].
        given: [P, 1, ..].
        hint_length: [P, L x k], of the hinted rows.
    """
    num_prompts = len(hint_length)

    def grouped(*arrays):
        return np.concatenate([x.reshape(num_prompts, -1, *x.shape[2:]) for x in arrays], 1)

    num_plain = plain.rollout.tokens.shape[1]
    own_length = np.pad(hint_length, ((0, 0), (num_plain, 0)))

    def rollout_of(plain: Rollout, hinted: Rollout, given: Rollout) -> Rollout:
        own = jax.tree.map(grouped, plain.replace(prompt_length=None), hinted.replace(prompt_length=None))
        given = given.replace(prompt_length=None)
        room = own.tokens.shape[-1]
        rows = jax.tree.map(lambda x, chain: grouped(*_behind(x, chain, own_length, room)), own, given)
        return rows.replace(prompt_length=plain.prompt_length)

    rollout = rollout_of(plain.rollout, hinted.rollout, given.rollout)
    sampled = plain.sampled and rollout_of(plain.sampled, hinted.sampled, given.sampled)
    log_probs = None
    if plain.log_probs is not None:
        log_probs = grouped(plain.log_probs, hinted.log_probs, given.log_probs)
    chain_length = np.sum((given.sampled or given.rollout).mask, -1)
    return Scored(
        rollout=rollout,
        sampled=sampled,
        log_probs=log_probs,
        base_log_probs=plain.base_log_probs,
        hint_length=np.concatenate([own_length, chain_length], 1).astype(np.int32),
    )


def _behind(own: np.ndarray, chain: np.ndarray, hint_length: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of hinted rows, each row's own behind those of its hint, and of chains, both as wide.

    Args:
        own: [P, K, Z] or, with one value a row, [P, K].
        chain: [P, 1, Z*] or [P, 1].
        hint_length: [P, K].
        room: Slots behind the chain's.
    """
    if own.ndim == 2:
        return own, chain
    chain = np.pad(chain, ((0, 0), (0, 0), (0, room)))
    at = np.arange(chain.shape[-1]) - hint_length[..., None]
    moved = np.take_along_axis(own, np.clip(at, 0, own.shape[-1] - 1), -1)
    return np.where(at < 0, chain, np.where(at < own.shape[-1], moved, np.zeros_like(moved))), chain
