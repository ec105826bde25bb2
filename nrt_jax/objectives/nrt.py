"""The NRT loss: a clipped policy gradient on the trace, cross-entropy on forced delimiters, the token term on y*."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class NRTLossConfig:
    """Weights and switches of the loss (defaults: the release, arXiv 2602.11549).

    Attributes:
        trace_weight: Weight of the policy gradient on the trace.
        delimiter_weight: Weight of the cross-entropy on delimiters that the policy did not write.
        token_weight: Weight of the token term on the reference answer.
        ratio_low: Lower bound of the importance ratio (absolute, not 1 - eps).
        ratio_high: Upper bound of the importance ratio.
        token_signal: `fixed` s_i = 1, plain cross-entropy on y*; `derived` s_i = alpha_i c_i, the paper's gradient;
            `group_normalised` the latter centred and scaled over the group (can be negative).
        normaliser: `token_mean` averages over tokens, `sequence_mean_token_sum` sums over a sequence's tokens and
            averages over sequences, `constant` divides the sum by `constant`. The release's `token_mean` counts only
            tokens that the ratio bounds keep; a training update counts all, so that it can be split into parts.
        constant: Divisor of `normaliser="constant"`.
        delimiter_mean: The cross-entropy on forced delimiters is averaged over them (`forced`, the release) or over
            all sequences. When few rows miss the delimiter, the former lets each of them outweigh the whole rest of
            the batch: on the embedded task steps with such a row had a median gradient norm of 10, the others of 0.5.
    """

    trace_weight: float = 1.0
    delimiter_weight: float = 0.3
    token_weight: float = 1.0
    ratio_low: float = 0.8
    ratio_high: float = 1.28
    token_signal: Literal["fixed", "derived", "group_normalised"] = "fixed"
    normaliser: Literal["token_mean", "sequence_mean_token_sum", "constant"] = "token_mean"
    constant: float = 1.0
    delimiter_mean: Literal["forced", "sequences"] = "forced"


@flax.struct.dataclass(kw_only=True)
class LossMasks:
    """Which tokens each term covers.

        z_1  z_2  </think>  y_1  y_2  EOS
    trace      1    1      1       0    0    0     the policy's own tokens and the closing delimiter
    delimiter  0    0      f       0    0    0     f: forced, the policy did not write it itself
    reference  0    0      0       1    1    1

    Attributes:
        trace: [..., T] bool.
        delimiter: [..., T] bool.
        reference: [..., T] bool.
    """

    trace: jax.Array
    delimiter: jax.Array
    reference: jax.Array


@flax.struct.dataclass(kw_only=True)
class Denominators:
    """What each term's sum is divided by: scalars. Given from outside, a batch may be split into micro-batches."""

    trace: jax.Array
    delimiter: jax.Array
    token: jax.Array


def denominators(masks: LossMasks, config: NRTLossConfig) -> Denominators:
    """Denominators of a whole mini-batch, from its masks alone; `normaliser` does not concern the delimiter's."""
    num_sequences = jnp.float32(masks.trace.size // masks.trace.shape[-1])

    def divisor(mask):
        if config.normaliser == "token_mean":
            return jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
        return num_sequences if config.normaliser == "sequence_mean_token_sum" else jnp.float32(config.constant)

    num_forced = jnp.maximum(jnp.sum(masks.delimiter, dtype=jnp.float32), 1.0)
    return Denominators(
        trace=divisor(masks.trace),
        delimiter=num_forced if config.delimiter_mean == "forced" else num_sequences,
        token=divisor(masks.reference),
    )


def token_signal(kind: str, derived: jax.Array, mask: jax.Array) -> jax.Array:
    """s_i, the weight of each reference token in the token term.

    Args:
        kind: `fixed`, `derived` or `group_normalised`.
        derived: [P, K, T] alpha_i c_i.
        mask: [P, K, T] bool, the reference's tokens.

    Returns:
        [P, K, T] float32, zero outside the mask.
    """
    if kind == "fixed":
        return mask.astype(derived.dtype)
    if kind == "derived":
        return jnp.where(mask, derived, 0.0)
    if kind != "group_normalised":
        raise unknown_name("loss.token_signal", kind, ("fixed", "derived", "group_normalised"))
    group = (-2, -1)
    count = jnp.sum(mask, group, keepdims=True)
    mean = jnp.sum(derived, group, keepdims=True, where=mask) / count
    centred = jnp.where(mask, derived - mean, 0.0)
    std = jnp.sqrt(jnp.sum(jnp.square(centred), group, keepdims=True) / jnp.maximum(count - 1, 1))
    equal = jnp.max(derived, group, keepdims=True, where=mask, initial=-jnp.inf) == jnp.min(
        derived, group, keepdims=True, where=mask, initial=jnp.inf
    )
    return jnp.where(equal, 0.0, centred / jnp.where(equal, 1.0, std))


def nrt_loss(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantage: jax.Array,
    token_signal: jax.Array,
    masks: LossMasks,
    config: NRTLossConfig,
    divide_by: Denominators | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = w_z L_trace + w_d L_delimiter + w_y L_token (released recipe, CISPO-style, per token).

        r_t         = exp(log pi_t - log pi_old,t)
        keep        = not[(A > 0 and r_t > ratio_high) or (A < 0 and r_t < ratio_low)]
        L_trace     = -A stop_grad(clip(r_t, ratio_low, ratio_high)) log pi_t      on masks.trace, where keep
        L_delimiter = -log pi_t                                                    on masks.delimiter
        L_token     = -s_i log pi(y*_i | x, z, y*_<i)                              on masks.reference

    Args:
        log_probs: [..., T] float32, current policy, differentiated; any value outside the masks.
        old_log_probs: [..., T] float32, the policy that sampled.
        advantage: [...] float32, one a sequence, or [..., T].
        token_signal: [..., T] float32, s_i.
        masks: Which tokens each term covers.
        config: Weights and switches.
        divide_by: Denominators of the whole mini-batch, if this is a part of one. By default they are those of the
            arguments, and `token_mean` then averages the trace term over kept tokens only, as the release does.

    Returns:
        The loss and its terms: trace_loss, delimiter_loss, token_loss, clip_fraction (share of trace tokens dropped),
        approximate_kl (mean of r - 1 - log r over trace tokens, to the sampler, in nats).
    """
    covered = masks.trace | masks.delimiter | masks.reference
    log_probs = jnp.where(covered, log_probs, 0.0)
    log_ratio = jnp.where(masks.trace, jax.lax.stop_gradient(log_probs) - old_log_probs, 0.0)
    ratio = jnp.exp(log_ratio)
    sign = advantage if advantage.ndim == log_probs.ndim else advantage[..., None]
    dropped = ((sign > 0) & (ratio > config.ratio_high)) | ((sign < 0) & (ratio < config.ratio_low))
    kept = masks.trace & ~dropped
    if divide_by is None:
        divide_by = denominators(masks.replace(trace=kept), config)

    clipped = jnp.clip(ratio, config.ratio_low, config.ratio_high)
    trace_loss = jnp.sum(-sign * clipped * log_probs, where=kept) / divide_by.trace
    delimiter_loss = jnp.sum(-log_probs, where=masks.delimiter) / divide_by.delimiter
    token_loss = jnp.sum(-token_signal * log_probs, where=masks.reference) / divide_by.token
    loss = (
        config.trace_weight * trace_loss + config.delimiter_weight * delimiter_loss + config.token_weight * token_loss
    )
    num_trace = jnp.maximum(jnp.sum(masks.trace), 1)
    return loss, {
        "trace_loss": trace_loss,
        "delimiter_loss": delimiter_loss,
        "token_loss": token_loss,
        "clip_fraction": jnp.sum(masks.trace & dropped) / num_trace,
        "approximate_kl": jnp.sum(ratio - 1 - log_ratio, where=masks.trace) / num_trace,
    }
