"""The frozen reference of a run, and what it is asked: a second policy beside the one that learns.

    initial    the policy before training: its params are loaded with the model and never saved
    ema        decay x reference + (1 - decay) x params, every so many steps: a part of the state, saved with it

It scores the completions of a step once, after they were sampled, teacher-forced and in micro-batches. From that come
the KL term of the loss, KL in the reward, and c_i or c_i,base of another policy than the one that learns.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from nrt_jax import parallel
from nrt_jax.data.batch import Batch
from nrt_jax.models import Frozen, Model, Params
from nrt_jax.models.lora import combine
from nrt_jax.training.config import ReferenceConfig
from nrt_jax.training.learner import LearnerBatch, completion_log_probs, without_trace
from nrt_jax.training.state import TrainState
from nrt_jax.training.step import Asked
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


def ask(
    policy: Policy,
    completions: LearnerBatch,
    batch: Batch,
    temperature: float | jax.Array,
    num_parts: int,
    *,
    scores: str,
    has_kl: bool,
) -> Asked:
    """Asks the reference what a run needs of it.

    Args:
        policy: The reference.
        completions: Of all prompts of a step, beside its params.
        batch: Their questions and answers.
        temperature: Of the rollout.
        num_parts: Parts in which it scores; the number of prompts is a multiple of it.
        scores: `ReferenceConfig.scores`.
        has_kl: There is a KL term.
    """
    asked = Asked()
    if has_kl or scores == "answers":
        asked = asked.replace(log_probs=score_completions(policy, completions, temperature, num_parts))
    if scores != "nothing":
        empty = score_completions(policy, without_trace(batch), temperature, num_parts)
        asked = asked.replace(base_log_probs=empty[:, 0, 2:])  # Behind x_X and the delimiter.
    return asked
