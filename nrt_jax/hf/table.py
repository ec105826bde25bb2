"""The one table between checkpoints of Hugging Face and our params, read in both directions.

A line of `TENSORS` says where a tensor lives in our pytree, its name in a checkpoint, and both layouts as
letters: D model, H query heads, G key/value heads, d head, F feed-forward, V vocabulary. `ours="D H d"` with
`theirs="(H d) D"` reads: theirs has H * d rows and D columns; split the rows, then permute to D, H, d. Layers
are separate tensors there and axis 0 here.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nrt_jax.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One line of the table.

    Attributes:
        path: Keys in the params pytree.
        name: Name in the checkpoint; `{layer}` marks a tensor that each layer has.
        ours: Letters of our axes, without the layer axis.
        theirs: Letters of the checkpoint's axes, in its order; parentheses join letters to one axis.
    """

    path: tuple[str, ...]
    name: str
    ours: str
    theirs: str

    @property
    def per_layer(self) -> bool:
        """Whether each layer has one of these."""
        return "{layer}" in self.name

    def axes(self) -> list[list[str]]:
        """The letters of each axis in the checkpoint."""
        return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", self.theirs)]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the tensor in the checkpoint."""
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self.axes())

    def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of our leaf, with the layer axis if there is one."""
        shape = tuple(sizes[letter] for letter in self.ours.split())
        return (sizes["L"], *shape) if self.per_layer else shape

    def to_ours(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A checkpoint's tensor as a view in our layout."""
        letters = [letter for axis in self.axes() for letter in axis]
        order = [letters.index(letter) for letter in self.ours.split()]
        return array.reshape([sizes[letter] for letter in letters]).transpose(order)

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `to_ours`."""
        letters = self.ours.split()
        order = [letters.index(letter) for axis in self.axes() for letter in axis]
        return array.transpose(order).reshape(self.shape(sizes))


_LAYER = "model.layers.{layer}."
TENSORS = (
    TensorSpec(("embedding",), "model.embed_tokens.weight", "V D", "V D"),
    TensorSpec(("layers", "attention_norm"), _LAYER + "input_layernorm.weight", "D", "D"),
    TensorSpec(("layers", "q"), _LAYER + "self_attn.q_proj.weight", "D H d", "(H d) D"),
    TensorSpec(("layers", "k"), _LAYER + "self_attn.k_proj.weight", "D G d", "(G d) D"),
    TensorSpec(("layers", "v"), _LAYER + "self_attn.v_proj.weight", "D G d", "(G d) D"),
    TensorSpec(("layers", "o"), _LAYER + "self_attn.o_proj.weight", "H d D", "D (H d)"),
    TensorSpec(("layers", "mlp_norm"), _LAYER + "post_attention_layernorm.weight", "D", "D"),
    TensorSpec(("layers", "gate"), _LAYER + "mlp.gate_proj.weight", "D F", "F D"),
    TensorSpec(("layers", "up"), _LAYER + "mlp.up_proj.weight", "D F", "F D"),
    TensorSpec(("layers", "down"), _LAYER + "mlp.down_proj.weight", "F D", "D F"),
    TensorSpec(("final_norm",), "model.norm.weight", "D", "D"),
    TensorSpec(("head",), "lm_head.weight", "V D", "V D"),
)


def get_leaf(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at `path`."""
    return functools.reduce(lambda tree, key: tree[key], path, params)


def set_leaf(params: dict[str, Any], path: tuple[str, ...], leaf: Any) -> None:
    """Puts a leaf at `path`, making the dicts on the way."""
    for key in path[:-1]:
        params = params.setdefault(key, {})
    params[path[-1]] = leaf


def tensors_of(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The lines of the table that a model has: a tied head is the embedding."""
    return tuple(spec for spec in TENSORS if not (config.tie_embeddings and spec.path == ("head",)))


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """What the letters of the table stand for."""
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "H": config.num_heads,
        "G": config.num_kv_heads,
        "d": config.head_dim,
        "L": config.num_layers,
    }


def parts_of(spec: TensorSpec, sizes: Mapping[str, int]) -> Iterator[tuple[str, Any]]:
    """A line's tensors, one by one: the name in the checkpoint, and the index of our leaf where it lies."""
    if not spec.per_layer:
        yield spec.name, ...
        return
    for layer in range(sizes["L"]):
        yield spec.name.format(layer=layer), layer
