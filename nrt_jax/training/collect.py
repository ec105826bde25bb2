"""A step's rollout from start to end, on the host: groups are rewarded where they were sampled, when they are done.

Only what the learner needs leaves the device that sampled a group: its tokens and numbers, not its caches.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Batch
from nrt_jax.models import Model, Params
from nrt_jax.rollout import SamplingConfig, engine, row_keys
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.step import Outcome, reward_rollout


def collect(
    model: Model,
    params: Params | Sequence[Params],
    batch: Batch,
    rng: jax.Array,
    sampling: SamplingConfig,
    **reward: Any,
) -> tuple[LearnerBatch, Outcome]:
    """Samples, scores and rewards; in a run of several processes each does so for its own questions.

    Args:
        model: The policy.
        params: Its parameters, or a copy of them on each replica that samples (`engine.stream`).
        batch: P questions with their answers.
        rng: Of the sampling, and of the `random` reward.
        sampling: How to sample.
        **reward: Configs of `reward_rollout`.

    Returns:
        Both for the questions of all processes: what one process would make of them.
    """
    sample_rng, reward_rng = jax.random.split(rng)
    num_prompts, batch = len(batch.prompts.tokens), parallel.pad_alike(batch)
    keys = _own_keys(reward_rng, num_prompts, 1)[:, 0]
    sample_keys = _own_keys(sample_rng, num_prompts, sampling.group_size)
    parts = engine.stream(model, params, batch.prompts, sample_keys, sampling)
    return parallel.gather_rows(reward_parts(model, parts, batch, keys, sampling.temperature, **reward))


def _own_keys(rng: jax.Array, num_prompts: int, group_size: int) -> jax.Array:
    """[P, K] keys of this process's prompts among those of all processes, `num_prompts` in each."""
    count = jax.process_count()
    keys = row_keys(rng, count * num_prompts, group_size)
    return keys if count == 1 else keys.reshape(count, num_prompts, group_size)[jax.process_index()]


def reward_parts(
    model: Model,
    parts: Iterable[engine.Part],
    batch: Batch,
    keys: jax.Array,
    temperature: jax.Array,
    **reward: Any,
) -> tuple[LearnerBatch, Outcome]:
    """Rewards the parts of a rollout.

    Args:
        model: The policy.
        parts: Of `engine.stream`.
        batch: P questions with their answers.
        keys: [P] keys of the `random` reward.
        temperature: Of the rollout.
        **reward: Configs of `reward_rollout`.

    Returns:
        Both in the order of the batch, whatever the order in which groups were done.
    """
    indices, done = [], []  # Of each part.
    for part in parts:
        num_padding = len(part.rollout.finished) - len(part.prompts)
        index = np.append(part.prompts, np.repeat(part.prompts[:1], num_padding))
        args = (part.params, part.rollout, batch.take(index), keys[index], temperature)
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
