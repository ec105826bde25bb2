"""One step as pure functions: score, reward, compare, lay out for the learner."""

import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Batch
from nrt_jax.data.formats import TraceFormat
from nrt_jax.models import Model, Params
from nrt_jax.objectives import (
    BASELINES,
    AdvantageConfig,
    NRTLossConfig,
    drop_low_std,
    group_advantage,
    kl_estimate,
    policy_mask,
    token_signal,
)
from nrt_jax.rewards import Reward, aggregate_group, punishment, score_reference
from nrt_jax.rollout import Rollout, SamplingConfig, Truncation, cache_dtype, cut_traces, until_delimiter
from nrt_jax.training.config import ReferenceConfig, RewardConfig, RolloutConfig
from nrt_jax.training.learner import LearnerBatch, answer_values, from_completions, from_rollout


def sampling_config(config: RolloutConfig, trace_format: TraceFormat, answer_length: int = 0) -> SamplingConfig:
    """How a training step samples: until the delimiter or any other special token.

    Args:
        config: Its limits.
        trace_format: Its tokens.
        answer_length: Most tokens of an answer; above 0, a row goes on after the delimiter.
    """
    delimiter, *others = trace_format.stop_ids
    return SamplingConfig(
        stop_ids=jnp.array(others if answer_length else trace_format.stop_ids, jnp.int32),
        delimiter=jnp.int32(delimiter),
        temperature=jnp.float32(config.temperature),
        truncation=Truncation.of(config.top_k, config.top_p, config.min_p),
        max_new_tokens=config.max_trace_length + (1 + answer_length if answer_length else 0),
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
        rewards: Each [P, K], by name and before its weight: intrinsic, R of the traces; format; verifiable.
        reward: [P, K], their weighted sum, and punishments.
        baseline: [P] intrinsic reward of the empty trace; None where there is no such reward.
        reward_std: [] float32, the moving average of the rewards' standard deviation; None where none is kept.
        advantage: [P, K].
        log_probs: [P, K, Y] log c_i; None likewise.
        base_log_probs: [P, Y] log c_i,base; None likewise.
        answer_mask: [P, Y] bool.
        trace_length: [P, K] int32.
        num_sampled: [P, K] int32, tokens, stop tokens included.
        entropy: [P, K] sum over these, in nats.
        matched: [P, K] bool, the policy wrote the delimiter itself.
        finished: [P, K] bool, what was sampled ended with a stop token, not at a limit.
    """

    rewards: dict[str, jax.Array]
    reward: jax.Array
    baseline: jax.Array | None
    reward_std: jax.Array | None
    advantage: jax.Array
    log_probs: jax.Array | None
    base_log_probs: jax.Array | None
    answer_mask: jax.Array
    trace_length: jax.Array
    num_sampled: jax.Array
    entropy: jax.Array
    matched: jax.Array
    finished: jax.Array


@flax.struct.dataclass(kw_only=True)
class Scored:
    """A rollout without its caches, and what was read from them.

    Attributes:
        rollout: The traces, cut to fit; without caches.
        sampled: All that was sampled, where rows went on to answer; else None.
        log_probs: [P, K, Y] log c_i; None without an intrinsic reward.
        base_log_probs: [P, Y] log c_i,base; None likewise.
        hint_length: [P, K] int32, tokens that rows were given; None without hints.
    """

    rollout: Rollout
    sampled: Rollout | None = None
    log_probs: jax.Array | None = None
    base_log_probs: jax.Array | None = None
    hint_length: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("model", "reward_config", "max_length", "max_trace_length"))
def score_rollout(
    params: Params,
    rollout: Rollout,
    batch: Batch,
    temperature: jax.Array,
    *,
    model: Model,
    reward_config: RewardConfig,
    max_length: int,
    max_trace_length: int | None = None,
) -> Scored:
    """Scores y* after each trace and after none, from the caches that the rollout left.

    Args:
        params: The parameters that sampled the rollout.
        rollout: Its traces; where the reward wants them, with the answers that the policy wrote.
        batch: The prompts and references.
        temperature: Of the rollout.
        model: The policy.
        reward_config: Which rewards.
        max_length: Most tokens of prompt, trace, delimiter and answer together.
        max_trace_length: Most tokens of a trace that is scored, where a row may have gone on without a delimiter.
    """
    sampled = None
    if reward_config.samples_answer:
        sampled = cut_traces(rollout, max_length - rollout.prompt_length)
        rollout = until_delimiter(rollout, batch.reference.delimiter)
        if max_trace_length is not None:
            rollout = cut_traces(rollout, jnp.full(rollout.prompt_length.shape, max_trace_length))
    rollout, log_probs, base_log_probs = fit_traces(rollout, batch, max_length), None, None
    if reward_config.intrinsic:
        log_probs, base_log_probs = score_reference(model, params, rollout, batch.reference, temperature)
    return Scored(
        rollout=rollout.without_caches(),
        sampled=sampled and sampled.without_caches(),
        log_probs=log_probs,
        base_log_probs=base_log_probs,
    )


@flax.struct.dataclass(kw_only=True)
class Asked:
    """What the reference policy says of a step's completions; None where it is not asked.

    Attributes:
        log_probs: [P, K, T] log pi_ref of every completion token, in the learner's layout.
        base_log_probs: [P, Y] log pi_ref of y* after the empty trace.
    """

    log_probs: jax.Array | None = None
    base_log_probs: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="has_opening")
def completions(scored: Scored, batch: Batch, *, has_opening: bool = False) -> LearnerBatch:
    """The learner's batch before it is rewarded, to be scored."""
    nothing = jnp.zeros(scored.rollout.tokens.shape[:2])
    return _lay_out(scored, batch, nothing, None, has_opening)


def _lay_out(scored: Scored, batch: Batch, advantage, signal, has_opening: bool) -> LearnerBatch:
    """With y* behind the traces where there is an intrinsic reward, as sampled elsewhere."""
    if scored.log_probs is None:
        return from_completions(scored.sampled or scored.rollout, batch.prompts, advantage, scored.hint_length)
    signal = jnp.zeros(scored.log_probs.shape) if signal is None else signal
    layout = {"has_opening": has_opening, "hint_length": scored.hint_length}
    return from_rollout(scored.rollout, batch, advantage, signal, **layout)


@functools.partial(
    jax.jit,
    static_argnames=("reward_config", "advantage_config", "loss_config", "reference_config", "has_opening"),
)
def reward_rollout(
    scored: Scored,
    batch: Batch,
    keys: jax.Array | None,
    scores: Mapping[str, jax.Array] | None = None,
    asked: Asked | None = None,
    reward_std: jax.Array | None = None,
    *,
    reward_config: RewardConfig,
    advantage_config: AdvantageConfig,
    loss_config: NRTLossConfig,
    reference_config: ReferenceConfig = ReferenceConfig(),  # noqa: B008
    has_opening: bool = False,
) -> tuple[LearnerBatch, Outcome]:
    """Rewards the traces of all questions of a step, and turns them into a learner's batch.

    Args:
        scored: All groups of the step.
        batch: Their prompts and references.
        keys: [P] keys of the `random` reward; others need none.
        scores: Rewards that were computed from text, [P, K] each (`nrt_jax.rewards.Rules`), if any.
        asked: Of the reference policy, if there is one.
        reward_std: [] float32, the moving average of the rewards' standard deviation, if prompts are dropped by it.
        reward_config: Which rewards.
        advantage_config: How they become advantages.
        loss_config: Which token signal; the KL term.
        reference_config: What the reference scores in place of the policy.
        has_opening: The prompts end with an opening tag.

    Returns:
        The learner's batch, and what `describe` makes scalars of.
    """
    rollout, sampled = scored.rollout, scored.sampled or scored.rollout
    rewards, baseline, signal = dict(scores or {}), None, None
    if reward_config.intrinsic:
        rewards["intrinsic"], baseline, signal = _intrinsic(
            scored, batch, keys, asked, reward_config, loss_config, reference_config
        )
    is_own = sampled.mask
    if scored.hint_length is not None:
        is_own &= jnp.arange(is_own.shape[-1]) >= scored.hint_length[..., None]
    added = punishment(sampled.tokens, sampled.mask, reward_config.shaping) * jnp.any(is_own, -1)
    if loss_config.kl_weight and loss_config.kl_in == "reward":
        laid_out = completions(scored, batch, has_opening=has_opening)
        mask = policy_mask(laid_out.masks, loss_config)
        if scored.hint_length is not None:  # Index 0 is x_X.
            mask &= jnp.arange(mask.shape[-1]) > scored.hint_length[..., None]
        kl = kl_estimate(loss_config.kl_estimator, laid_out.old_log_probs, asked.log_probs, mask)
        added -= loss_config.kl_weight * jnp.sum(kl, -1)
    total = mix(rewards, reward_config, baseline, clip=advantage_config.clip) + added
    advantage = group_advantage(total, scale=advantage_config.scale)
    if reward_std is not None:
        limits = {"min_std": advantage_config.min_std, "decay": advantage_config.std_decay}
        advantage, reward_std = drop_low_std(advantage, total, reward_std, **limits)
    learner_batch = _lay_out(scored, batch, advantage, signal, has_opening)
    if loss_config.kl_weight and loss_config.kl_in == "loss":
        learner_batch = learner_batch.replace(reference_log_probs=asked.log_probs)
    outcome = Outcome(
        rewards=rewards,
        reward=sum(getattr(reward_config, name) * reward for name, reward in rewards.items()) + added,
        baseline=baseline,
        reward_std=reward_std,
        advantage=advantage,
        log_probs=scored.log_probs,
        base_log_probs=scored.base_log_probs,
        answer_mask=batch.reference.mask,
        trace_length=rollout.trace_length,
        num_sampled=jnp.sum(is_own, -1),
        entropy=jnp.sum(sampled.entropy, -1, where=is_own),
        matched=rollout.matched(batch.reference.delimiter),
        finished=sampled.finished,
    )
    return learner_batch, outcome


def _intrinsic(scored, batch, keys, asked, reward_config, loss_config, reference_config):
    """The intrinsic reward [P, K], R_base [P] and the token signal [P, K, Y], which is the policy's own."""
    rollout, mask = scored.rollout, batch.reference.mask
    wide_mask = jnp.broadcast_to(mask[:, None], scored.log_probs.shape)
    if reward_config.mode == "random":
        noise = jax.vmap(lambda key: jax.random.uniform(key, wide_mask.shape[1:2]))(keys)
        reward, baseline = Reward(noise, wide_mask / wide_mask.sum(-1, keepdims=True)), jnp.zeros(len(noise))
    else:
        traces = (mask, rollout.trace_length, rollout.matched(batch.reference.delimiter), reward_config)
        reward, baseline = likelihood_reward(scored.log_probs, scored.base_log_probs, *traces)
    signal = token_signal(loss_config.token_signal, reward.token, wide_mask)
    if loss_config.token_signal == "derived":
        signal *= reward_config.intrinsic  # The gradient of the weighted sum; other signals have no scale.
    if reward_config.shaping.require_delimiter:
        signal *= rollout.matched(batch.reference.delimiter)[..., None]
    if reference_config.scores == "answers":
        log_probs = answer_values(asked.log_probs, rollout.trace_length, mask.shape[-1])
        reward, baseline = likelihood_reward(log_probs, asked.base_log_probs, *traces)
    elif reference_config.scores == "empty_trace":
        reward, baseline = likelihood_reward(scored.log_probs, asked.base_log_probs, *traces, same_policy=False)
    return reward.trace, baseline, signal


def likelihood_reward(
    log_probs: jax.Array,
    base_log_probs: jax.Array,
    mask: jax.Array,
    trace_length: jax.Array,
    matched: jax.Array,
    config: RewardConfig,
    *,
    same_policy: bool = True,
) -> tuple[Reward, jax.Array]:
    """The aggregation of c_i for K traces a prompt, and for the empty trace.

    Args:
        log_probs: [P, K, Y] log c_i.
        base_log_probs: [P, Y] log c_i,base.
        mask: [P, Y] bool.
        trace_length: [P, K] int32.
        matched: [P, K] bool, the policy wrote the delimiter itself.
        config: Which aggregation, and whether the reward is 0 where it did not.
        same_policy: As for `aggregate_group`.
    """
    traces = (mask, trace_length, matched)
    reward, baseline = aggregate_group(config.mode, log_probs, base_log_probs, *traces, same_policy=same_policy)
    if config.shaping.require_delimiter:
        reward = Reward(trace=reward.trace * matched, token=reward.token * matched[..., None])
    return reward, baseline


def mix(
    rewards: Mapping[str, jax.Array], config: RewardConfig, baseline: jax.Array | None, *, clip: str = "none"
) -> jax.Array:
    """The weighted sum of rewards, of which groups are made.

    Args:
        rewards: [P, K] each, by the names of their weights in the config.
        config: Weights, and how rewards are brought to one scale.
        baseline: [P] intrinsic reward of the empty trace; other rewards have none.
        clip: What it does to the intrinsic reward (`AdvantageConfig.clip`).
    """
    total = 0.0
    for name, reward in rewards.items():
        if name == "intrinsic":
            reward = BASELINES[clip](reward, baseline)
        if config.normalise == "group":
            reward = group_advantage(reward)
        total += getattr(config, name) * reward
    return total


@functools.partial(jax.jit, static_argnames="right")
def describe(outcome: Outcome, right: float | None = None) -> dict[str, jax.Array]:
    """Scalars of one rollout. The share of empty traces is the alarm for collapse.

    Args:
        outcome: Of the rollout.
        right: The verifier's score of a right answer; with it there is `verified_share`.
    """
    o, mask = outcome, outcome.answer_mask
    sampled = jnp.maximum(jnp.sum(o.num_sampled), 1)
    scalars = {"reward": jnp.mean(o.reward)}
    if len(o.rewards) > 1:
        scalars |= {f"reward_{name}": jnp.mean(reward) for name, reward in o.rewards.items()}
    if right is not None and "verifiable" in o.rewards:
        scalars["verified_share"] = jnp.mean(o.rewards["verifiable"] >= right)
    if o.baseline is not None:
        scalars |= {
            "reward_empty_trace": jnp.mean(o.baseline),
            "reward_gain": jnp.mean(o.rewards["intrinsic"] - o.baseline[:, None]),
            "answer_prob": jnp.mean(jnp.exp(jnp.sum(o.log_probs, -1, where=mask[:, None]))),
            "token_prob": jnp.mean(jnp.exp(o.log_probs), where=mask[:, None]),
            "token_prob_empty_trace": jnp.mean(jnp.exp(o.base_log_probs), where=mask),
        }
    return scalars | {
        "entropy": jnp.sum(o.entropy) / sampled,
        "trace_length": jnp.mean(o.trace_length.astype(jnp.float32)),
        "empty_trace_share": jnp.mean(o.trace_length == 0),
        "matched_share": jnp.mean(o.matched),
        "truncated_share": jnp.mean(~o.finished),
        "equal_group_share": jnp.mean(jnp.all(o.advantage == 0, -1)),
        "sampled_tokens": sampled,
    }
