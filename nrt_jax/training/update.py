"""From a learner's batch to updated parameters, in micro-batches whose number does not change the result.

The host orders the prompts of a mini-batch by their longest completion and splits them into equal parts; each part
runs no further than its own longest completion:

    one part            x_X z z z / y y y . . . . . . . . .        T = 16
                        x_X z z z z z z z z z z / y y y .
                        x_X z z / y y y . . . . . . . . . .
                        x_X z z z z z z / y y y . . . . . .

    two parts           x_X z z z z z z z z z z / y y y .          T = 16
                        x_X z z z z z z / y y y . . . . . .

                        x_X z z z / y y y                          T = 8
                        x_X z z / y y y .

A prompt and its K completions stay together, since the question is computed once for all of them. T takes one of at
most seven values, each of them a program; the gradients are added up in place, and one more program runs the optimizer.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nrt_jax import parallel
from nrt_jax.models import Frozen, Model, Params, Remat
from nrt_jax.models.lora import combine, logical_axes
from nrt_jax.objectives import DPOConfig, LossMasks, NRTLossConfig, denominators, dpo_loss, nrt_loss
from nrt_jax.training.learner import LearnerBatch, completion_log_probs
from nrt_jax.training.state import TrainState

#: A part's T is at least this share of the batch's: shorter ones would save little and each would be a program.
SHORTEST = 1 / 8


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many tokens a learner's batch holds, on the host.

    Attributes:
        prompts: [P] int.
        completions: [P, K] int, x_X not counted.
    """

    prompts: np.ndarray
    completions: np.ndarray

    def split(self, count: int) -> list["Lengths"]:
        """Those of `count` equal parts of the prompts."""
        parts = zip(np.split(self.prompts, count), np.split(self.completions, count), strict=True)
        return [Lengths(prompts, completions) for prompts, completions in parts]


def read_lengths(batch: LearnerBatch) -> Lengths:
    """Fetches the lengths of a batch: waits for the programs that make it, then for one small transfer."""
    return Lengths(*jax.device_get(_lengths(batch)))


@jax.jit
def _lengths(batch: LearnerBatch) -> tuple[jax.Array, jax.Array]:
    masks = batch.masks
    covered = masks.trace | masks.delimiter | masks.reference
    last = jnp.max(jnp.where(covered, jnp.arange(covered.shape[-1]), 0), -1)  # Index 0 is x_X.
    return jnp.sum(batch.prompts.mask, -1), last


@dataclasses.dataclass(frozen=True)
class Part:
    """A micro-batch.

    Attributes:
        prompts: [p] int32, indices of its prompts.
        length: T, to which its completions are cut.
    """

    prompts: np.ndarray
    length: int


def plan(lengths: Lengths, max_length: int, micro_batches: int) -> list[Part]:
    """Splits a mini-batch into equal parts of prompts whose longest completions are of similar length, longest first.

    Args:
        lengths: Of the mini-batch.
        max_length: T of the mini-batch.
        micro_batches: How many parts; P is a multiple of it.
    """
    longest = 1 + np.max(lengths.completions, -1)
    order = np.argsort(-longest, kind="stable") if micro_batches > 1 else np.arange(longest.size)
    parts = order.astype(np.int32).reshape(micro_batches, -1)
    return [Part(part, cut(int(np.max(longest[part])), max_length)) for part in parts]


def cut(length: int, max_length: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, .. (powers of 2, and 3 / 4 of them) that holds it; max_length at most."""
    length = max(length, int(max_length * SHORTEST), 1)
    power = 1 << (length - 1).bit_length()
    return min(power * 3 // 4 if length <= power * 3 // 4 else power, max_length)


def padding_share(lengths: Lengths, parts: list[Part], prompt_slots: int) -> float:
    """Share of the slots of prompts and completions, as cut, that the model runs for no token.

    Args:
        lengths: Of the mini-batch.
        parts: Its plan.
        prompt_slots: X.
    """
    group_size = lengths.completions.shape[1]
    slots = sum(part.prompts.size * (prompt_slots + group_size * (part.length - 1)) for part in parts)
    return 1.0 - float(lengths.prompts.sum() + lengths.completions.sum()) / slots


def update(
    state: TrainState,
    batch: LearnerBatch,
    temperature: float | jax.Array = 1.0,
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    config: NRTLossConfig | DPOConfig,
    micro_batches: int = 1,
    remat: Remat = "none",
    frozen: Frozen | None = None,
    lengths: Lengths | None = None,
) -> tuple[TrainState, dict[str, jax.Array | float]]:
    """One optimizer update; `step` is left to the caller, since a rollout may feed several updates.

    For the host alone: it plans the parts and dispatches a program for each, then one for the optimizer.

    Args:
        state: Donated. On a mesh, its arrays stay laid out as they are, and a part's prompts are laid over it.
        batch: The mini-batch.
        temperature: Divides the logits.
        model: The policy.
        optimizer: Makes updates of gradients.
        config: The loss, whose terms are divided by their counts over the whole mini-batch; or that of pairs.
        micro_batches: Parts of the batch whose gradients are added up; the number of prompts is a multiple of it.
        remat: What a layer keeps for the backward pass.
        frozen: With adapters, the rest of the policy.
        lengths: Of the batch, where they are known; else they are fetched, which waits for the batch.

    Returns:
        The new state and scalars: the loss and its terms, the trace's entropy (or, of pairs, what `dpo_loss` says),
        the gradient's global norm, `skipped_updates` (1 where loss or gradient was not finite, and the state is the old
        one), `padding_share`.
    """
    lengths = lengths or read_lengths(batch)
    batch = parallel.put(batch, parallel.beside(state.params))
    parts = plan(lengths, batch.tokens.shape[-1], micro_batches)
    with parallel.on(state.params):
        gradient, metrics = None if micro_batches == 1 else _zeros_like(model, state.params), []
        for part in parts:
            gradient, of_part = add_gradient(
                gradient,
                state.params,
                frozen,
                batch,
                part.prompts,
                temperature,
                model=model,
                config=config,
                length=part.length,
                remat=remat,
            )
            metrics.append(of_part)
        kept = {"reference": state.reference, "reward_std": state.reward_std}  # Not the optimizer's.
        state = state.replace(reference=None, reward_std=None)
        state, summed = apply_gradient(state, gradient, metrics, optimizer=optimizer)
        state = state.replace(**kept)
    return state, summed | {"padding_share": padding_share(lengths, parts, batch.prompts.tokens.shape[-1])}


@functools.partial(jax.jit, static_argnames=("model", "config", "length", "remat"), donate_argnames="gradient")
def add_gradient(
    gradient: Params | None,
    params: Params,
    frozen: Frozen | None,
    batch: LearnerBatch,
    prompts: jax.Array,
    temperature: float | jax.Array,
    *,
    model: Model,
    config: NRTLossConfig | DPOConfig,
    length: int,
    remat: Remat,
) -> tuple[Params, dict[str, jax.Array]]:
    """Adds one part's gradient.

    Args:
        gradient: Of the parts before, donated; None for zero.
        params: What is trained of the policy.
        frozen: The rest of it.
        batch: The whole mini-batch.
        prompts: [p] int32, which of its prompts are this part's.
        temperature: Divides the logits.
        model: The policy.
        config: The loss.
        length: T, to which this part's completions are cut; it must hold them.
        remat: What a layer keeps for the backward pass.

    Returns:
        The sum, and this part's share of the loss, its terms and the means over trace tokens or pairs.
    """
    part = jax.tree.map(lambda x: x[prompts, :, :length] if x.ndim == 3 else x[prompts], batch)
    part = jax.tree.map(lambda x: parallel.constrain(x, "prompts"), part)

    def loss_fn(params):
        policy = combine(params, frozen)
        log_probs, entropy = completion_log_probs(model, policy, part, temperature=temperature, remat=remat)
        if isinstance(config, DPOConfig):
            num_pairs = len(batch.tokens)
            loss, metrics = dpo_loss(log_probs, part.masks.reference, part.reference_log_probs, config, num_pairs)
        else:
            loss, metrics = _token_loss(log_probs, entropy, part, batch.masks, config)
        return loss, metrics | {"loss": loss}

    new, metrics = jax.grad(loss_fn, has_aux=True)(params)
    new = parallel.constrain_tree(new, logical_axes(model, params))
    return new if gradient is None else jax.tree.map(jnp.add, gradient, new), metrics


def _token_loss(log_probs, entropy, part: LearnerBatch, of_all: LossMasks, config: NRTLossConfig):
    """One part's share of the loss and of its metrics, given the masks of the whole mini-batch."""
    num_trace = jnp.sum(part.masks.trace)
    share = num_trace / jnp.maximum(jnp.sum(of_all.trace), 1)
    loss, metrics = nrt_loss(
        log_probs,
        part.old_log_probs,
        part.advantage,
        part.token_signal,
        part.masks,
        config,
        denominators(of_all, config),
        part.reference_log_probs,
    )
    of_trace = {name: share * metrics[name] for name in ("clip_fraction", "approximate_kl")}
    of_trace["trace_entropy"] = share * jnp.sum(entropy, where=part.masks.trace) / jnp.maximum(num_trace, 1)
    return loss, metrics | of_trace


@functools.partial(jax.jit, static_argnames="optimizer", donate_argnames="state")
def apply_gradient(
    state: TrainState,
    gradient: Params,
    metrics: list[dict[str, jax.Array]],
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The optimizer's update; where the loss or the gradient is not finite, the params and opt_state stay as they are.

    Args:
        state: Donated.
        gradient: Of the mini-batch.
        metrics: Of each part, to be summed.
        optimizer: Makes an update of the gradient.
    """
    summed = jax.tree.map(lambda *terms: sum(terms), *metrics) | {"gradient_norm": optax.tree.norm(gradient)}
    finite = jnp.isfinite(summed["loss"]) & jnp.isfinite(summed["gradient_norm"])

    def apply(state: TrainState) -> TrainState:
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    state = jax.lax.cond(finite, apply, lambda state: state, state)
    return state, summed | {"skipped_updates": 1 - finite.astype(jnp.int32)}


@functools.partial(jax.jit, static_argnums=0)
def _zeros_like(model: Model, params: Params) -> Params:
    return parallel.constrain_tree(jax.tree.map(jnp.zeros_like, params), logical_axes(model, params))
