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
from jax.ad_checkpoint import checkpoint_name

from nrt_jax.parallel import constrain, num_shards

MASKED = -1e30  # Finite, so that a padding query (which sees nothing) yields numbers instead of NaN.
BLOCK_SCORES = 2**21  # Scores that exist at once, as far as one prompt has fewer.
SAVED = "attention"  # What a remat policy may keep, by name.


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

    def lay_out(self) -> "KVCache":
        """Prompts and heads laid out over the mesh in use."""
        axes = ("layers",) * (self.k.ndim - 5) + ("prompts", "kv_heads")
        arrays = self.replace(positions=None)
        return jax.tree.map(lambda x: constrain(x, *axes), arrays).replace(
            positions=constrain(self.positions, "prompts")
        )

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
    ).lay_out()


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


def dequantize(cache: KVCache, dtype: jnp.dtype) -> KVCache:
    """A cache in the dtype that is computed in."""
    if cache.k_scale is None:
        return cache.replace(k=cache.k.astype(dtype), v=cache.v.astype(dtype))
    pairs = ((cache.k, cache.k_scale), (cache.v, cache.v_scale))
    k, v = ((values * scale[..., None]).astype(dtype) for values, scale in pairs)
    return cache.replace(k=k, v=v, k_scale=None, v_scale=None)


def quantize_cache(cache: KVCache, dtype: str) -> KVCache:
    """A cache of the model's compute dtype in another dtype."""
    (k, k_scale), (v, v_scale) = quantize(cache.k, jnp.dtype(dtype)), quantize(cache.v, jnp.dtype(dtype))
    return cache.replace(k=k, v=v, k_scale=k_scale, v_scale=v_scale)


def attend(q: jax.Array, positions: jax.Array, segments: Sequence[KVCache], window: int | None) -> jax.Array:
    """Grouped-query softmax attention of every query over all slots of all segments that it may see.

    The softmax is taken over the segments together: each contributes exp(score - max) V and its sum, and one division
    at the end normalises. Scores exist for a few prompts at a time, in the forward pass and again in the backward
    pass, which keeps the output and one number a query (Dao et al. 2022, arXiv 2205.14135, by prompts, not by tiles).

    Args:
        q: [P, K, T, H, d] queries, rotated.
        positions: [P, K, T] int32, -1 for padding.
        segments: Caches of one layer, each [P, G, 1 or K, S, d].
        window: Number of last positions that a query sees, itself included; None for all.

    Returns:
        [P, K, T, H, d] in q's dtype. Rows of padding queries hold arbitrary finite numbers.
    """
    return _attend(window, q, positions, tuple(dequantize(segment, q.dtype) for segment in segments))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q, positions, segments):
    return _attend_forward(window, q, positions, segments)[0]


def _attend_forward(window, q, positions, segments):
    output, log_total = _map_blocks(functools.partial(_block_forward, window), (q, positions, segments))
    output, log_total = checkpoint_name(output, SAVED), checkpoint_name(log_total, SAVED)
    return output, (q, positions, segments, output, log_total)


def _attend_backward(window, saved, gradient):
    # The barrier: or else XLA finds that the forward pass computed the same scores, and keeps them for this.
    saved, gradient = jax.lax.optimization_barrier((saved, gradient))
    d_q, d_segments = _map_blocks(functools.partial(_block_backward, window), (*saved, gradient))
    return d_q, None, tuple(KVCache(k=d_k, v=d_v, positions=None) for d_k, d_v in d_segments)


_attend.defvjp(_attend_forward, _attend_backward)


def _map_blocks(function, arrays):
    """`function` of the arrays, all with a leading P, for a few prompts at a time.

    A block takes every n-th prompt, and as many from each device that P is laid over, where they stay.
    """
    q, _, segments, *_ = arrays
    num_prompts, group_size, length, num_heads, _ = q.shape
    num_scores = group_size * length * num_heads * sum(segment.num_slots for segment in segments)
    most, shards = max(BLOCK_SCORES // num_scores, 1), num_shards("prompts", num_prompts)
    of_shard = num_prompts // shards
    block = shards * max(b for b in range(1, of_shard + 1) if of_shard % b == 0 and b <= most)
    if block == num_prompts:
        return function(arrays)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(block, -1, *x.shape[1:]), 0, 1), arrays)
    results = jax.lax.map(function, split)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(num_prompts, *x.shape[2:]), results)


def _block_forward(window, arrays):
    """The output, and log sum exp(score) of every query [P, G, K, R, T, 1]."""
    q, positions, segments = arrays
    queries = _by_kv_head(q, segments) * q.shape[-1] ** -0.5
    scores = [_scores(queries, positions, segment, window) for segment in segments]
    top = functools.reduce(jnp.maximum, [jnp.max(s, -1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - top) for s in scores]
    total = sum(jnp.sum(w, -1, keepdims=True) for w in weights)
    mixed = sum(_mix(w, segment.v) for w, segment in zip(weights, segments, strict=True)) / total
    return _by_token(mixed.astype(q.dtype)), top + jnp.log(total)


def _block_backward(window, arrays):
    """Gradients of q, and of each segment's keys and values."""
    q, positions, segments, output, log_total, gradient = arrays
    scale = q.shape[-1] ** -0.5
    queries, d_mixed = _by_kv_head(q, segments) * scale, _by_kv_head(gradient, segments)
    # sum_s w_s dw_s, which the derivative of a softmax takes off every dw_s.
    mean = jnp.sum(_by_kv_head(output, segments) * d_mixed, -1, keepdims=True, dtype=jnp.float32)
    d_queries, d_segments = 0, []
    for segment in segments:
        weights = jnp.exp(_scores(queries, positions, segment, window) - log_total)
        d_scores = weights * (_products(d_mixed, segment.v) - mean)
        d_queries += _mix(d_scores, segment.k)
        d_segments.append((_mix_rows(d_scores, queries, segment.k), _mix_rows(weights, d_mixed, segment.v)))
    return _by_token((scale * d_queries).astype(q.dtype)), d_segments


def _by_kv_head(x: jax.Array, segments: Sequence[KVCache]) -> jax.Array:
    """[P, K, T, H, d] -> [P, G, K, R, T, d], R = H / G query heads for each key head."""
    num_kv_heads = segments[0].k.shape[1]
    return jnp.transpose(x.reshape(*x.shape[:3], num_kv_heads, -1, x.shape[-1]), (0, 3, 1, 4, 2, 5))


def _by_token(x: jax.Array) -> jax.Array:
    """[P, G, K, R, T, d] -> [P, K, T, H, d]."""
    x = jnp.transpose(x, (0, 2, 4, 1, 3, 5))
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _scores(q: jax.Array, positions: jax.Array, segment: KVCache, window: int | None) -> jax.Array:
    """Masked scores [P, G, K, R, T, S] float32 of the queries [P, G, K, R, T, d]."""
    distance = positions[..., :, None] - segment.positions[..., None, :]
    visible = (segment.positions[..., None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    return _products(q, segment.k) + jnp.where(visible, 0.0, MASKED)[:, None, :, None]


def _products(x: jax.Array, cache: jax.Array) -> jax.Array:
    """Products of the rows [P, G, K, R, T, d] with each slot -> [P, G, K, R, T, S] float32."""
    products = jnp.einsum("pgbqd,pgbsd->pgbqs", _rows(x, cache), cache, preferred_element_type=jnp.float32)
    return products.reshape(*x.shape[:-1], cache.shape[-2])


def _mix(weights: jax.Array, cache: jax.Array) -> jax.Array:
    """Slots weighted by [P, G, K, R, T, S] -> [P, G, K, R, T, d] float32."""
    weights_of_rows = _rows(weights, cache).astype(cache.dtype)
    mixed = jnp.einsum("pgbqs,pgbsd->pgbqd", weights_of_rows, cache, preferred_element_type=jnp.float32)
    return mixed.reshape(*weights.shape[:-1], cache.shape[-1])


def _mix_rows(weights: jax.Array, x: jax.Array, cache: jax.Array) -> jax.Array:
    """The rows x [P, G, K, R, T, d] weighted by [P, G, K, R, T, S], summed for each slot, as the cache."""
    return jnp.einsum("pgbqs,pgbqd->pgbsd", _rows(weights, cache).astype(x.dtype), _rows(x, cache)).astype(cache.dtype)


def _rows(x: jax.Array, cache: jax.Array) -> jax.Array:
    """[P, G, K, R, T, n] -> [P, G, b, K R T / b, n]: the rows that meet one copy of keys, b = 1 or K of them."""
    return x.reshape(*x.shape[:2], cache.shape[2], -1, x.shape[-1])
