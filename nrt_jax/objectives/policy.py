"""Policy losses: what a token of a trace costs, given its advantage and how far the policy has moved since it sampled.

A policy loss is a function of (log pi, log pi_old, A, mask, ratio_low, ratio_high), all arrays [..., T]. To add one,
write it and name it in `POLICY_LOSSES`. The bounds of r = pi / pi_old are absolute numbers: a paper's 1 - eps_low and
1 + eps_high are ratio_low and ratio_high, so that eps 0.2 is 0.8 and 1.2.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class PolicyTerm:
    """A policy loss of every token.

    Attributes:
        loss: [..., T] float32, differentiated; any value where it is not counted.
        counted: [..., T] bool, tokens whose loss counts.
        clipped: [..., T] bool, tokens that the ratio's bounds touch.
    """

    loss: jax.Array
    counted: jax.Array
    clipped: jax.Array


def _ratio(log_probs, old_log_probs, mask):
    return jnp.exp(jnp.where(mask, log_probs - old_log_probs, 0.0))


def _pushed_too_far(ratio, advantage, low, high):
    """Where the update would push a token further that is beyond the bound already."""
    return ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))


def _nrt(log_probs, old_log_probs, advantage, mask, low, high):
    """-A sg(clip(r, low, high)) log pi, dropped where r is too far already (the NRT release, arXiv 2602.11549)."""
    ratio = _ratio(jax.lax.stop_gradient(log_probs), old_log_probs, mask)
    dropped = _pushed_too_far(ratio, advantage, low, high)
    return PolicyTerm(-advantage * jnp.clip(ratio, low, high) * log_probs, mask & ~dropped, mask & dropped)


def _cispo(log_probs, old_log_probs, advantage, mask, low, high):
    """-A sg(clip(r, low, high)) log pi: no token is dropped (CISPO of MiniMax-M1, arXiv 2506.13585)."""
    ratio = _ratio(jax.lax.stop_gradient(log_probs), old_log_probs, mask)
    clipped = jnp.clip(ratio, low, high)
    return PolicyTerm(-advantage * clipped * log_probs, mask, mask & (clipped != ratio))


def _ppo(log_probs, old_log_probs, advantage, mask, low, high):
    """-min(r A, clip(r, low, high) A): PPO's, as in GRPO (arXiv 2402.03300) and DAPO (2503.14476)."""
    fixed = _ratio(jax.lax.stop_gradient(log_probs), old_log_probs, mask)
    clipped = _pushed_too_far(fixed, advantage, low, high)
    # Where the bound holds the loss is constant; there the ratio, which may be infinite, must not be differentiated.
    ratio = _ratio(log_probs, old_log_probs, mask & ~clipped)
    return PolicyTerm(-advantage * jnp.where(clipped, jnp.clip(fixed, low, high), ratio), mask, mask & clipped)


def _reinforce(log_probs, old_log_probs, advantage, mask, low, high):
    """-A log pi, without ratio: exact for a step's first update (RLOO, arXiv 2402.14740; VeriFree, 2505.21493)."""
    return PolicyTerm(-advantage * log_probs, mask, jnp.zeros_like(mask))


POLICY_LOSSES = {"nrt": _nrt, "cispo": _cispo, "ppo": _ppo, "reinforce": _reinforce}
