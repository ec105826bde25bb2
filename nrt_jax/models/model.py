"""A model as the rest of the framework sees it: a hashable description with pure functions of a params pytree."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from nrt_jax.models.attention import KVCache
from nrt_jax.models.backends import Backend
from nrt_jax.models.config import ModelConfig
from nrt_jax.models.lora import LoRAConfig
from nrt_jax.models.transformer import Remat, Transformer
from nrt_jax.parallel import split_vocab

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """The static half of a model: pass it to jit as a static argument, and params as a pytree.

    Attributes:
        config: The hyperparameters. Two models with equal configs are equal.
        lora: Low-rank adapters beside its matrices; its params then have an entry `lora`.
        attention: Who computes attention over many tokens; see `backends.attend`. `auto` goes by the device.
    """

    config: ModelConfig
    lora: LoRAConfig | None = None
    attention: Backend = "auto"

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: Transformer(self.config, nnx.Rngs(0), self.lora)))

    def init(self, rng: jax.Array) -> Params:
        """Random float32 parameters; rng is a `jax.random.key`."""
        return _init(self, rng)

    def init_lora(self, rng: jax.Array) -> Params:
        """The entry `lora` of the params, as adapters that change nothing yet."""
        return _init_lora(self, rng)

    def abstract_params(self) -> Params:
        """The params pytree with `jax.ShapeDtypeStruct` leaves."""
        return nnx.to_pure_dict(self._abstract[1])

    def logical_axes(self) -> Params:
        """The params pytree with a `PartitionSpec` of logical axis names for each leaf."""
        return nnx.to_pure_dict(nnx.get_partition_spec(self._abstract[1]))

    def compute_params(self, params: Params) -> Params:
        """The params as every forward pass takes them: matrices in the compute dtype, to which they are rounded there.

        Norms and adapters, which are scaled before they are rounded, stay as they are.
        """
        return params if self.config.dtype == "float32" else _compute_params(self, params)

    def apply(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        context: Sequence[KVCache] = (),
        *,
        remat: Remat = "none",
    ) -> tuple[jax.Array, KVCache]:
        """Runs the decoder on tokens that see `context` and, causally, each other.

        Args:
            params: The pytree that `init` gives.
            tokens: [P, K, T] int token ids.
            positions: [P, K, T] int32 positions in the sequence, -1 for padding.
            context: Caches of earlier tokens, each with K = 1 (shared by the group) or K.
            remat: What a layer keeps for the backward pass, beside its input of D numbers a token. `none`: every
                activation. `dots`: the outputs of its matrix products and of attention, D + 2 (H + G) d + 2 F numbers;
                norms, rotations and SwiGLU are computed again. `full`: nothing, for a second forward pass.

        Returns:
            hidden [P, K, T, D] after the final norm, in the compute dtype, and the cache of these tokens.
        """
        module = nnx.merge(self._abstract[0], params)
        return module(tokens, positions, context, remat=remat, backend=self.attention)

    def head(self, params: Params) -> jax.Array:
        """The output matrix [V, D] as it is in params: logits = hidden @ head.T, to be cast to the dtype of hidden."""
        return split_vocab(params["embedding" if self.config.tie_embeddings else "head"])

    def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Plain causal forward, tokens [B, T] -> logits [B, T, V] float32. For tests and small inputs."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden, _ = self.apply(params, tokens[:, None], positions[:, None])
        head = self.head(params).astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden[:, 0], head, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _init(model: Model, rng: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Transformer(model.config, nnx.Rngs(params=rng), model.lora)))


@functools.partial(jax.jit, static_argnums=0)
def _compute_params(model: Model, params: Params) -> Params:
    def cast(path, x):
        names = [entry.key for entry in path]
        return x if names[0] == "lora" or names[-1].endswith("norm") else x.astype(model.config.dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


@functools.partial(jax.jit, static_argnums=0)
def _init_lora(model: Model, rng: jax.Array) -> Params:
    return _init(model, rng)["lora"]  # XLA drops the rest, which is never computed
