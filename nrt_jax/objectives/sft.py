"""Supervised fine-tuning: the mean cross-entropy of the tokens to be learned."""

import jax
import jax.numpy as jnp


def sft_loss(log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of -log pi over the masked tokens, in nats.

    Args:
        log_probs: [..., T] float32.
        mask: [..., T] bool, tokens to be learned.
    """
    return -jnp.sum(log_probs, where=mask) / jnp.maximum(jnp.sum(mask), 1)
