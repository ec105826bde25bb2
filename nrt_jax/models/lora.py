"""Low-rank adapters: W' = W + (alpha / r) A B with W frozen (Hu et al. 2021, arXiv 2106.09685).

A training run then has two pytrees: the trainable one, small, with its optimizer state, and the frozen base. `combine`
joins them to the params that every other function takes:

    trainable  lora   {q: {a: [L, D, r], b: [L, r, H, d]}, ...}    beside the matrices, never added to them in training
               rows   {embedding: [n, D], head: [n, D]}            instead of the rows of n added tokens

The rows are there because an added delimiter starts as a copy of EOS: frozen, the two would stay equally likely.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters.

    Attributes:
        rank: r, the width of an adapter; 0 trains all parameters instead.
        alpha: An adapter's output is scaled by alpha / r.
        targets: Which matrices of a layer get one.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank


@flax.struct.dataclass(kw_only=True)
class Frozen:
    """What a run with adapters does not train.

    Attributes:
        params: The base model's params.
        row_ids: [n] int32, ids of the added tokens, whose rows are trained.
    """

    params: dict[str, Any]
    row_ids: jax.Array


def split(model, params: dict[str, Any], row_ids: list[int], rng: jax.Array) -> tuple[dict[str, Any], Frozen]:
    """The trainable and the frozen pytree of a run that starts as its base model: every B is zero.

    Args:
        model: With a LoRA config.
        params: Of the base model.
        row_ids: Ids of added tokens.
        rng: For A.
    """
    rows = {name: params[name][jnp.array(row_ids)].astype(jnp.float32) for name in _tables(params) if row_ids}
    return {"lora": model.init_lora(rng), "rows": rows}, Frozen(params=params, row_ids=jnp.array(row_ids, jnp.int32))


def combine(trainable: dict[str, Any], frozen: Frozen | None) -> dict[str, Any]:
    """The params of the policy; the trainable ones themselves where nothing is frozen."""
    if frozen is None:
        return trainable
    params = dict(frozen.params) | {"lora": trainable["lora"]}
    for name, rows in trainable["rows"].items():
        params[name] = params[name].at[frozen.row_ids].set(rows.astype(params[name].dtype))
    return params


def logical_axes(model, trainable: dict[str, Any]) -> dict[str, Any]:
    """`Model.logical_axes` of what is trained, which may be all of the params."""
    axes = model.logical_axes()
    if "rows" not in trainable:
        return axes
    return {"lora": axes["lora"], "rows": {name: PartitionSpec(None, "embed") for name in trainable["rows"]}}


def frozen_axes(model) -> Frozen:
    """The logical axes of what is not trained."""
    params = {name: axes for name, axes in model.logical_axes().items() if name != "lora"}
    return Frozen(params=params, row_ids=PartitionSpec())


def merge(params: dict[str, Any], config: LoRAConfig, dtype: str | None = None) -> dict[str, Any]:
    """Adds the adapters to the matrices, in float32: params of the same policy without adapters.

    Args:
        params: Of `combine`.
        config: Their scale.
        dtype: Of the result; None for that of each matrix.
    """
    layers = dict(params["layers"])
    for name, adapter in params["lora"].items():
        layers[name] = _merge(layers[name], adapter["a"], adapter["b"], config.scale, dtype or layers[name].dtype)
    merged = {key: value for key, value in params.items() if key != "lora"} | {"layers": layers}
    return jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), merged)


def _tables(params: dict[str, Any]) -> list[str]:
    return [name for name in ("embedding", "head") if name in params]


@functools.partial(jax.jit, static_argnames="dtype")
def _merge(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: Any) -> jax.Array:
    """One stacked matrix [L, inputs.., outputs..] plus its adapter, layer by layer, in float32."""

    def layer(parts):
        w, a, b = parts
        width = math.prod(a.shape[:-1])
        delta = a.reshape(width, -1) @ b.reshape(b.shape[0], -1)
        return (w.astype(jnp.float32) + scale * delta.reshape(w.shape)).astype(dtype)

    return jax.lax.map(layer, (weight, a, b))
