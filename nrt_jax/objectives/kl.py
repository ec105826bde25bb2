"""Estimates of KL(pi || pi_ref) from tokens that pi sampled (Schulman 2020, "Approximating KL Divergence").

With d = log pi_ref - log pi at a sampled token:

    k1 = -d                unbiased, of large variance, may be negative
    k2 = d^2 / 2           biased; its gradient is, on average, that of the KL divergence
    k3 = e^d - 1 - d       unbiased, never negative; GRPO's

As a term of the loss each is differentiated as it stands. Only k2's gradient then points where it should. k1's is
grad log pi, whose mean is zero whatever the reference: in the loss k1 is noise. k3's, (1 - e^d) grad log pi, is on
average the gradient of KL(pi_ref || pi). In the reward k1 is right, since the policy gradient multiplies it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

#: Each a function of d.
KL_ESTIMATORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "k1": lambda d: -d,
    "k2": lambda d: jnp.square(d) / 2,
    "k3": lambda d: jnp.expm1(d) - d,
}


def kl_estimate(kind: str, log_probs: jax.Array, reference_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """The estimate at every token, [..., T] float32 in nats, zero outside the mask.

    Args:
        kind: One of `KL_ESTIMATORS`.
        log_probs: [..., T], the policy's.
        reference_log_probs: [..., T], the reference's; any value outside the mask.
        mask: [..., T] bool.
    """
    return KL_ESTIMATORS[kind](jnp.where(mask, reference_log_probs - log_probs, 0.0))
