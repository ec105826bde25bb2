"""Log-probabilities of given tokens without a [tokens, vocabulary] array: a chunked, rematerialised log-softmax."""

import functools

import jax
import jax.numpy as jnp


def token_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    chunk_size: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of p at every position.

    Logits exist for `chunk_size` positions at a time, in the forward pass and again in the backward pass.

    Args:
        hidden: [..., D] final hidden states, each predicting the target at the same index.
        head: [V, D] output matrix.
        targets: [...] int token ids.
        temperature: Divides the logits.
        chunk_size: Positions whose logits are in memory at once.

    Returns:
        log_probs [...] float32 in nats, entropy [...] float32 in nats (no gradient flows through the entropy).
    """
    shape, num_tokens = targets.shape, targets.size
    hidden, targets = hidden.reshape(num_tokens, -1), targets.reshape(num_tokens)
    if num_tokens <= chunk_size:
        log_probs, entropy = _chunk_log_probs(head, temperature, (hidden, targets))
        return log_probs.reshape(shape), entropy.reshape(shape)
    padding = -num_tokens % chunk_size
    chunks = (
        jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk_size, hidden.shape[-1]),
        jnp.pad(targets, (0, padding)).reshape(-1, chunk_size),
    )
    log_probs, entropy = jax.lax.map(functools.partial(_chunk_log_probs, head, temperature), chunks)
    return log_probs.reshape(-1)[:num_tokens].reshape(shape), entropy.reshape(-1)[:num_tokens].reshape(shape)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _chunk_log_probs(head, temperature, chunk):
    hidden, targets = chunk
    # Cast here, so that the head's gradient adds up over chunks in float32.
    logits = jnp.einsum("td,vd->tv", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = logits / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_probs = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - log_z
    every = jax.lax.stop_gradient(logits - log_z[:, None])
    entropy = -jnp.sum(jnp.exp(every) * every, axis=-1)
    return log_probs, entropy
