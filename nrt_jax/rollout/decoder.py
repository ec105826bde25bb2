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

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.models import KVCache, Model, ModelConfig, Params, rope
from nrt_jax.models.attention import MASKED, quantize
from nrt_jax.parallel import constrain, num_shards
from nrt_jax.rollout.draw import BLOCK

_INPUTS, _NUM_INPUTS = {"o": "heads", "down": "mlp"}, {"o": 2}  # Others have one axis of inputs, D.


@flax.struct.dataclass(kw_only=True)
class Weights:
    """The policy's params as decoding wants them.

    Attributes:
        embedding: [V, D], as in params.
        layers: For each layer the two norms [D] and, by the names of `_fused`, matrices [outputs, inputs] in the
            compute dtype. Their adapters stand beside them: `_a` [r, inputs] of all parts stacked, and `_b`
            [outputs, r], scaled and block-diagonal, so that each part meets its own.
        final_norm: [D] float32.
        head: [V', D], zero rows up to a multiple of `BLOCK` on each device.
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


@dataclasses.dataclass(frozen=True)
class _Fused:
    """Matrices of a layer that are one.

    Where a mesh splits the outputs, each device has its own part of every matrix, and the parts interleave:

        one device     [q0 q1 q2 q3 k0 k1 v0 v1]
        two devices    [q0 q1 k0 v0] [q2 q3 k1 v1]

    Attributes:
        parts: Their names.
        outputs: Logical axis of the outputs; None where they lie whole on each device.
        blocks: Devices that the outputs are split over.
    """

    parts: tuple[str, ...]
    outputs: str | None = None
    blocks: int = 1

    def stack(self, matrices: Sequence[jax.Array]) -> jax.Array:
        """[L, outputs, inputs] of all parts."""
        if self.blocks == 1:
            return jnp.concatenate(matrices, axis=1)
        split = [m.reshape(m.shape[0], self.blocks, -1, m.shape[2]) for m in matrices]
        return jnp.concatenate(split, axis=2).reshape(matrices[0].shape[0], -1, matrices[0].shape[2])

    def split(self, x: jax.Array, sizes: Sequence[int], axis: int) -> list[jax.Array]:
        """The parts of the outputs, which are so many along `axis`."""
        ends = list(itertools.accumulate(size // self.blocks for size in sizes[:-1]))
        if self.blocks == 1:
            return jnp.split(x, ends, axis)
        parts = jnp.split(x.reshape(*x.shape[:axis], self.blocks, -1, *x.shape[axis + 1 :]), ends, axis + 1)
        return [part.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]) for part in parts]


def _fused(model: Model) -> dict[str, _Fused]:
    """Which matrices of a layer are one, on the mesh in use: with too few heads for it, k and v are apart from q."""
    c = model.config
    heads, mlp = num_shards("heads", c.num_heads), num_shards("mlp", c.intermediate_size)
    if num_shards("kv_heads", c.num_kv_heads) == heads:
        attention = {"qkv": _Fused(("q", "k", "v"), "heads", heads)}
    else:
        attention = {"q": _Fused(("q",), "heads", heads), "kv": _Fused(("k", "v"))}
    return attention | {"o": _Fused(("o",)), "gate_up": _Fused(("gate", "up"), "mlp", mlp), "down": _Fused(("down",))}


def prepare(model: Model, params: Params) -> Weights:
    """Lays the params out for decoding; a copy of the matrices, made once a rollout."""
    dtype, layers = model.config.dtype, {name: params["layers"][name] for name in ("attention_norm", "mlp_norm")}
    for name, fused in _fused(model).items():
        for suffix, x in _fuse(model, fused, params["layers"], params.get("lora", {})).items():
            outputs = None if suffix == "_a" else fused.outputs
            inputs = None if suffix == "_b" else _INPUTS.get(name)
            layers[name + suffix] = constrain(x.astype(dtype), None, outputs, inputs)
    head = model.head(params).astype(dtype)
    shards = num_shards("vocab", 0)
    return Weights(
        embedding=params["embedding"],
        layers=tuple({name: x[i] for name, x in layers.items()} for i in range(model.config.num_layers)),
        final_norm=params["final_norm"],
        head=constrain(jnp.pad(head, ((0, -head.shape[0] % (BLOCK * shards)), (0, 0))), "vocab"),
    )


def _fuse(model: Model, fused: _Fused, stacked: Params, lora: Params) -> dict[str, jax.Array]:
    """One of `_fused` and, where there are any, its adapters `_a` and `_b`."""
    num_inputs = _NUM_INPUTS.get(fused.parts[0], 1)
    matrices = {part: _matrix(stacked[part], num_inputs) for part in fused.parts}
    found, adapted = {"": fused.stack(list(matrices.values()))}, [part for part in fused.parts if part in lora]
    if adapted:
        found["_a"] = jnp.concatenate([_matrix(lora[part]["a"], num_inputs) for part in adapted], 1)
        columns = []
        for part in adapted:
            b = _matrix(model.lora.scale * lora[part]["b"])
            others = {name: jnp.zeros((*m.shape[:2], b.shape[2]), b.dtype) for name, m in matrices.items()}
            columns.append(fused.stack(list((others | {part: b}).values())))
        found["_b"] = jnp.concatenate(columns, axis=2)
    return found


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
    segment = Segment(k=k, v=jnp.swapaxes(k, -1, -2), k_scale=scale, v_scale=scale)
    return (jax.tree.map(lambda x: constrain(x, None, "kv_heads"), segment),) * num_layers


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

    written, fused = [], _fused(model)
    for layer, shared, own in zip(weights.layers, prompts.layers, layers, strict=True):
        h = _rms_norm(x, layer["attention_norm"], c.norm_eps)
        q, k, v = (x for name in ("qkv", "q", "kv") if name in fused for x in _heads(c, fused[name], layer, name, h))
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        written.append(_write(own, k, v, slot))
        q = (q * c.head_dim**-0.5).reshape(len(token), c.num_kv_heads, -1, c.head_dim)
        of_prompt = _attend_prompts(q, prompts, shared, prompt_bias)
        mixed = _join(of_prompt, _partial_attention(q, written[-1], bias)).astype(q.dtype)
        x = x + _linear(layer, "o", mixed.reshape(len(token), -1).T)
        gate_up = _linear(layer, "gate_up", _rms_norm(x, layer["mlp_norm"], c.norm_eps))
        gate, up = fused["gate_up"].split(gate_up, [c.intermediate_size] * 2, axis=0)
        x = x + _linear(layer, "down", jax.nn.silu(gate) * up)
    return _rms_norm(x, weights.final_norm, c.norm_eps), tuple(written)


def _heads(config: ModelConfig, fused: _Fused, layer: dict, name: str, x: jax.Array) -> list[jax.Array]:
    """The parts [N, heads, d] of the products of `_fused` that make queries, keys or values."""
    # The barrier: or else XLA has the product write its transpose, at four times the product's time.
    heads = jax.lax.optimization_barrier(_linear(layer, name, x)).T
    heads = jax.lax.optimization_barrier(heads).reshape(heads.shape[0], -1, config.head_dim)
    return fused.split(
        heads, [config.num_heads if part == "q" else config.num_kv_heads for part in fused.parts], axis=1
    )


def _linear(layer: dict, name: str, x: jax.Array) -> jax.Array:
    """The stacked outputs [outputs, N] of one of `_fused`."""
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
