"""One token of every row at a time: the blocks of `models.transformer`, laid out for decoding.

N rows are flat, and activations are [features, N]: on CPU a product [out, in] @ [in, N] with a few rows is up to 1.8
times as fast as its transpose, and everything that follows vectorises over rows. The weights are laid out for that once
a rollout; q, k and v, and gate and up, are one matrix each. Layers are unrolled: a loop over stacked layers would copy
each layer's weights and caches at every token.

Prompts and their rows are two arrays of different length, joined by an index. Only attention to the prompts' caches
needs rows of one prompt together:

    rows       r0 r1 r2 r3 r4             N = 5, each with a cache [G, S, d] of its own, filled from its `first` slot
    grid       [[r0 r1 r2]                [P, K] indices of rows; a free cell repeats some row, and nobody reads it
                [r3 r4 r0]]
    cell       0  1  2  3  4              [N], where each row stands in the grid
"""

import itertools
import math
import operator
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.models import KVCache, Model, Params, rope
from nrt_jax.models.attention import MASKED, quantize
from nrt_jax.rollout.draw import BLOCK

FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
_NUM_INPUTS = {"o": 2}  # Input axes, [H, d]; all others have one.


@flax.struct.dataclass(kw_only=True)
class Weights:
    """The policy's params as decoding wants them.

    Attributes:
        embedding: [V, D], as in params.
        layers: For each layer the two norms [D] and, by `FUSED`'s names, matrices [outputs, inputs] in the compute
            dtype. Their adapters stand beside them: `_a` [r, inputs] of all parts stacked, and `_b` [outputs, r],
            scaled and block-diagonal, so that each part meets its own.
        final_norm: [D] float32.
        head: [V, D], zero rows up to a multiple of `BLOCK`.
    """

    embedding: jax.Array
    layers: tuple[dict, ...]
    final_norm: jax.Array
    head: jax.Array


@flax.struct.dataclass(kw_only=True)
class Segment:
    """One layer's keys and values of S slots for each of B prompts or rows.

    Attributes:
        k: [B, G, d, S].
        v: [B, G, S, d].
        k_scale: [B, G, S] float32 where k is int8 (`attention.quantize`), else None.
        v_scale: Of v, likewise.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    def map_slots(self, fn: Callable[..., jax.Array], *others: "Segment") -> "Segment":
        """Applies fn(array, its axis of slots, arrays of the others..) to every array."""
        scale_axis = None if self.k_scale is None else 2
        axes = Segment(k=3, v=2, k_scale=scale_axis, v_scale=scale_axis)
        return jax.tree.map(fn, self, axes, *others)


@flax.struct.dataclass(kw_only=True)
class PromptCache:
    """The prompts' caches and which rows read them.

    Attributes:
        layers: For each layer the P prompts' keys and values.
        positions: [P, X] int32, -1 for an empty slot.
        grid: [P, K] int32, the rows of each prompt.
        cell: [N] int32, each row's index in the flattened grid.
    """

    layers: tuple[Segment, ...]
    positions: jax.Array
    grid: jax.Array
    cell: jax.Array


def prepare(model: Model, params: Params) -> Weights:
    """Lays the params out for decoding; a copy of the matrices, made once a rollout."""
    stacked, lora = params["layers"], params.get("lora", {})
    fused = {name: stacked[name] for name in ("attention_norm", "mlp_norm")}
    for name, parts in FUSED.items():
        matrices = [_matrix(stacked[part], _NUM_INPUTS.get(part, 1)) for part in parts]
        fused[name] = jnp.concatenate(matrices, axis=1)
        ends = list(itertools.accumulate(m.shape[1] for m in matrices))
        adapted = [
            (lora[part], end, m.shape[1]) for part, end, m in zip(parts, ends, matrices, strict=True) if part in lora
        ]
        if adapted:
            fused[name + "_a"] = jnp.concatenate(
                [_matrix(w["a"], _NUM_INPUTS.get(parts[0], 1)) for w, _, _ in adapted], 1
            )
            rows = [((0, 0), (end - size, ends[-1] - end), (0, 0)) for _, end, size in adapted]
            outputs = [_matrix(model.lora.scale * w["b"]) for w, _, _ in adapted]
            fused[name + "_b"] = jnp.concatenate([jnp.pad(b, p) for b, p in zip(outputs, rows, strict=True)], axis=2)
    fused = {name: x if name.endswith("norm") else x.astype(model.config.dtype) for name, x in fused.items()}
    head = model.head(params).astype(model.config.dtype)
    return Weights(
        embedding=params["embedding"],
        layers=tuple({name: x[i] for name, x in fused.items()} for i in range(model.config.num_layers)),
        final_norm=params["final_norm"],
        head=jnp.pad(head, ((0, -head.shape[0] % BLOCK), (0, 0))),
    )


def _matrix(weight: jax.Array, num_inputs: int = 1) -> jax.Array:
    """[L, inputs.., outputs..] -> [L, outputs, inputs]."""
    width = math.prod(weight.shape[1 : 1 + num_inputs])
    return jnp.swapaxes(weight.reshape(weight.shape[0], width, -1), 1, 2)


def share_prompts(cache: KVCache, prompts: jax.Array, grid: jax.Array, cell: jax.Array) -> PromptCache:
    """Lays out the caches of some prompts for decoding.

    Args:
        cache: Of all prompts at hand, K = 1.
        prompts: [P] int32, indices of those whose rows decode.
        grid: As in `PromptCache`.
        cell: As in `PromptCache`.
    """
    arrays = (cache.k, cache.v, cache.k_scale, cache.v_scale)
    k, v, k_scale, v_scale = (None if x is None else x[:, :, :, 0][:, prompts] for x in arrays)
    stacked = Segment(k=jnp.swapaxes(k, -1, -2), v=v, k_scale=k_scale, v_scale=v_scale)
    layers = tuple(jax.tree.map(operator.itemgetter(i), stacked) for i in range(len(k)))
    return PromptCache(layers=layers, positions=cache.positions[prompts, 0], grid=grid, cell=cell)


def empty_segments(like: KVCache, num_rows: int, num_slots: int) -> tuple[Segment, ...]:
    """Each layer's empty cache of `num_rows` rows, of the dtype and the heads of `like`."""
    num_layers, _, num_kv_heads, _, _, head_dim = like.k.shape
    k = jnp.zeros((num_rows, num_kv_heads, head_dim, num_slots), like.k.dtype)
    scale = None if like.k_scale is None else jnp.zeros((num_rows, num_kv_heads, num_slots))
    return (Segment(k=k, v=jnp.swapaxes(k, -1, -2), k_scale=scale, v_scale=scale),) * num_layers


def logits(model: Model, weights: Weights, hidden: jax.Array) -> jax.Array:
    """Logits [V', N] float32 of hidden [D, N]; those of the padding from V to V' are `MASKED`."""
    values = jnp.einsum("vd,dn->vn", weights.head, hidden, preferred_element_type=jnp.float32)
    is_token = jnp.arange(values.shape[0]) < model.config.vocab_size
    return jnp.where(is_token[:, None], values, MASKED)


def feed(
    model: Model,
    weights: Weights,
    prompts: PromptCache,
    layers: tuple[Segment, ...],
    token: jax.Array,
    position: jax.Array,
    first: jax.Array,
    slot: jax.Array,
) -> tuple[jax.Array, tuple[Segment, ...]]:
    """Runs one token of every row.

    Args:
        model: The policy.
        weights: Of `prepare`.
        prompts: What the rows share.
        layers: What they do not: their earlier tokens, in the slots from `first` to below `slot`.
        token: [N] int32.
        position: [N] int32 in the sequence.
        first: [N] int32, the slot of each row's first token.
        slot: [] int32, where all rows' keys and values are written.

    Returns:
        Hidden [D, N] after the final norm, and the caches with the tokens in them.
    """
    c = model.config
    x = weights.embedding[token].astype(c.dtype).T
    # The barrier: or else XLA computes them again in every layer.
    cos, sin = jax.lax.optimization_barrier(rope.rotation(c.rope, c.head_dim, position[:, None]))
    slots = jnp.arange(layers[0].v.shape[2])
    visible = (slots >= first[:, None]) & (slots <= slot)
    distance = position[prompts.grid][..., None] - prompts.positions[:, None]
    prompt_visible = jnp.broadcast_to(prompts.positions[:, None] >= 0, distance.shape)
    if c.sliding_window is not None:
        visible &= slot - slots < c.sliding_window
        prompt_visible &= distance < c.sliding_window
    bias, prompt_bias = (jnp.where(mask, 0.0, MASKED) for mask in (visible[:, None, None], prompt_visible))

    written = []
    for layer, shared, own in zip(weights.layers, prompts.layers, layers, strict=True):
        h = _rms_norm(x, layer["attention_norm"], c.norm_eps)
        # The barrier: or else XLA has the product write its transpose, at four times the product's time.
        heads = jax.lax.optimization_barrier(_linear(layer, "qkv", h)).T
        heads = jax.lax.optimization_barrier(heads).reshape(len(token), -1, c.head_dim)
        q, k, v = jnp.split(heads, [c.num_heads, c.num_heads + c.num_kv_heads], axis=1)
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        written.append(_write(own, k, v, slot))
        q = (q * c.head_dim**-0.5).reshape(len(token), c.num_kv_heads, -1, c.head_dim)
        of_prompt = _attend_prompts(q, prompts, shared, prompt_bias)
        mixed = _join(of_prompt, _partial_attention(q, written[-1], bias)).astype(q.dtype)
        x = x + _linear(layer, "o", mixed.reshape(len(token), -1).T)
        gate, up = jnp.split(_linear(layer, "gate_up", _rms_norm(x, layer["mlp_norm"], c.norm_eps)), 2)
        x = x + _linear(layer, "down", jax.nn.silu(gate) * up)
    return _rms_norm(x, weights.final_norm, c.norm_eps), tuple(written)


def _linear(layer: dict, name: str, x: jax.Array) -> jax.Array:
    """The stacked outputs [outputs, N] of one of `FUSED`."""
    y = layer[name] @ x
    return y + layer[name + "_b"] @ (layer[name + "_a"] @ x) if name + "_a" in layer else y


def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """`transformer.rms_norm` over the first axis."""
    x32 = x.astype(jnp.float32)
    normalised = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=0, keepdims=True) + eps)
    return (scale[:, None] * normalised).astype(x.dtype)


def _write(segment: Segment, k: jax.Array, v: jax.Array, slot: jax.Array) -> Segment:
    """Writes k and v [N, G, d] to one slot of every row; in place, since nobody reads the old cache any more."""
    (k, k_scale), (v, v_scale) = quantize(k, segment.k.dtype), quantize(v, segment.v.dtype)
    new = Segment(k=k, v=v, k_scale=k_scale, v_scale=v_scale)

    def put(cache, axis, values):
        return jax.lax.dynamic_update_index_in_dim(cache, values, slot, axis)

    return segment.map_slots(put, new)


def _attend_prompts(q, prompts, segment, bias):
    """`_partial_attention` of every row to its prompt's cache."""
    num_prompts, group_size = prompts.grid.shape
    _, num_kv_heads, repeats, width = q.shape
    by_prompt = jnp.swapaxes(q[prompts.grid], 1, 2).reshape(num_prompts, num_kv_heads, group_size * repeats, width)
    bias = jnp.repeat(bias, repeats, axis=1)[:, None]

    def by_row(x):
        x = x.reshape(num_prompts, num_kv_heads, group_size, repeats, -1)
        return jnp.swapaxes(x, 1, 2).reshape(num_prompts * group_size, num_kv_heads, repeats, -1)[prompts.cell]

    return jax.tree.map(by_row, _partial_attention(by_prompt, segment, bias))


def _partial_attention(q, segment, bias):
    """Softmax attention before its division: the greatest score, the sum of weights, the weighted values.

    q [a, G, M, d], segment of a prompts or rows, bias broadcast to [a, G, M, S]; float32 results [a, G, M, 1 or d].
    """
    k, v = segment.k.astype(q.dtype), segment.v.astype(q.dtype)
    scores = jnp.einsum("agmd,agds->agms", q, k, preferred_element_type=jnp.float32)
    if segment.k_scale is not None:
        scores *= segment.k_scale[:, :, None]
    scores += bias
    top = jnp.max(scores, -1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, -1, keepdims=True)
    if segment.v_scale is not None:
        weights *= segment.v_scale[:, :, None]
    mixed = jnp.einsum("agms,agsd->agmd", weights.astype(q.dtype), v, preferred_element_type=jnp.float32)
    return top, total, mixed


def _join(a, b):
    """Attention over two segments from `_partial_attention` of each."""
    top = jnp.maximum(a[0], b[0])
    scale_a, scale_b = jnp.exp(a[0] - top), jnp.exp(b[0] - top)
    return (scale_a * a[2] + scale_b * b[2]) / (scale_a * a[1] + scale_b * b[1])
