"""The chunked log-softmax against a plain one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrt_jax.models import token_log_probs

TOKENS, WIDTH, VOCAB = 22, 8, 50


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, TOKENS // 2, WIDTH)), rng.normal(size=(VOCAB, WIDTH))
    return jnp.array(hidden, jnp.float32), jnp.array(head, jnp.float32), jnp.array(rng.integers(0, VOCAB, (2, 11)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk_size", [4, 22, 1000])
def test_log_probs_and_entropy_equal_the_plain_formula(inputs, chunk_size, temperature):
    hidden, head, targets = inputs
    logits = np.float64(hidden) @ np.float64(head).T / temperature
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs, entropy = token_log_probs(hidden, head, targets, temperature=temperature, chunk_size=chunk_size)
    np.testing.assert_allclose(log_probs, np.take_along_axis(expected, targets[..., None], -1)[..., 0], atol=1e-5)
    np.testing.assert_allclose(entropy, -(np.exp(expected) * expected).sum(-1), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_gradients_do_not_depend_on_the_chunk_size(inputs, dtype, tolerance):
    """Also in bfloat16, where adding a head gradient up in bfloat16 would lose a part with every chunk."""
    hidden, head, targets = inputs

    def loss(head, hidden, chunk_size):
        return jnp.sum(token_log_probs(hidden.astype(dtype), head, targets, chunk_size=chunk_size)[0])

    whole = jax.grad(loss, argnums=(0, 1))(head, hidden, 1000)
    parts = jax.grad(loss, argnums=(0, 1))(head, hidden, 2)
    assert parts[0].dtype == jnp.float32
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(a).max()))
