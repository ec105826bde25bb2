"""One NRT step as pure functions: sample, score, reward, compare, lay out for the learner."""

import functools

import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Batch
from nrt_jax.data.formats import TraceFormat
from nrt_jax.models import Model, Params
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig, group_advantage, token_signal
from nrt_jax.rewards import Reward, aggregate, score_reference
from nrt_jax.rollout import Rollout, SamplingConfig, cut_traces
from nrt_jax.training.config import RewardConfig, RolloutConfig
from nrt_jax.training.learner import LearnerBatch, from_rollout


def sampling_config(config: RolloutConfig, trace_format: TraceFormat) -> SamplingConfig:
    """How a training step samples: until the delimiter or any other special token."""
    return SamplingConfig(
        stop_ids=jnp.array(trace_format.stop_ids, jnp.int32),
        temperature=jnp.float32(config.temperature),
        max_new_tokens=config.max_trace_length,
        group_size=config.group_size,
        chunk_size=config.chunk_size,
    )


def fit_traces(rollout: Rollout, batch: Batch, max_length: int) -> Rollout:
    """Cuts traces so that prompt, trace, delimiter and answer fit into max_length tokens."""
    answer_length = jnp.sum(batch.reference.mask, -1)
    return cut_traces(rollout, jnp.maximum(max_length - rollout.prompt_length - 1 - answer_length, 0))


@functools.partial(
    jax.jit,
    static_argnames=(
        "model",
        "reward_config",
        "advantage_config",
        "loss_config",
        "max_length",
        "has_opening",
    ),
)
def reward_rollout(
    params: Params,
    rollout: Rollout,
    batch: Batch,
    rng: jax.Array,
    temperature: jax.Array,
    *,
    model: Model,
    reward_config: RewardConfig,
    advantage_config: AdvantageConfig,
    loss_config: NRTLossConfig,
    max_length: int,
    has_opening: bool = False,
) -> tuple[LearnerBatch, dict[str, jax.Array]]:
    """Scores y* after each trace and after none, and turns that into a learner's batch.

    Args:
        params: The parameters that sampled the rollout.
        rollout: Its traces, with caches.
        batch: The prompts and references.
        rng: Key of the `random` reward; not used otherwise.
        temperature: Of the rollout.
        model: The policy.
        reward_config: Which reward.
        advantage_config: Which baseline and scale.
        loss_config: Which token signal.
        max_length: Most tokens of prompt, trace, delimiter and answer together.
        has_opening: The prompts end with an opening tag.

    Returns:
        The learner's batch and scalars that describe the rollout.
    """
    rollout = fit_traces(rollout, batch, max_length)
    log_probs, base_log_probs = score_reference(model, params, rollout, batch.reference, temperature)
    mask = jnp.broadcast_to(batch.reference.mask[:, None], log_probs.shape)
    base = jnp.broadcast_to(base_log_probs[:, None], log_probs.shape)
    if reward_config.mode == "random":
        noise = jax.random.uniform(rng, log_probs.shape[:2])
        reward = Reward(trace=noise, token=mask / mask.sum(-1, keepdims=True))
        baseline = jnp.zeros(log_probs.shape[0])
    else:
        reward = aggregate(reward_config.mode, log_probs, mask, base)
        baseline = aggregate(reward_config.mode, base_log_probs, batch.reference.mask, base_log_probs).trace
        # A sampled empty trace IS the baseline. Scored in another shape it is an ulp off, and where nothing else in
        # the group helps, max(0, R - R_base) would hand that ulp, divided by its own std, to the empty trace.
        reward = reward.replace(trace=jnp.where(rollout.trace_length == 0, baseline[:, None], reward.trace))
    advantage = group_advantage(reward.trace, baseline, clip=advantage_config.clip, scale=advantage_config.scale)
    signal = token_signal(loss_config.token_signal, reward.token, mask)
    learner_batch = from_rollout(rollout, batch, advantage, signal, has_opening=has_opening)
    return learner_batch, _describe(rollout, batch, reward, baseline, advantage, log_probs, base_log_probs)


def _describe(rollout, batch, reward, baseline, advantage, log_probs, base_log_probs) -> dict[str, jax.Array]:
    """Scalars of one rollout. The share of empty traces is the alarm for collapse."""
    mask, length = batch.reference.mask, rollout.trace_length
    sampled = jnp.maximum(jnp.sum(rollout.mask), 1)
    return {
        "reward": jnp.mean(reward.trace),
        "reward_empty_trace": jnp.mean(baseline),
        "reward_gain": jnp.mean(reward.trace - baseline[:, None]),
        "answer_prob": jnp.mean(jnp.exp(jnp.sum(log_probs, -1, where=mask[:, None]))),
        "token_prob": jnp.mean(jnp.exp(log_probs), where=mask[:, None]),
        "token_prob_empty_trace": jnp.mean(jnp.exp(base_log_probs), where=mask),
        "entropy": jnp.sum(rollout.entropy) / sampled,
        "trace_length": jnp.mean(length.astype(jnp.float32)),
        "empty_trace_share": jnp.mean(length == 0),
        "matched_share": jnp.mean(rollout.matched(batch.reference.delimiter)),
        "equal_group_share": jnp.mean(jnp.all(advantage == 0, -1)),
        "sampled_tokens": sampled,
    }
