"""The frozen reference of a run, and what it is asked: a second policy beside the one that learns.

    initial    the policy before training: its params are loaded with the model and never saved
    ema        decay x reference + (1 - decay) x params, every so many steps: a part of the state, saved with it

It scores the completions of a step once, after they were sampled, teacher-forced and in micro-batches. From that come
the KL term of the loss, KL in the reward, and c_i or c_i,base of another policy than the one that learns. What else
needs the whole batch, advantages over it and the filter by standard deviation, is done in the same place: `settle`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from nrt_jax import parallel
from nrt_jax.models import Frozen, Model, Params
from nrt_jax.models.lora import combine
from nrt_jax.objectives import (
    BASELINES,
    AdvantageConfig,
    NRTLossConfig,
    drop_low_std,
    group_advantage,
    kl_estimate,
    policy_mask,
)
from nrt_jax.training.config import ReferenceConfig, RewardConfig
from nrt_jax.training.learner import LearnerBatch, answer_values, completion_log_probs, without_trace
from nrt_jax.training.state import TrainState
from nrt_jax.training.step import Outcome, likelihood_reward
from nrt_jax.training.update import plan, read_lengths


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that is only asked.

    Attributes:
        model: Its model; without adapters where it has none.
        params: What differs from `frozen`, or all of it.
        frozen: The rest.
    """

    model: Model
    params: Params
    frozen: Frozen | None


def initial_policy(model: Model, params: Params, frozen: Frozen | None) -> Policy:
    """The policy before training, kept through it.

    With adapters it is the frozen base itself, without a copy: adapters start as zero, added tokens' rows as the
    base's. Else it is a copy in the compute dtype, to which a forward pass rounds the parameters anyway.

    Args:
        model: The policy's.
        params: What is trained of it, before training.
        frozen: The rest of it; None without adapters.
    """
    if frozen is not None:
        return Policy(dataclasses.replace(model, lora=None), frozen.params, None)
    with parallel.on(params):
        return Policy(model, _copy(params, model=model), None)


def abstract_policy(config: ReferenceConfig, model: Model, params: Params, frozen: Frozen | None) -> Policy | None:
    """A run's reference as shapes, given those of its parameters; None without one."""
    if config.kind == "none":
        return None
    if config.kind == "ema":
        return Policy(model, params, frozen)
    if frozen is not None:
        return initial_policy(model, params, frozen)
    rounded = jax.eval_shape(model.compute_params, params)
    laid_out = jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, y.dtype, sharding=x.sharding), params, rounded)
    return Policy(model, laid_out, None)


@functools.partial(jax.jit, static_argnames="model")
def _copy(params: Params, *, model: Model) -> Params:
    copied = jax.tree.map(jnp.copy, model.compute_params(params))
    return parallel.constrain_tree(copied, model.logical_axes())


def follow(config: ReferenceConfig, state: TrainState, step: int) -> TrainState:
    """The state after the reference has followed the policy, if that is due.

    Args:
        config: The reference.
        state: Its reference is donated.
        step: Steps that are done, the one that made this state included.
    """
    if state.reference is None or step % config.every:
        return state
    with parallel.on(state.params):
        return state.replace(reference=moving_average(state.reference, state.params, config.decay))


@functools.partial(jax.jit, donate_argnums=0)
def moving_average(average: Params, params: Params, decay: float) -> Params:
    """decay x average + (1 - decay) x params; the average is donated."""
    return jax.tree.map(lambda x, new: (x + (1 - decay) * (new - x)).astype(x.dtype), average, params)


def score_completions(
    policy: Policy, batch: LearnerBatch, temperature: float | jax.Array, num_parts: int = 1
) -> jax.Array:
    """log pi_ref of every completion token, [P, K, T] float32 in nats; arbitrary outside the masks.

    Args:
        policy: The reference.
        batch: Beside its params.
        temperature: Divides the logits, as in the sampler.
        num_parts: Parts of the prompts that run one after the other; P is a multiple of it.
    """
    lengths = read_lengths(batch)
    with parallel.on(policy.params):
        scored = jnp.zeros(batch.tokens.shape, device=parallel.beside(policy.params))
        for part in plan(lengths, batch.tokens.shape[-1], num_parts):
            scored = score_part(
                scored,
                policy.params,
                policy.frozen,
                batch,
                part.prompts,
                temperature,
                model=policy.model,
                length=part.length,
            )
    return scored


@functools.partial(jax.jit, static_argnames=("model", "length"), donate_argnums=0)
def score_part(
    scored: jax.Array,
    params: Params,
    frozen: Frozen | None,
    batch: LearnerBatch,
    prompts: jax.Array,
    temperature: float | jax.Array,
    *,
    model: Model,
    length: int,
) -> jax.Array:
    """Writes the log-probabilities of one part's completions.

    Args:
        scored: [P, K, T] float32, donated.
        params: What differs of the reference.
        frozen: The rest of it.
        batch: All prompts.
        prompts: [p] int32, which of them are this part's.
        temperature: Divides the logits.
        model: The reference.
        length: T, to which this part's completions are cut; it must hold them.
    """
    batch = batch.replace(reference_log_probs=None)
    part = jax.tree.map(lambda x: x[prompts, :, :length] if x.ndim == 3 else x[prompts], batch)
    part = jax.tree.map(lambda x: parallel.constrain(x, "prompts"), part)
    log_probs, _ = completion_log_probs(model, combine(params, frozen), part, temperature=temperature)
    return parallel.constrain(scored.at[prompts, :, :length].set(log_probs), None)


def is_needed(reference: ReferenceConfig, advantage: AdvantageConfig) -> bool:
    """Whether a step's rollout has to be settled."""
    return reference.kind != "none" or advantage.needs_batch


def settle_rollout(
    learner_batch: LearnerBatch,
    outcome: Outcome,
    policy: Policy | None,
    temperature: float | jax.Array,
    reward_std: jax.Array | None,
    *,
    beside: jax.sharding.Sharding,
    num_parts: int,
    **configs: Any,
) -> tuple[LearnerBatch, Outcome, jax.Array | None]:
    """What needs the reference or the whole batch: log-probabilities, then rewards and advantages.

    Args:
        learner_batch: Of all prompts of a step, as `reward_rollout` made it.
        outcome: The same.
        policy: The reference, if there is one.
        temperature: Of the rollout.
        reward_std: The moving average, if prompts are dropped by it.
        beside: Where arrays go that are used with the params.
        num_parts: Parts in which the reference scores; the number of prompts is a multiple of it.
        **configs: Of `settle`.
    """
    learner_batch, outcome = jax.device_put((learner_batch, outcome), beside)
    scores, has_kl = configs["reference_config"].scores, configs["loss_config"].kl_weight > 0
    scored = base_scored = None
    if has_kl or scores == "answers":
        scored = score_completions(policy, learner_batch, temperature, num_parts)
    if scores == "empty_trace":
        empty = without_trace(learner_batch, outcome.trace_length, outcome.answer_mask)
        base_scored = score_completions(policy, empty, temperature, num_parts)
    with parallel.on(learner_batch):
        return settle(learner_batch, outcome, scored, base_scored, reward_std, **configs)


@functools.partial(jax.jit, static_argnames=("reward_config", "reference_config", "advantage_config", "loss_config"))
def settle(
    batch: LearnerBatch,
    outcome: Outcome,
    scored: jax.Array | None,
    base_scored: jax.Array | None,
    reward_std: jax.Array | None,
    *,
    reward_config: RewardConfig,
    reference_config: ReferenceConfig,
    advantage_config: AdvantageConfig,
    loss_config: NRTLossConfig,
) -> tuple[LearnerBatch, Outcome, jax.Array | None]:
    """Rewards and advantages of a whole step, given the reference's log-probabilities.

    Args:
        batch: Of the step.
        outcome: Of the step.
        scored: [P, K, T], the reference's, of the completions, if they are needed.
        base_scored: [P, 1, 2 + Y], of those of the empty trace, if they are needed.
        reward_std: [] float32, the moving average, or None.
        reward_config: Which aggregation of c_i.
        reference_config: What the reference scores in place of the policy.
        advantage_config: How rewards become advantages.
        loss_config: Its KL term.

    Returns:
        The batch, the outcome and the moving average with what has changed.
    """
    reward, baseline, mask = outcome.reward, outcome.baseline, outcome.answer_mask
    if reference_config.scores != "nothing":
        log_probs, base_log_probs = outcome.log_probs, outcome.base_log_probs
        if reference_config.scores == "answers":
            log_probs = answer_values(scored, outcome.trace_length, mask.shape[-1])
        else:
            base_log_probs = base_scored[:, 0, 2:]
        likelihood, baseline = likelihood_reward(
            log_probs, base_log_probs, mask, outcome.trace_length, outcome.matched, reward_config
        )
        reward = likelihood.trace if outcome.added is None else likelihood.trace + outcome.added
    has_kl = loss_config.kl_weight > 0
    if has_kl and loss_config.kl_in == "reward":
        kl = kl_estimate(loss_config.kl_estimator, batch.old_log_probs, scored, policy_mask(batch.masks, loss_config))
        reward = reward - loss_config.kl_weight * jnp.sum(kl, -1)
    advantage = group_advantage(reward, baseline, clip=advantage_config.clip, scale=advantage_config.scale)
    if reward_std is not None:
        compared = BASELINES[advantage_config.clip](reward, baseline)
        min_std, decay = advantage_config.min_std, advantage_config.std_decay
        advantage, reward_std = drop_low_std(advantage, compared, reward_std, min_std=min_std, decay=decay)
    kept = scored if has_kl and loss_config.kl_in == "loss" else None
    return (
        batch.replace(advantage=advantage, reference_log_probs=kept),
        outcome.replace(reward=reward, baseline=baseline, advantage=advantage),
        reward_std,
    )
