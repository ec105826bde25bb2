"""One NRT step as pure functions: sample, score, reward, compare, lay out for the learner."""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Batch
from nrt_jax.data.formats import TraceFormat
from nrt_jax.models import Model, Params
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig, group_advantage, token_signal
from nrt_jax.rewards import Reward, aggregate_group, punishment, score_reference
from nrt_jax.rollout import Rollout, SamplingConfig, Truncation, cache_dtype, cut_traces
from nrt_jax.training.config import RewardConfig, RolloutConfig
from nrt_jax.training.learner import LearnerBatch, from_rollout


def sampling_config(config: RolloutConfig, trace_format: TraceFormat) -> SamplingConfig:
    """How a training step samples: until the delimiter or any other special token."""
    return SamplingConfig(
        stop_ids=jnp.array(trace_format.stop_ids, jnp.int32),
        temperature=jnp.float32(config.temperature),
        truncation=Truncation.of(config.top_k, config.top_p, config.min_p),
        max_new_tokens=config.max_trace_length,
        group_size=config.group_size,
        chunk_size=config.chunk_size,
        cache_dtype=cache_dtype(config.cache_dtype),
        max_rows=config.max_rows or None,
    )


def fit_traces(rollout: Rollout, batch: Batch, max_length: int) -> Rollout:
    """Cuts traces so that prompt, trace, delimiter and answer fit into max_length tokens."""
    answer_length = jnp.sum(batch.reference.mask, -1)
    return cut_traces(rollout, jnp.maximum(max_length - rollout.prompt_length - 1 - answer_length, 0))


@flax.struct.dataclass(kw_only=True)
class Outcome:
    """What came of a rollout, to be described.

    Attributes:
        reward: [P, K] R of the traces.
        baseline: [P] R of the empty trace.
        added: [P, K] the part of the reward that is not an aggregation of c_i; None where all of it is.
        advantage: [P, K].
        log_probs: [P, K, Y] log c_i.
        base_log_probs: [P, Y] log c_i,base.
        answer_mask: [P, Y] bool.
        trace_length: [P, K] int32.
        num_sampled: [P, K] int32, tokens, stop tokens included.
        entropy: [P, K] sum over these, in nats.
        matched: [P, K] bool, the policy wrote the delimiter itself.
    """

    reward: jax.Array
    baseline: jax.Array
    added: jax.Array | None
    advantage: jax.Array
    log_probs: jax.Array
    base_log_probs: jax.Array
    answer_mask: jax.Array
    trace_length: jax.Array
    num_sampled: jax.Array
    entropy: jax.Array
    matched: jax.Array


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
    keys: jax.Array | None,
    temperature: jax.Array,
    *,
    model: Model,
    reward_config: RewardConfig,
    advantage_config: AdvantageConfig,
    loss_config: NRTLossConfig,
    max_length: int,
    has_opening: bool = False,
) -> tuple[LearnerBatch, Outcome]:
    """Scores y* after each trace and after none, and turns that into a learner's batch.

    Args:
        params: The parameters that sampled the rollout.
        rollout: Its traces, with caches.
        batch: The prompts and references.
        keys: [P] keys of the `random` reward; others need none.
        temperature: Of the rollout.
        model: The policy.
        reward_config: Which reward.
        advantage_config: Which baseline and scale.
        loss_config: Which token signal.
        max_length: Most tokens of prompt, trace, delimiter and answer together.
        has_opening: The prompts end with an opening tag.

    Returns:
        The learner's batch, and what `describe` makes scalars of.
    """
    sampled = rollout.tokens, rollout.mask
    rollout = fit_traces(rollout, batch, max_length)
    log_probs, base_log_probs = score_reference(model, params, rollout, batch.reference, temperature)
    mask = jnp.broadcast_to(batch.reference.mask[:, None], log_probs.shape)
    matched = rollout.matched(batch.reference.delimiter)
    if reward_config.mode == "random":
        noise = jax.vmap(lambda key: jax.random.uniform(key, log_probs.shape[1:2]))(keys)
        reward = Reward(trace=noise, token=mask / mask.sum(-1, keepdims=True))
        baseline = jnp.zeros(log_probs.shape[0])
    else:
        reward, baseline = likelihood_reward(
            log_probs,
            base_log_probs,
            batch.reference.mask,
            rollout.trace_length,
            matched,
            reward_config,
        )
    added = punishment(*sampled, reward_config.shaping) if reward_config.shaping.punishes else None
    if added is not None:
        reward = reward.replace(trace=reward.trace + added)
    advantage = group_advantage(reward.trace, baseline, clip=advantage_config.clip, scale=advantage_config.scale)
    signal = token_signal(loss_config.token_signal, reward.token, mask)
    learner_batch = from_rollout(rollout, batch, advantage, signal, has_opening=has_opening)
    outcome = Outcome(
        reward=reward.trace,
        baseline=baseline,
        added=added,
        advantage=advantage,
        log_probs=log_probs,
        base_log_probs=base_log_probs,
        answer_mask=batch.reference.mask,
        trace_length=rollout.trace_length,
        num_sampled=jnp.sum(rollout.mask, -1),
        entropy=jnp.sum(rollout.entropy, -1),
        matched=matched,
    )
    return learner_batch, outcome


def likelihood_reward(
    log_probs: jax.Array,
    base_log_probs: jax.Array,
    mask: jax.Array,
    trace_length: jax.Array,
    matched: jax.Array,
    config: RewardConfig,
) -> tuple[Reward, jax.Array]:
    """The aggregation of c_i for K traces a prompt, and for the empty trace.

    Args:
        log_probs: [P, K, Y] log c_i.
        base_log_probs: [P, Y] log c_i,base.
        mask: [P, Y] bool.
        trace_length: [P, K] int32.
        matched: [P, K] bool, the policy wrote the delimiter itself.
        config: Which aggregation, and whether the reward is 0 where it did not.
    """
    reward, baseline = aggregate_group(config.mode, log_probs, base_log_probs, mask, trace_length, matched)
    if config.shaping.require_delimiter:
        reward = Reward(trace=reward.trace * matched, token=reward.token * matched[..., None])
    return reward, baseline


@jax.jit
def describe(outcome: Outcome) -> dict[str, jax.Array]:
    """Scalars of one rollout. The share of empty traces is the alarm for collapse."""
    o, mask = outcome, outcome.answer_mask
    sampled = jnp.maximum(jnp.sum(o.num_sampled), 1)
    return {
        "reward": jnp.mean(o.reward),
        "reward_empty_trace": jnp.mean(o.baseline),
        "reward_gain": jnp.mean(o.reward - o.baseline[:, None]),
        "answer_prob": jnp.mean(jnp.exp(jnp.sum(o.log_probs, -1, where=mask[:, None]))),
        "token_prob": jnp.mean(jnp.exp(o.log_probs), where=mask[:, None]),
        "token_prob_empty_trace": jnp.mean(jnp.exp(o.base_log_probs), where=mask),
        "entropy": jnp.sum(o.entropy) / sampled,
        "trace_length": jnp.mean(o.trace_length.astype(jnp.float32)),
        "empty_trace_share": jnp.mean(o.trace_length == 0),
        "matched_share": jnp.mean(o.matched),
        "equal_group_share": jnp.mean(jnp.all(o.advantage == 0, -1)),
        "sampled_tokens": sampled,
    }
