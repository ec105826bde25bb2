"""What training keeps in memory, and how long its program is: read from compiled programs, not timed."""

import jax
import jax.numpy as jnp

from nrt_jax.models import token_log_probs

TOKENS = 1024


def temporary_bytes(function, *shapes):
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_a_larger_vocabulary_adds_no_array_of_tokens_by_vocabulary():
    """Four times the vocabulary adds two chunks' logits and their like, not those of all tokens."""
    chunk, width = 16, 8

    def room(vocab_size):
        def loss(hidden, head, targets):
            log_probs, entropy = token_log_probs(hidden, head, targets, chunk_size=chunk)
            return jnp.sum(log_probs), entropy

        return temporary_bytes(
            jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
            jax.ShapeDtypeStruct((TOKENS, width), jnp.float32),
            jax.ShapeDtypeStruct((vocab_size, width), jnp.float32),
            jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
        )

    small, large = 32 * 1024, 128 * 1024
    added = room(large) - room(small)
    assert added < TOKENS * (large - small) * 4 / 8
    assert added < (6 * chunk + 3 * width) * (large - small) * 4
