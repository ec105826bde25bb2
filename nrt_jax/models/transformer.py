"""The Llama/Mistral decoder in Flax NNX: pre-norm blocks of grouped-query attention and SwiGLU, stacked and scanned.

Touvron et al. 2023 (arXiv 2302.13971) for the block, Jiang et al. 2023 (arXiv 2310.06825) for the sliding window.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from nrt_jax.models import backends, rope
from nrt_jax.models.attention import SAVED, KVCache
from nrt_jax.models.backends import Backend
from nrt_jax.models.config import ModelConfig
from nrt_jax.models.lora import LoRAConfig
from nrt_jax.parallel import constrain, split_vocab

# Logical axis names travel with each parameter; parallel/ maps them to mesh axes. Parameters are placed by jit's
# out_shardings, so NNX must not try to place them when they are created.
_Param = functools.partial(nnx.Param, eager_sharding=False)

#: What each layer keeps for the backward pass, beside its input, which computes the rest again.
Remat = Literal["none", "dots", "full"]
_POLICIES = jax.checkpoint_policies
REMAT = {
    # The outputs of the matrix products and of attention: norms, rotations and SwiGLU are cheap.
    "dots": _POLICIES.save_from_both_policies(
        _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(SAVED)
    ),
    "full": _POLICIES.nothing_saveable,
}


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, axes: tuple[str, ...]) -> nnx.Param:
    return _Param(std * jax.random.normal(rngs.params(), shape), out_sharding=axes)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    normalised = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (scale * normalised).astype(x.dtype)


def _project(x: jax.Array, weight: jax.Array, num_inputs: int = 1) -> jax.Array:
    """Contracts the last `num_inputs` axes of x with the first ones of the weight, in x's dtype.

    As one product of two matrices: with all of [P, K, T] as separate axes, the weight's gradient contracts over three
    axes, which on CPU costs a transposition larger than the product itself (2.4 times the time of this form).
    """
    batch, outputs = x.shape[: x.ndim - num_inputs], weight.shape[num_inputs:]
    width = math.prod(weight.shape[:num_inputs])
    flat = x.reshape(-1, width) @ weight.astype(x.dtype).reshape(width, -1)
    return flat.reshape(*batch, *outputs)


def _by_head(x: jax.Array) -> jax.Array:
    """[P, K, T, G, d] -> the cache's [P, G, K, T, d]."""
    return jnp.transpose(x, (0, 3, 1, 2, 4))


class LowRank(nnx.Module):
    """A low-rank adapter of one matrix: A as PEFT initialises it, uniform in +-1/sqrt(inputs), and B zero."""

    def __init__(self, inputs: dict[str, int], outputs: dict[str, int], rank: int, rngs: nnx.Rngs):
        bound = math.prod(inputs.values()) ** -0.5
        a = jax.random.uniform(rngs.params(), (*inputs.values(), rank), minval=-bound, maxval=bound)
        self.a = _Param(a, out_sharding=(*inputs, "lora"))
        self.b = _Param(jnp.zeros((rank, *outputs.values())), out_sharding=("lora", *outputs))


class LowRankLayer(nnx.Module):
    """The adapters of one layer, by the name of their matrix."""

    def __init__(self, config: ModelConfig, lora: LoRAConfig, rngs: nnx.Rngs):
        embed, mlp = {"embed": config.hidden_size}, {"mlp": config.intermediate_size}
        heads = {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        matrices = {
            "q": (embed, heads),
            "k": (embed, kv_heads),
            "v": (embed, kv_heads),
            "o": (heads, embed),
            "gate": (embed, mlp),
            "up": (embed, mlp),
            "down": (mlp, embed),
        }
        for name in lora.targets:
            setattr(self, name, LowRank(*matrices[name], lora.rank, rngs))


class Block(nnx.Module):
    """One decoder layer: x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        c, depth = config, math.sqrt(2 * config.num_layers)  # Residual branches add up to unit variance.
        d_model, d_ff, d_head = c.hidden_size, c.intermediate_size, c.head_dim
        fan_in, fan_heads = d_model**-0.5, (c.num_heads * d_head) ** -0.5
        self.attention_norm = _Param(jnp.ones(d_model), out_sharding=("embed",))
        self.q = _normal(rngs, (d_model, c.num_heads, d_head), fan_in, ("embed", "heads", "head_dim"))
        self.k = _normal(rngs, (d_model, c.num_kv_heads, d_head), fan_in, ("embed", "kv_heads", "head_dim"))
        self.v = _normal(rngs, (d_model, c.num_kv_heads, d_head), fan_in, ("embed", "kv_heads", "head_dim"))
        self.o = _normal(rngs, (c.num_heads, d_head, d_model), fan_heads / depth, ("heads", "head_dim", "embed"))
        self.mlp_norm = _Param(jnp.ones(d_model), out_sharding=("embed",))
        self.gate = _normal(rngs, (d_model, d_ff), fan_in, ("embed", "mlp"))
        self.up = _normal(rngs, (d_model, d_ff), fan_in, ("embed", "mlp"))
        self.down = _normal(rngs, (d_ff, d_model), d_ff**-0.5 / depth, ("mlp", "embed"))

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        rotation: tuple[jax.Array, jax.Array],
        context: Sequence[KVCache],
        adapters: Mapping[str, Mapping[str, jax.Array]],
        backend: Backend = "auto",
    ) -> tuple[jax.Array, KVCache]:
        """x [P, K, T, D] -> (x, this layer's keys and values of these tokens)."""
        c = self.config

        def project(name, x, num_inputs=1):
            y = _project(x, getattr(self, name)[...], num_inputs)
            if name in adapters:
                y += _project(_project(x, adapters[name]["a"], num_inputs), adapters[name]["b"])
            return y

        h = rms_norm(x, self.attention_norm[...], c.norm_eps)
        q = constrain(rope.rotate(project("q", h), *rotation), "prompts", None, None, "heads")
        k = rope.rotate(project("k", h), *rotation)
        v = project("v", h)
        own = KVCache(k=_by_head(k), v=_by_head(v), positions=positions).lay_out()
        mixed = backends.attend(q, positions, (*context, own), c.sliding_window, backend)
        x = constrain(x + project("o", mixed, num_inputs=2), "prompts")
        h = rms_norm(x, self.mlp_norm[...], c.norm_eps)
        h = constrain(jax.nn.silu(project("gate", h)) * project("up", h), "prompts", None, None, "mlp")
        return constrain(x + project("down", h), "prompts", "traces"), own


class Transformer(nnx.Module):
    """Token ids to final hidden states; the head is applied by whoever knows which positions need it."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, lora: LoRAConfig | None = None):
        self.config, self.lora_config = config, lora

        def stack(layer):
            make = nnx.vmap(layer, transform_metadata={nnx.PARTITION_NAME: "layers"})
            return nnx.split_rngs(splits=config.num_layers)(make)(rngs)

        shape, axes, std = (
            (config.vocab_size, config.hidden_size),
            ("vocab", "embed"),
            config.hidden_size**-0.5,
        )
        self.embedding = _normal(rngs, shape, std, axes)
        self.layers = stack(lambda rngs: Block(config, rngs))
        self.final_norm = _Param(jnp.ones(config.hidden_size), out_sharding=("embed",))
        if not config.tie_embeddings:
            self.head = _normal(rngs, shape, std, axes)
        if lora:
            self.lora = stack(lambda rngs: LowRankLayer(config, lora, rngs))

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        context: Sequence[KVCache] = (),
        *,
        remat: Remat = "none",
        backend: Backend = "auto",
    ) -> tuple[jax.Array, KVCache]:
        """See `Model.apply`."""
        x = constrain(split_vocab(self.embedding[...])[tokens].astype(self.config.dtype), "prompts", "traces")
        cos, sin = rope.rotation(self.config.rope, self.config.head_dim, positions)
        rotation = (cos[..., None, :], sin[..., None, :])  # The same for every head.
        block, stacked = nnx.split(self.layers)
        adapters = nnx.to_pure_dict(nnx.state(self.lora)) if self.lora_config else {}
        # Scaled here, once, as the only place that knows by how much.
        adapters = {name: {"a": w["a"], "b": self.lora_config.scale * w["b"]} for name, w in adapters.items()}

        def layer(x, layer_inputs):
            params, kv, adapters = layer_inputs
            caches = [cache.replace(positions=c.positions) for cache, c in zip(kv, context, strict=True)]
            x, own = nnx.merge(block, params)(x, positions, rotation, caches, adapters, backend)
            return x, (own.k, own.v)

        if remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[remat])
        inputs = (stacked, [c.replace(positions=None) for c in context], adapters)
        x, (k, v) = jax.lax.scan(layer, x, inputs)
        x = rms_norm(x, self.final_norm[...], self.config.norm_eps)
        return x, KVCache(k=k, v=v, positions=positions)
