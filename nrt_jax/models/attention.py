"""Attention over several KV segments: the prompt's shared cache, a trace's own cache, the tokens at hand.

Everything that the framework does with a model is one call of the same shape: tokens [P, K, T] that see some caches
and, causally, each other. K traces of one prompt read one copy of its cache:

    prompt cache   [P, G, 1, X, d]   ------------------------+
    trace cache    [P, G, K, S, d]   ---------+              |
    tokens at hand [P, G, K, T, d]   --+      |              |
                                       v      v              v
    scores of one query:            [ T own | S of the trace | X of the prompt ]   softmax over all of them

Masks are positions: a slot holds its token's position in the sequence, or -1 when it holds none. A query at position
q sees a slot at position p iff 0 <= p <= q (and q - p < window). Padding may therefore sit anywhere, cutting a
trace is setting positions to -1, and no mask of size [T, S] has to be passed around.
"""

import functools
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp

MASKED = -1e30  # Finite, so that a padding query (which sees nothing) yields numbers instead of NaN.


@flax.struct.dataclass(kw_only=True)
class KVCache:
    """Keys and values of S slots.

    Attributes:
        k: [L, P, G, K, S, d] keys, rotated; inside one layer, without L. K is 1 where a group shares the cache.
        v: Values, like k.
        positions: [P, K, S] int32, the slot's position in the sequence, -1 for an empty slot.
        k_scale: [L, P, G, K, S] float32 where k is int8 (`quantize`), else None.
        v_scale: Of v, likewise.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def num_slots(self) -> int:
        """S."""
        return self.positions.shape[-1]

    def map_prompts(self, fn: Callable[..., jax.Array], *others: "KVCache") -> "KVCache":
        """Applies fn(array, its axis of prompts, arrays of the others..) to every array of a cache of all layers."""
        scale_axis = None if self.k_scale is None else 1
        axes = KVCache(k=1, v=1, positions=0, k_scale=scale_axis, v_scale=scale_axis)
        return jax.tree.map(fn, self, axes, *others)


def empty_cache(like: KVCache, group_size: int, num_slots: int) -> KVCache:
    """An empty cache of `num_slots` slots for each of P x `group_size` rows, with the dtype of `like`."""
    num_layers, num_prompts, num_kv_heads, _, _, head_dim = like.k.shape
    shape = (num_layers, num_prompts, num_kv_heads, group_size, num_slots)
    scale = None if like.k_scale is None else jnp.zeros(shape)
    return KVCache(
        k=jnp.zeros((*shape, head_dim), like.k.dtype),
        v=jnp.zeros((*shape, head_dim), like.v.dtype),
        positions=jnp.full((num_prompts, group_size, num_slots), -1, jnp.int32),
        k_scale=scale,
        v_scale=scale,
    )


def quantize(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array | None]:
    """x [..., d] in a cache's dtype; int8 with one scale for each vector: x ~ values * scale.

    Returns:
        values [..., d], and scale [...] float32, the largest magnitude / 127, or None for other dtypes.
    """
    if dtype != jnp.int8:
        return x.astype(dtype), None
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    return jnp.round(x / jnp.maximum(scale, 1e-30)[..., None]).astype(jnp.int8), scale


def quantize_cache(cache: KVCache, dtype: str) -> KVCache:
    """A cache of the model's compute dtype in another dtype."""
    (k, k_scale), (v, v_scale) = quantize(cache.k, jnp.dtype(dtype)), quantize(cache.v, jnp.dtype(dtype))
    return cache.replace(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


def attend(q: jax.Array, positions: jax.Array, segments: Sequence[KVCache], window: int | None) -> jax.Array:
    """Grouped-query softmax attention of every query over all slots of all segments that it may see.

    The softmax is taken over the segments together: each contributes exp(score - max) V and its sum, and one division
    at the end normalises. No array over the slots of all segments is built.

    Args:
        q: [P, K, T, H, d] queries, rotated.
        positions: [P, K, T] int32, -1 for padding.
        segments: Caches of one layer, each [P, G, 1 or K, S, d].
        window: Number of last positions that a query sees, itself included; None for all.

    Returns:
        [P, K, T, H, d] in q's dtype. Rows of padding queries hold arbitrary finite numbers.
    """
    num_prompts, group_size, length, num_heads, head_dim = q.shape
    num_kv_heads = segments[0].k.shape[1]
    q = (q * head_dim**-0.5).reshape(num_prompts, group_size, length, num_kv_heads, -1, head_dim)
    q = jnp.transpose(q, (0, 3, 1, 4, 2, 5))  # [P, G, K, R, T, d], R = H / G query heads for each key head
    scores = [_scores(q, positions, segment, window) for segment in segments]
    top = functools.reduce(jnp.maximum, [jnp.max(s, -1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(top)) for s in scores]
    total = sum(jnp.sum(w, -1, keepdims=True) for w in weights)
    mixed = sum(_mix(w, segment, q.dtype) for w, segment in zip(weights, segments, strict=True)) / total
    return jnp.transpose(mixed.astype(q.dtype), (0, 2, 4, 1, 3, 5)).reshape(
        num_prompts, group_size, length, num_heads, head_dim
    )


def _scores(q: jax.Array, positions: jax.Array, segment: KVCache, window: int | None) -> jax.Array:
    """Masked scores [P, G, K, R, T, S] float32 of the queries [P, G, K, R, T, d]."""
    k = segment.k.astype(q.dtype)
    scores = jnp.einsum("pgbqd,pgbsd->pgbqs", _rows(q, k), k, preferred_element_type=jnp.float32)
    if segment.k_scale is not None:
        scores *= segment.k_scale[..., None, :]
    distance = positions[..., :, None] - segment.positions[..., None, :]
    visible = (segment.positions[..., None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    bias = jnp.where(visible, 0.0, MASKED)[:, None, :, None]
    return scores.reshape(*q.shape[:-1], k.shape[-2]) + bias


def _mix(weights: jax.Array, segment: KVCache, dtype: jnp.dtype) -> jax.Array:
    """Values weighted, in `dtype`, by [P, G, K, R, T, S] -> [P, G, K, R, T, d] float32."""
    v = segment.v.astype(dtype)
    weights_of_rows = _rows(weights, v)
    if segment.v_scale is not None:
        weights_of_rows *= segment.v_scale[..., None, :]
    mixed = jnp.einsum("pgbqs,pgbsd->pgbqd", weights_of_rows.astype(dtype), v, preferred_element_type=jnp.float32)
    return mixed.reshape(*weights.shape[:-1], v.shape[-1])


def _rows(x: jax.Array, cache: jax.Array) -> jax.Array:
    """[P, G, K, R, T, n] -> [P, G, b, K R T / b, n]: the rows that meet one copy of keys, b = 1 or K of them."""
    return x.reshape(*x.shape[:2], cache.shape[2], -1, x.shape[-1])
