"""Attention over several KV segments: the prompt's shared cache, a trace's own cache, the tokens at hand.

Everything that the framework does with a model is one call of the same shape: tokens [P, K, T] that see some caches
and, causally, each other. K traces of one prompt read one copy of its cache:

    prompt cache   [P, 1, G, X, d]   ------------------------+
    trace cache    [P, K, G, S, d]   ---------+              |
    tokens at hand [P, K, G, T, d]   --+      |              |
                                       v      v              v
    scores of one query:            [ T own | S of the trace | X of the prompt ]   softmax over all of them

Masks are positions: a slot holds its token's position in the sequence, or -1 when it holds none. A query at position
q sees a slot at position p iff 0 <= p <= q (and q - p < window). Padding may therefore sit anywhere, cutting a
trace is setting positions to -1, and no mask of size [T, S] has to be passed around.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

MASKED = -1e30  # Finite, so that a padding query (which sees nothing) yields numbers instead of NaN.


@flax.struct.dataclass(kw_only=True)
class KVCache:
    """Keys and values of S slots.

    Attributes:
        k: [L, P, K, G, S, d] keys, rotated; inside one layer, without L. K is 1 where a group shares the cache.
        v: Values, like k.
        positions: [P, K, S] int32, the slot's position in the sequence, -1 for an empty slot.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array

    @property
    def num_slots(self) -> int:
        """S."""
        return self.positions.shape[-1]


def empty_cache(like: KVCache, group_size: int, num_slots: int) -> KVCache:
    """An empty cache of `num_slots` slots for each of P x `group_size` rows, with the dtype of `like`."""
    num_layers, num_prompts, _, num_heads, _, head_dim = like.k.shape
    shape = (num_layers, num_prompts, group_size, num_heads, num_slots, head_dim)
    return KVCache(
        k=jnp.zeros(shape, like.k.dtype),
        v=jnp.zeros(shape, like.v.dtype),
        positions=jnp.full((num_prompts, group_size, num_slots), -1, jnp.int32),
    )


def write_cache(cache: KVCache, new: KVCache, slot: jax.Array) -> KVCache:
    """Writes the slots of `new` into `cache` from index `slot` on (the same index in every row)."""
    return KVCache(
        k=jax.lax.dynamic_update_slice_in_dim(cache.k, new.k, slot, axis=4),
        v=jax.lax.dynamic_update_slice_in_dim(cache.v, new.v, slot, axis=4),
        positions=jax.lax.dynamic_update_slice_in_dim(cache.positions, new.positions, slot, axis=2),
    )


def attend(q: jax.Array, positions: jax.Array, segments: Sequence[KVCache], window: int | None) -> jax.Array:
    """Grouped-query softmax attention of every query over all slots of all segments that it may see.

    Args:
        q: [P, K, T, H, d] queries, rotated.
        positions: [P, K, T] int32, -1 for padding.
        segments: Caches of one layer, each [P, 1 or K, G, S, d].
        window: Number of last positions that a query sees, itself included; None for all.

    Returns:
        [P, K, T, H, d] in q's dtype. Rows of padding queries hold arbitrary finite numbers.
    """
    num_prompts, group_size, length, num_heads, head_dim = q.shape
    num_kv_heads = segments[0].k.shape[-3]
    q = q.reshape(num_prompts, group_size, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = jnp.concatenate([_scores(q, positions, segment, window) for segment in segments], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    ends = [sum(s.num_slots for s in segments[: i + 1]) for i in range(len(segments) - 1)]
    parts = jnp.split(weights, ends, axis=-1)
    out = sum(_mix(part, segment) for part, segment in zip(parts, segments, strict=True))
    return out.reshape(num_prompts, group_size, length, num_heads, head_dim)


def _scores(q: jax.Array, positions: jax.Array, segment: KVCache, window: int | None) -> jax.Array:
    """Masked scores [P, K, G, R, T, S] float32, R = H / G query heads for each key head."""
    if segment.k.shape[1] == 1:  # One matrix product for the whole group: K is not a batch axis here.
        scores = jnp.einsum("pktgrd,pgsd->pkgrts", q, segment.k[:, 0], preferred_element_type=jnp.float32)
    else:
        scores = jnp.einsum("pktgrd,pkgsd->pkgrts", q, segment.k, preferred_element_type=jnp.float32)
    distance = positions[..., :, None] - segment.positions[..., None, :]
    visible = (segment.positions[..., None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    return jnp.where(visible[:, :, None, None], scores * q.shape[-1] ** -0.5, MASKED)


def _mix(weights: jax.Array, segment: KVCache) -> jax.Array:
    """Values weighted by [P, K, G, R, T, S] -> [P, K, T, G, R, d]."""
    if segment.v.shape[1] == 1:
        return jnp.einsum("pkgrts,pgsd->pktgrd", weights, segment.v[:, 0])
    return jnp.einsum("pkgrts,pkgsd->pktgrd", weights, segment.v)
