"""What training keeps in memory, and how long its program is: read from compiled programs, not timed."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from nrt_jax.models import Model, ModelConfig, token_log_probs
from tests.fixtures_model import tiny_model

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


def loss_of(model, tokens, remat):
    def loss(params):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
        hidden, _ = model.apply(params, tokens, positions, remat=remat)
        return jnp.mean(token_log_probs(hidden, model.head(params), tokens)[0])

    return loss


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_gradients_do_not_depend_on_what_is_kept(remat):
    model, params = tiny_model(sliding_window=5)
    tokens = jax.random.randint(jax.random.key(1), (2, 2, 11), 0, model.config.vocab_size)
    plain, other = (jax.jit(jax.grad(loss_of(model, tokens, r)))(params) for r in ("none", remat))
    chex.assert_trees_all_close(plain, other, atol=1e-6)


def deep(num_layers):
    return Model(
        ModelConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_layers=num_layers,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
        )
    )


@functools.cache
def gradient(num_layers, remat="dots"):
    """The compiled gradient of a loss over 2 x 2 sequences of 64 tokens."""
    model = deep(num_layers)
    tokens = jnp.zeros((2, 2, 64), jnp.int32)
    return jax.jit(jax.grad(loss_of(model, tokens, remat))).lower(model.abstract_params()).compile()


def test_each_policy_keeps_less_than_the_one_before():
    none, dots, full = (gradient(8, remat).memory_analysis().temp_size_in_bytes for remat in ("none", "dots", "full"))
    assert full < 0.75 * dots < 0.75 * 0.75 * none


def test_a_deeper_model_is_no_longer_program():
    def length(num_layers):
        return gradient(num_layers).as_text().count(" = ")

    assert length(32) < 1.02 * length(4)
