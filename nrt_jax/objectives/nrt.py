"""The loss of every method: policy loss on the trace, cross-entropy on forced delimiters, token term on y*, KL."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.errors import unknown_name
from nrt_jax.objectives.kl import KL_ESTIMATORS, kl_estimate
from nrt_jax.objectives.policy import POLICY_LOSSES


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
        normaliser: `token_mean` averages over tokens (DAPO). `sequence_mean_token_mean` averages over a sequence's
            tokens, then over sequences (GRPO's 1/|o_i|). `sequence_mean_token_sum` sums over a sequence's tokens,
            divides by `constant` (Dr.GRPO: the most tokens a trace may have) and averages over sequences. `constant`
            divides the sum over all by `constant`. The NRT release's `token_mean` counts only tokens that the ratio
            bounds keep; a training update counts all, so that it can be split into parts.
        constant: Divisor of `constant` and `sequence_mean_token_sum`; 0 stands for the most tokens that the run samples
            in a row, as in Dr.GRPO (`TrainConfig.resolve`).
        delimiter_mean: The cross-entropy on forced delimiters is averaged over them (`forced`, the release) or over
            all sequences. When few rows miss the delimiter, the former lets each of them outweigh the whole rest of
            the batch: on the embedded task steps with such a row had a median gradient norm of 10, the others of 0.5.
        policy: The policy loss; one of `POLICY_LOSSES`.
        kl_weight: Weight of KL(policy || reference) on the trace; 0 is off. Needs `--reference.kind`.
        kl_estimator: `k1`, `k2` or `k3` (`nrt_jax.objectives.kl`).
        kl_in: `loss` adds the estimate to every token's loss (GRPO). `reward` subtracts its sum over the trace, under
            the policy that sampled, from the trace's reward (RLOO, LaTRO; REINFORCE++ sums from each token on).
    """

    trace_weight: float = 1.0
    delimiter_weight: float = 0.3
    token_weight: float = 1.0
    ratio_low: float = 0.8
    ratio_high: float = 1.28
    token_signal: Literal["fixed", "derived", "group_normalised"] = "fixed"
    normaliser: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant"] = "token_mean"
    constant: float = 1.0
    delimiter_mean: Literal["forced", "sequences"] = "forced"
    policy: Literal["nrt", "cispo", "ppo", "reinforce"] = "nrt"
    kl_weight: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"


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


def policy_mask(masks: LossMasks, config: NRTLossConfig) -> jax.Array:
    """[..., T] bool, the tokens of the policy loss and of KL.

    The NRT release takes the closing delimiter in whoever wrote it; elsewhere a trace is what the policy sampled.
    """
    return masks.trace if config.policy == "nrt" else masks.trace & ~masks.delimiter


def denominators(masks: LossMasks, config: NRTLossConfig) -> Denominators:
    """Denominators of a whole mini-batch, from its masks alone; `normaliser` does not concern the delimiter's.

    Raises:
        ValueError: The constant still stands for another number.
    """
    num_sequences = jnp.float32(masks.trace.size // masks.trace.shape[-1])

    def divisor(mask):
        if config.normaliser == "token_mean":
            return jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
        if config.normaliser == "sequence_mean_token_mean":  # By its own length each sequence is divided in the loss.
            return num_sequences
        if not config.constant:
            raise ValueError("constant: 0 stands for a number; expected TrainConfig.resolve")
        per_sequence = num_sequences if config.normaliser == "sequence_mean_token_sum" else 1.0
        return jnp.float32(config.constant) * per_sequence

    num_forced = jnp.maximum(jnp.sum(masks.delimiter, dtype=jnp.float32), 1.0)
    return Denominators(
        trace=divisor(policy_mask(masks, config)),
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
    reference_log_probs: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """L = w_z L_trace + w_d L_delimiter + w_y L_token + w_kl L_kl, each a normalised sum over tokens.

        L_trace     the policy loss of r_t = exp(log pi_t - log pi_old,t) and A    on the trace (`policy_mask`)
        L_delimiter = -log pi_t                                                    on masks.delimiter
        L_token     = -s_i log pi(y*_i | x, z, y*_<i)                              on masks.reference
        L_kl        k1, k2 or k3 of log pi_ref,t - log pi_t                        on the trace

    Args:
        log_probs: [..., T] float32, current policy, differentiated; any value outside the masks.
        old_log_probs: [..., T] float32, the policy that sampled.
        advantage: [...] float32, one a sequence, or [..., T], one a token.
        token_signal: [..., T] float32, s_i.
        masks: Which tokens each term covers.
        config: Weights and switches.
        divide_by: Denominators of the whole mini-batch, if this is a part of one. By default they are those of the
            arguments, and `token_mean` then averages the trace term over counted tokens only, as the release does.
        reference_log_probs: [..., T] float32, of the frozen reference; needed where the loss has a KL term.

    Returns:
        The loss and its terms: trace_loss, delimiter_loss, token_loss, kl_loss if there is a reference, clip_fraction
        (share of trace tokens that the ratio's bounds touch), approximate_kl (mean of r - 1 - log r over trace tokens,
        to the sampler, in nats).

    Raises:
        UserError: The policy loss or the estimator is not known.
        ValueError: The reference is missing.
    """
    if config.policy not in POLICY_LOSSES:
        raise unknown_name("loss.policy", config.policy, POLICY_LOSSES)
    if config.kl_estimator not in KL_ESTIMATORS:
        raise unknown_name("loss.kl_estimator", config.kl_estimator, KL_ESTIMATORS)
    has_kl = config.kl_weight > 0 and config.kl_in == "loss"
    if has_kl and reference_log_probs is None:
        raise ValueError("the loss has a KL term, which needs reference_log_probs")
    covered = masks.trace | masks.delimiter | masks.reference
    log_probs = jnp.where(covered, log_probs, 0.0)
    in_trace = policy_mask(masks, config)
    per_token = advantage if advantage.ndim == log_probs.ndim else advantage[..., None]
    advantage = jnp.where(in_trace, per_token, 0.0)  # What padding has of it must reach no gradient.
    term = POLICY_LOSSES[config.policy](
        log_probs, old_log_probs, advantage, in_trace, config.ratio_low, config.ratio_high
    )
    if divide_by is None:
        divide_by = denominators(masks.replace(trace=term.counted), config)

    def total(terms, counted, mask, divisor):
        if config.normaliser == "sequence_mean_token_mean":
            terms = terms / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
        return jnp.sum(terms, where=counted) / divisor

    metrics = {
        "trace_loss": total(term.loss, term.counted, in_trace, divide_by.trace),
        "delimiter_loss": jnp.sum(-log_probs, where=masks.delimiter) / divide_by.delimiter,
        "token_loss": total(-token_signal * log_probs, masks.reference, masks.reference, divide_by.token),
    }
    loss = (
        config.trace_weight * metrics["trace_loss"]
        + config.delimiter_weight * metrics["delimiter_loss"]
        + config.token_weight * metrics["token_loss"]
    )
    if has_kl:
        kl = kl_estimate(config.kl_estimator, log_probs, reference_log_probs, in_trace)
        metrics["kl_loss"] = total(kl, in_trace, in_trace, divide_by.trace)
        loss += config.kl_weight * metrics["kl_loss"]
    num_trace = jnp.maximum(jnp.sum(masks.trace), 1)
    log_ratio = jnp.where(masks.trace, jax.lax.stop_gradient(log_probs) - old_log_probs, 0.0)
    metrics["clip_fraction"] = jnp.sum(term.clipped) / num_trace
    metrics["approximate_kl"] = jnp.sum(jnp.exp(log_ratio) - 1 - log_ratio, where=masks.trace) / num_trace
    return loss, metrics
