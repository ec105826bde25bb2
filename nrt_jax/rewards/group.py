"""Rewards of a trace that depend on its siblings: what JEPO, NOVER and DRO make of the same c_i.

A function here sees the log c_i of a whole group, [.., K, T], and returns rewards and token signals of all K traces. To
add one, write it and name it in `GROUP_AGGREGATIONS`.
"""

import jax
import jax.numpy as jnp

from nrt_jax.errors import unknown_name
from nrt_jax.rewards.intrinsic import AGGREGATIONS, Reward, aggregate


def _jepo(log_c, mask, log_base, trace_length, matched):
    """R_j = log p_j, p_j = prod_i c_i, and the gradient of log(1/K sum_j p_j): p_j / sum p on every token of y*.

    JEPO with several samples (arXiv 2503.19618); `--advantage.scale jepo` makes its advantage of these rewards.
    """
    log_p = jnp.sum(log_c, -1)
    return Reward(trace=log_p, token=jax.nn.softmax(log_p, -1)[..., None] * mask)


def _nover(log_c, mask, log_base, trace_length, matched):
    """1 for the format, and where that is right, rank + efficiency (NOVER, arXiv 2505.16022).

    A trace's perplexity is exp(-sum_i log c_i / (T N)), N = max(1, 1 + log10 of its length). Of the n traces with the
    right format, the one with the r-th lowest perplexity has rank (n - r + 1) / n; its efficiency is the share of the
    others that are both longer and worse. Here the format is that the policy wrote the delimiter itself, and equal
    traces have equal ranks, that of the best. There is no token signal.
    """
    length = trace_length.astype(jnp.float32)
    norm = jnp.maximum(1.0, 1.0 + jnp.log10(jnp.maximum(length, 1.0)))
    log_perplexity = -jnp.sum(log_c, -1) / (jnp.maximum(jnp.sum(mask, -1), 1) * norm)
    num_matched = jnp.sum(matched, -1, keepdims=True)
    is_other = matched[..., None, :] & ~jnp.eye(matched.shape[-1], dtype=bool)
    is_worse = log_perplexity[..., :, None] < log_perplexity[..., None, :]
    is_better = log_perplexity[..., :, None] > log_perplexity[..., None, :]
    is_longer = length[..., :, None] < length[..., None, :]
    num_better = jnp.sum(is_other & is_better, -1)
    rank = (num_matched - num_better) / jnp.maximum(num_matched, 1)
    efficiency = jnp.sum(is_other & is_worse & is_longer, -1) / jnp.maximum(num_matched - 1, 1)
    return Reward(trace=jnp.where(matched, 1.0 + rank + efficiency, 0.0), token=jnp.zeros(mask.shape))


def _dro(log_c, mask, log_base, trace_length, matched):
    """R = sum_i w_i (log c_i - log c_i,base), w_i = sigma_i / sum sigma (R3 of DRO, arXiv 2506.13351).

    sigma_i is the standard deviation of log c_i over the group: tokens on which the traces disagree are those that
    reflect reasoning. The paper masks a trace's tokens where the empty trace is here.
    """
    sigma = jnp.std(log_c, -2, keepdims=True) * mask
    weight = sigma / jnp.maximum(jnp.sum(sigma, -1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return Reward(trace=jnp.sum(weight * (log_c - log_base), -1), token=weight * mask)


#: Each a function of log c, its mask, log c_base, all [.., K, T], trace_length [.., K] and matched [.., K].
GROUP_AGGREGATIONS = {"jepo": _jepo, "nover": _nover, "dro": _dro}

#: Modes whose rewards may be below 0, so that 0 is no penalty.
BELOW_ZERO = ("log_prob", "jepo", "dro")


def aggregate_group(
    mode: str,
    log_probs: jax.Array,
    base_log_probs: jax.Array,
    mask: jax.Array,
    trace_length: jax.Array,
    matched: jax.Array,
    *,
    same_policy: bool = True,
) -> tuple[Reward, jax.Array]:
    """R and token signal of K traces a prompt, and R of the empty trace, for any mode. Constant in the loss.

    Args:
        mode: One of `AGGREGATIONS` or `GROUP_AGGREGATIONS`.
        log_probs: [P, K, T] float, log c_i in nats. Any value where the mask is False.
        base_log_probs: [P, T] float, log c_i after the empty trace.
        mask: [P, T] bool, the reference's tokens, EOS included.
        trace_length: [P, K] int.
        matched: [P, K] bool, the policy wrote the delimiter itself.
        same_policy: One policy gave both log-probabilities, so that an empty trace has the baseline as its reward.

    Returns:
        Reward(trace [P, K], token [P, K, T]) and the baseline [P]; 0 for `nover`, which has none.

    Raises:
        UserError: The mode is not known.
    """
    wide_mask = jnp.broadcast_to(mask[:, None], log_probs.shape)
    base = jnp.broadcast_to(base_log_probs[:, None], log_probs.shape)
    if mode in AGGREGATIONS:
        reward = aggregate(mode, log_probs, wide_mask, base)
        baseline = aggregate(mode, base_log_probs, mask, base_log_probs).trace
    elif mode in GROUP_AGGREGATIONS:
        log_c, log_base = jnp.where(wide_mask, log_probs, 0.0), jnp.where(wide_mask, base, 0.0)
        reward = jax.lax.stop_gradient(GROUP_AGGREGATIONS[mode](log_c, wide_mask, log_base, trace_length, matched))
        baseline = jnp.sum(log_base[:, 0], -1) if mode == "jepo" else jnp.zeros(len(log_base))
    else:
        raise unknown_name("reward.mode", mode, (*AGGREGATIONS, *GROUP_AGGREGATIONS))
    if mode == "nover" or not same_policy:
        return reward, baseline
    # A sampled empty trace IS the baseline. Scored in another shape it is an ulp off, and where nothing else in
    # the group helps, max(0, R - R_base) would hand that ulp, divided by its own std, to the empty trace.
    return reward.replace(trace=jnp.where(trace_length == 0, baseline[:, None], reward.trace)), baseline
