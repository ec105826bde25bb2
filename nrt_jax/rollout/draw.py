"""Drawing the next token of every row from its logits: temperature, truncation, and one pass for all statistics.

A token is drawn by inverting the cumulative distribution in two levels: first a block of tokens by the blocks' masses,
then a token of that block. It takes two uniform numbers a row; the Gumbel-max trick would take V, whose generation cost
more on CPU than the model's forward pass. Both are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nrt_jax.errors import UserError
from nrt_jax.parallel import num_shards

BLOCK = 64  # V is padded to a multiple of it.
MASKED = -1e30  # The logit of padding; finite, so that its terms of the entropy are 0 and not NaN.


class Draw(NamedTuple):
    """One token a row and what the learner wants to know of its distribution; each [N], in nats.

    Attributes:
        token: int32.
        log_prob: Of the token, float32.
        entropy: float32.
        watched_log_prob: Of the watched token, float32.
    """

    token: jax.Array
    log_prob: jax.Array
    entropy: jax.Array
    watched_log_prob: jax.Array


class Truncation(NamedTuple):
    """Which tokens may be drawn; None is off. Equal probabilities stay or go together.

    Attributes:
        top_k: [] int32, the k likeliest.
        top_p: [] float32, of those the fewest whose mass is at least top_p of theirs.
        min_p: [] float32, those at least min_p as likely as the likeliest.
    """

    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None

    @classmethod
    def of(cls, top_k: int, top_p: float, min_p: float) -> "Truncation":
        """From numbers, of which 0, 1 and 0 are off."""
        return cls(
            top_k=jnp.int32(top_k) if top_k > 0 else None,
            top_p=jnp.float32(top_p) if top_p < 1 else None,
            min_p=jnp.float32(min_p) if min_p > 0 else None,
        )


def check_truncation(top_k: int, top_p: float, min_p: float, *, prefix: str = "") -> None:
    """Raises UserError for a number out of its range; its field's name is put behind `prefix`."""
    for name, value, is_good, expected in (
        ("top_k", top_k, top_k >= 0, "0 (off) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1 (off)"),
        ("min_p", min_p, 0 <= min_p < 1, "from 0 (off) to below 1"),
    ):
        if not is_good:
            raise UserError(f"{prefix}{name}: {value} cannot work; expected a number {expected}")


def draw(
    logits: jax.Array, uniform: jax.Array, temperature: jax.Array, watched: jax.Array, truncation: Truncation
) -> Draw:
    """Draws from softmax(logits / temperature), cut by `truncation`.

    Log-probabilities and entropy are those before the cut: the learner recomputes softmax(logits / temperature) and
    compares.

    Args:
        logits: [V, N] float32, V a multiple of `BLOCK`, padding `MASKED`.
        uniform: [N, 2] float32 in [0, 1).
        temperature: [] float32; 0 takes the likeliest token, the first of equals, with statistics at 1.
        watched: [] int32, a token whose log-probability is wanted whether drawn or not.
        truncation: What may be drawn.
    """
    greedy = temperature <= 0
    logits = logits / jnp.where(greedy, 1.0, temperature)
    shifted = logits - jnp.max(logits, axis=0)
    relative = jnp.exp(shifted)  # Probability over that of the likeliest token.
    total = jnp.sum(relative, axis=0)
    log_total = jnp.log(total)
    entropy = log_total - jnp.sum(relative * shifted, axis=0) / total

    least = jnp.where(greedy, 1.0, _least_relative(relative, truncation))
    token = _invert(jnp.where(relative >= least, relative, 0.0), jnp.where(greedy, 0.0, uniform))
    return Draw(token, _at(shifted, token) - log_total, entropy, _at(shifted, watched) - log_total)


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token [N] at which each row's cumulative weight [V, N] passes the uniform numbers."""
    blocks = weights.reshape(-1, BLOCK, weights.shape[-1])
    block = _first_above(jnp.sum(blocks, axis=1), uniform[:, 0])
    return block * BLOCK + _first_above(_at(blocks, block), uniform[:, 1])


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    """x [V or blocks, .., N] at each row's index [N], or at one index [], of its first axis."""
    if num_shards("vocab", x.shape[0]) > 1:  # Split over devices, an indexed x would be brought to all of them.
        is_there = jnp.arange(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1)) == index
        return jnp.sum(jnp.where(is_there, x, 0.0), axis=0)
    if index.ndim == 0:
        return x[index]
    return jnp.take_along_axis(x, index.reshape(*(1,) * (x.ndim - 1), -1), axis=0)[0]


def _first_above(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """[N] int32, the first index of [n, N] whose cumulative weight is above uniform x the largest.

    An index of weight 0 is never taken, however the cumulative sums are rounded: they count as 0.
    """
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=0), 0.0)
    return jnp.argmax(cumulative > uniform * jnp.max(cumulative, axis=0), axis=0).astype(jnp.int32)


def _least_relative(relative: jax.Array, truncation: Truncation) -> jax.Array:
    """The least relative probability [N] that may be drawn; the likeliest token, at 1, always may."""
    least = jnp.zeros(relative.shape[-1])
    if truncation.top_k is not None or truncation.top_p is not None:
        falling = jnp.flip(jnp.sort(relative, axis=0), axis=0)
        if truncation.top_k is not None:
            least = falling[jnp.clip(truncation.top_k, 1, falling.shape[0]) - 1]
        if truncation.top_p is not None:
            falling = jnp.where(falling >= least, falling, 0.0)
            before = jnp.cumsum(falling, axis=0) - falling
            in_nucleus = (before < truncation.top_p * jnp.sum(falling, axis=0)) | (truncation.top_p >= 1)
            least = jnp.maximum(least, jnp.min(jnp.where(in_nucleus, falling, 1.0), axis=0))
    if truncation.min_p is not None:
        least = jnp.maximum(least, truncation.min_p)
    return jnp.minimum(least, 1.0)
