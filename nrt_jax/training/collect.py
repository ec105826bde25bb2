"""A step's rollout from start to end, on the host: groups are scored where they were sampled, when they are done.

Only what the learner needs leaves the device that sampled a group: its tokens and numbers, not its caches.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from nrt_jax import parallel
from nrt_jax.data.batch import Batch
from nrt_jax.models import Model, Params
from nrt_jax.objectives import NRTLossConfig
from nrt_jax.rollout import SamplingConfig, engine, row_keys
from nrt_jax.training.config import ReferenceConfig, RewardConfig
from nrt_jax.training.hinted import Chains, own_keys, score_hinted
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.reference import Policy, ask
from nrt_jax.training.step import Outcome, Scored, completions, reward_rollout, score_rollout

Score = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
Begin = Callable[[np.ndarray, Callable[[], tuple[np.ndarray, np.ndarray]]], None]


def collect(
    model: Model,
    params: Params | Sequence[Params],
    batch: Batch,
    rng: jax.Array,
    sampling: SamplingConfig,
    *,
    score: Score | None = None,
    begin: Begin | None = None,
    chains: Chains | None = None,
    reference: Policy | None = None,
    reward_std: jax.Array | None = None,
    beside: Sharding | None = None,
    num_parts: int = 1,
    reward_config: RewardConfig,
    loss_config: NRTLossConfig,
    reference_config: ReferenceConfig = ReferenceConfig(),  # noqa: B008
    max_length: int,
    max_trace_length: int | None = None,
    has_opening: bool = False,
    **configs: Any,
) -> tuple[LearnerBatch, Outcome]:
    """Samples, scores and rewards; in a run of several processes each does the first two for its own questions.

    Args:
        model: The policy.
        params: Its parameters, or a copy of them on each replica that samples (`engine.stream`).
        batch: P questions with their answers.
        rng: Of the sampling, and of the `random` reward.
        sampling: How to sample.
        score: Makes rewards, [P, K] each by name, of the tokens [P, K, Z] that were sampled and of their numbers
            [P, K]; None for none.
        begin: Is told of each part that is done, while others are not: of its prompts and of what fetches that
            part's tokens and numbers; None where nobody asks. Not with chains.
        chains: Right chains of thought, from which some rows start; None for none.
        reference: The reference policy, if there is one.
        reward_std: As for `reward_rollout`.
        beside: Where what is learned from goes: beside the parameters that learn; None where it was scored.
        num_parts: Parts in which the reference scores.
        reward_config: Which rewards.
        loss_config: As for `reward_rollout`.
        reference_config: As for `reward_rollout`.
        max_length: Most tokens of prompt, trace, delimiter and answer together.
        max_trace_length: As for `score_rollout`.
        has_opening: The prompts end with an opening tag.
        **configs: More of `reward_rollout`.

    Returns:
        Both for the questions of all processes: what one process would make of them.
    """
    sample_rng, reward_rng = jax.random.split(rng)
    batch = parallel.pad_alike(batch)

    def score_all(parts, batch, begin=None):
        how = {"reward_config": reward_config, "max_length": max_length, "max_trace_length": max_trace_length}
        return score_parts(model, parts, batch, sampling.temperature, begin=begin, **how)

    if chains:
        scored = score_hinted(model, params, batch, chains, sample_rng, sampling, score_all)
    else:
        keys = own_keys(sample_rng, len(batch.prompts.tokens), sampling.group_size)
        scored = score_all(engine.stream(model, params, batch.prompts, keys, sampling), batch, begin)
    scores = score and score(*jax.device_get(_written(scored)))
    scored, scores, batch = _of_all_processes(scored, scores, batch)
    if beside:
        scored, scores, batch = parallel.put((scored, scores, batch), beside)
    keys = row_keys(reward_rng, len(batch.prompts.tokens), 1)[:, 0] if reward_config.mode == "random" else None
    with parallel.on(scored):
        asked = None
        if reference:
            what = {"scores": reference_config.scores, "has_kl": loss_config.kl_weight > 0}
            laid_out = completions(scored, batch, has_opening=has_opening)
            asked = ask(reference, laid_out, batch, sampling.temperature, num_parts, **what)
        return reward_rollout(
            scored,
            batch,
            keys,
            scores,
            asked,
            reward_std,
            reward_config=reward_config,
            loss_config=loss_config,
            reference_config=reference_config,
            has_opening=has_opening,
            **configs,
        )


def _of_all_processes(scored: Scored, scores: dict | None, batch: Batch) -> tuple[Scored, dict | None, Batch]:
    if jax.process_count() == 1:
        return scored, scores, batch
    delimiter, rows = batch.reference.delimiter, batch.replace(reference=batch.reference.replace(delimiter=None))
    scored, scores, rows = jax.tree.map(jnp.asarray, parallel.gather_rows((scored, scores, rows)))
    return scored, scores, rows.replace(reference=rows.reference.replace(delimiter=delimiter))


@jax.jit
def _written(scored: Scored) -> tuple[jax.Array, jax.Array]:
    """Tokens, and how many of them were sampled."""
    rollout = scored.sampled or scored.rollout
    return rollout.tokens, jnp.sum(rollout.mask, -1)


def score_parts(
    model: Model,
    parts: Iterable[engine.Part],
    batch: Batch,
    temperature: jax.Array,
    *,
    begin: Begin | None = None,
    reward_config: RewardConfig,
    max_length: int,
    max_trace_length: int | None = None,
) -> Scored:
    """Scores the parts of a rollout where they were sampled.

    Args:
        model: The policy.
        parts: Of `engine.stream`.
        batch: P questions with their answers.
        temperature: Of the rollout.
        begin: As for `collect`.
        reward_config: Which rewards.
        max_length: Most tokens of prompt, trace, delimiter and answer together.
        max_trace_length: As for `score_rollout`.

    Returns:
        All groups in the order of the batch, whatever the order in which they were done.
    """
    how = {"reward_config": reward_config, "max_length": max_length, "max_trace_length": max_trace_length}
    indices, done = [], []  # Of each part.
    for part in parts:
        num_padding = len(part.rollout.finished) - len(part.prompts)
        index = np.append(part.prompts, np.repeat(part.prompts[:1], num_padding))
        args = (part.params, part.rollout, batch.take(index), temperature)
        with parallel.on(part.params):
            done.append(score_rollout(*args, model=model, **how))
        indices.append(part.prompts)
        if begin:
            begin(part.prompts, functools.partial(jax.device_get, _written(done[-1])))
    if len(done) == 1:  # All prompts, in order.
        return done[0]
    order = np.argsort(np.concatenate(indices))
    sizes = [len(index) for index in indices]

    def join(*arrays):
        return jnp.asarray(np.concatenate([x[:size] for x, size in zip(arrays, sizes, strict=True)])[order])

    return jax.tree.map(join, *jax.device_get(done))
