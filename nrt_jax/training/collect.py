"""A step's rollout from start to end, on the host: groups are rewarded where they were sampled, when they are done.

Only what the learner needs leaves the device that sampled a group: its tokens and numbers, not its caches.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Batch
from nrt_jax.models import Model, Params
from nrt_jax.rollout import SamplingConfig, engine, row_keys
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.step import Outcome, reward_rollout

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]


def collect(
    model: Model,
    params: Params | Sequence[Params],
    batch: Batch,
    rng: jax.Array,
    sampling: SamplingConfig,
    score: Score | None = None,
    **reward: Any,
) -> tuple[LearnerBatch, Outcome]:
    """Samples, scores and rewards.

    Args:
        model: The policy.
        params: Its parameters, or a copy of them on each replica that samples (`engine.stream`).
        batch: P questions with their answers.
        rng: Of the sampling, and of the `random` reward.
        sampling: How to sample.
        score: Rewards of text, as for `reward_parts`.
        **reward: Configs of `reward_rollout`.
    """
    sample_rng, reward_rng = jax.random.split(rng)
    keys = row_keys(reward_rng, len(batch.prompts.tokens), 1)[:, 0]
    parts = engine.stream(model, params, batch.prompts, sample_rng, sampling)
    return reward_parts(model, parts, batch, keys, sampling.temperature, score, **reward)


def reward_parts(
    model: Model,
    parts: Iterable[engine.Part],
    batch: Batch,
    keys: jax.Array,
    temperature: jax.Array,
    score: Score | None = None,
    **reward: Any,
) -> tuple[LearnerBatch, Outcome]:
    """Rewards the parts of a rollout.

    Args:
        model: The policy.
        parts: Of `engine.stream`.
        batch: P questions with their answers.
        keys: [P] keys of the `random` reward.
        temperature: Of the rollout.
        score: Makes rewards, [p, K] each by name, of the indices of p prompts, the tokens [p, K, Z] that were sampled
            for each and their numbers [p, K]; None for none.
        **reward: Configs of `reward_rollout`.

    Returns:
        Both in the order of the batch, whatever the order in which groups were done.
    """
    indices, done = [], []  # Of each part.
    for part in parts:
        num_padding = len(part.rollout.finished) - len(part.prompts)
        index = np.append(part.prompts, np.repeat(part.prompts[:1], num_padding))
        scores = {}
        if score:
            scores = score(index, *jax.device_get((part.rollout.tokens, jnp.sum(part.rollout.mask, -1))))
        args = (part.params, part.rollout, batch.take(index), keys[index], temperature, scores)
        with parallel.on(part.params):
            done.append(reward_rollout(*args, model=model, **reward))
        indices.append(part.prompts)
    if len(done) == 1:  # All prompts, in order.
        return done[0]
    order = np.argsort(np.concatenate(indices))
    sizes = [len(index) for index in indices]

    def join(*arrays):
        return np.concatenate([x[:size] for x, size in zip(arrays, sizes, strict=True)])[order]

    return jax.tree.map(join, *jax.device_get(done))
