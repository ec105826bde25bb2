"""The intrinsic reward of NRT: how likely a trace makes the known answer (Wang et al. 2026, arXiv 2602.11549).

A trace z is followed by the delimiter and the reference answer y*, EOS included, and the policy is asked for

    c_i = pi(y*_i | x, z, y*_<i),   i = 1..T.

The trace's reward is R = f(c_1..c_T). Each f also defines a token signal alpha_i c_i, alpha_i = df/dc_i: the weight of
log pi(y*_i | ...) in the second part of the objective's gradient. To add a reward, write a function of (log c, mask,
log c_base) that returns both and name it in `AGGREGATIONS`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Reference
from nrt_jax.errors import unknown_name
from nrt_jax.models import Model, Params, token_log_probs
from nrt_jax.rollout.rollout import Rollout


@flax.struct.dataclass
class Reward:
    """What a group of traces earned.

    Attributes:
        trace: R [...] float32.
        token: alpha_i c_i [..., T] float32, zero outside the reference.
    """

    trace: jax.Array
    token: jax.Array


def _log_prob(log_c, mask, _):
    """R = sum_i log c_i (JLB; JEPO with one sample)."""
    return Reward(trace=jnp.sum(log_c, -1), token=mask.astype(log_c.dtype))


def _prob(log_c, mask, _):
    """R = prod_i c_i (VeriFree)."""
    reward = jnp.exp(jnp.sum(log_c, -1))
    return Reward(trace=reward, token=reward[..., None] * mask)


def _arithmetic_mean(log_c, mask, _):
    """R = (1/T) sum_i c_i (RLPR)."""
    return _mean_of(jnp.exp(log_c) * mask, mask)


def _geometric_mean(log_c, mask, _):
    """R = (prod_i c_i)^(1/T) (NRT-GM)."""
    length = _length(mask)
    reward = jnp.exp(jnp.sum(log_c, -1) / length)
    return Reward(trace=reward, token=(reward / length)[..., None] * mask)


def _weighted_sum_inverse_prob(log_c, mask, log_base):
    """R = (1/T) sum_i c_i / c_i,base (NRT-WS(1/p)); a ratio is at most e^80, which float32 still holds."""
    return _mean_of(jnp.exp(jnp.minimum(log_c - log_base, 80.0)) * mask, mask)


def _weighted_sum_log_prob(log_c, mask, log_base):
    """R = (1/T) sum_i -c_i log c_i,base (NRT-WS(-log p))."""
    return _mean_of(-log_base * jnp.exp(log_c) * mask, mask)


def _mean_of(terms, mask):
    """f = (1/T) sum_i w_i c_i is linear in c, so its token signal is the terms of the sum."""
    token = terms / _length(mask)[..., None]
    return Reward(trace=jnp.sum(token, -1), token=token)


def _length(mask):
    return jnp.maximum(jnp.sum(mask, -1), 1)


AGGREGATIONS = {
    "log_prob": _log_prob,
    "prob": _prob,
    "arithmetic_mean": _arithmetic_mean,
    "geometric_mean": _geometric_mean,
    "weighted_sum_inverse_prob": _weighted_sum_inverse_prob,
    "weighted_sum_log_prob": _weighted_sum_log_prob,
}


def aggregate(mode: str, log_probs: jax.Array, mask: jax.Array, base_log_probs: jax.Array | None = None) -> Reward:
    """R = f(c) and its token signal, for one of `AGGREGATIONS`. Constant in the loss: no gradient flows out.

    Args:
        mode: Name of the aggregation f.
        log_probs: [..., T] float, log c_i in nats. Any value where the mask is False.
        mask: [..., T] bool, the reference's tokens, EOS included.
        base_log_probs: [..., T] float, log c_i of the same policy after the empty trace; the weighted sums need it.

    Returns:
        Reward(trace [...], token [..., T] = alpha_i c_i).

    Raises:
        UserError: The mode is not known.
        ValueError: A weighted sum without `base_log_probs`.
    """
    if mode not in AGGREGATIONS:
        raise unknown_name("reward.mode", mode, AGGREGATIONS)
    if base_log_probs is None:
        if mode.startswith("weighted_sum"):
            raise ValueError(f"{mode} weighs tokens by base_log_probs, which is None")
        base_log_probs = jnp.zeros_like(log_probs)
    log_c = jnp.where(mask, log_probs, 0.0)
    log_base = jnp.where(mask, base_log_probs, 0.0)
    return jax.lax.stop_gradient(AGGREGATIONS[mode](log_c, mask, log_base))


def score_reference(
    model: Model, params: Params, rollout: Rollout, reference: Reference, temperature: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array]:
    """log c_i of every trace and of the empty trace, from the caches that the rollout left.

    Only the delimiter and y* pass through the model: [P, K, Y] tokens for the traces, [P, 1, Y] for the empty one.

    Args:
        model: The policy.
        params: The parameters that sampled the rollout, so that its caches are theirs.
        rollout: P prompts, K traces each.
        reference: y* of each prompt.
        temperature: Divides the logits, as in the sampler.

    Returns:
        log_probs [P, K, Y] and base_log_probs [P, Y], float32, in nats; arbitrary outside the reference's mask.
    """
    contexts = (rollout.prompt_cache, rollout.trace_cache)
    start = rollout.prompt_length[:, None] + rollout.trace_length
    log_probs = _append_reference(model, params, contexts, start, reference, temperature)
    base = _append_reference(model, params, contexts[:1], rollout.prompt_length[:, None], reference, temperature)
    return log_probs, base[:, 0]


def _append_reference(model, params, contexts, start, reference, temperature):
    """log pi(y*) after the given caches; start [P, K] is the position of the delimiter."""
    num_prompts, length = reference.tokens.shape
    shape = (num_prompts, start.shape[1], length)
    delimiter = jnp.broadcast_to(reference.delimiter, (num_prompts, 1)).astype(reference.tokens.dtype)
    inputs = jnp.concatenate([delimiter, reference.tokens[:, :-1]], axis=1)
    positions = jnp.where(reference.mask[:, None], start[..., None] + jnp.arange(length), -1)
    hidden, _ = model.apply(params, jnp.broadcast_to(inputs[:, None], shape), positions, contexts)
    targets = jnp.broadcast_to(reference.tokens[:, None], shape)
    return token_log_probs(hidden, model.head(params), targets, temperature=temperature)[0]
