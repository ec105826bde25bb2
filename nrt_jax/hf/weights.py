"""safetensors <-> params, by one table that is read in both directions.

A line of `TENSORS` says where a tensor lives in our pytree, its name in a checkpoint, and both layouts as
letters: D model, H query heads, G key/value heads, d head, F feed-forward, V vocabulary. `ours="D H d"` with
`theirs="(H d) D"` reads: theirs has H * d rows and D columns; split the rows, then permute to D, H, d. Layers
are separate tensors there and axis 0 here.

Names, shapes and dtypes of the whole checkpoint are checked against the config before any data is read.
Pickle never is.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from nrt_jax.errors import UserError, unknown_name
from nrt_jax.models import ModelConfig, Params

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_STORED_DTYPES = ("F32", "BF16", "F16")


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

    def _axes(self) -> list[list[str]]:
        return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", self.theirs)]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the tensor in the checkpoint."""
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self._axes())

    def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of our leaf, with the layer axis if there is one."""
        shape = tuple(sizes[letter] for letter in self.ours.split())
        return (sizes["L"], *shape) if self.per_layer else shape

    def to_ours(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A checkpoint's tensor as a view in our layout."""
        letters = [letter for axis in self._axes() for letter in axis]
        order = [letters.index(letter) for letter in self.ours.split()]
        return array.reshape([sizes[letter] for letter in letters]).transpose(order)

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `to_ours`."""
        letters = self.ours.split()
        order = [letters.index(letter) for axis in self._axes() for letter in axis]
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


def tensors_of(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """The lines of the table that a model has: a tied head is the embedding."""
    return tuple(spec for spec in TENSORS if not (config.tie_embeddings and spec.path == ("head",)))


def read_params(
    folder: str | Path,
    config: ModelConfig,
    place: Callable[[tuple[str, ...], np.ndarray], Any] = lambda path, leaf: jnp.asarray(leaf),
) -> Params:
    """Reads a folder's safetensors, single or sharded, one tensor at a time.

    Args:
        folder: Holds model.safetensors, or model.safetensors.index.json and its shards, of any of `DTYPES`.
        config: What the tensors must fit.
        place: Called with the path and the float32 array of each finished leaf; what it returns goes into the
            params. A leaf put onto its sharding here leaves the host before the next is read.

    Returns:
        The params pytree, float32.

    Raises:
        UserError: The folder has no safetensors, or a tensor is missing, unexpected or misfitting.
    """
    sizes = _sizes(config)
    with contextlib.ExitStack() as stack:
        checkpoint = _open(Path(folder), stack)
        _check(checkpoint, config, sizes)
        params: Params = {}
        for spec in tensors_of(config):
            leaf = np.empty(spec.our_shape(sizes), np.float32)
            for name, index in _parts(spec, config):
                leaf[index] = spec.to_ours(checkpoint[name].get_tensor(name), sizes)
            parent = params if len(spec.path) == 1 else params.setdefault(spec.path[0], {})
            parent[spec.path[-1]] = place(spec.path, leaf)
    return params


def write_params(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes params as model.safetensors, or as shards with an index where they exceed `max_shard_bytes`.

    Args:
        folder: An existing folder.
        config: Says which tensors there are.
        params: The pytree, of any float dtype.
        dtype: `float32`, `bfloat16` or `float16`. Rounding is to nearest even.
        max_shard_bytes: One shard is in memory at a time. A larger tensor gets a shard of its own.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    folder, sizes, weight_map, total = Path(folder), _sizes(config), {}, 0
    shards = _plan(config, sizes, np.dtype(DTYPES[dtype]).itemsize, max_shard_bytes)
    for i, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for spec, name, index in shard:
            leaf = functools.reduce(lambda tree, key: tree[key], spec.path, params)
            array = spec.to_theirs(np.asarray(leaf[index]), sizes)
            arrays[name] = np.ascontiguousarray(array.astype(DTYPES[dtype]))
        # transformers wants to be told whose layout it is; safetensors lets only the owner read.
        safetensors.numpy.save_file(arrays, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        weight_map |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _sizes(config: ModelConfig) -> dict[str, int]:
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


def _parts(spec: TensorSpec, config: ModelConfig) -> list[tuple[str, Any]]:
    """A line's tensors: the name in the checkpoint, and the index of our leaf where it lies."""
    if not spec.per_layer:
        return [(spec.name, ...)]
    return [(spec.name.format(layer=layer), layer) for layer in range(config.num_layers)]


def _plan(config: ModelConfig, sizes: Mapping[str, int], itemsize: int, limit: int) -> list[list[tuple]]:
    """Fills shards in the table's order, none above `limit` bytes unless one tensor alone is."""
    shards, used = [[]], 0
    for spec in tensors_of(config):
        num_bytes = math.prod(spec.shape(sizes)) * itemsize
        for name, index in _parts(spec, config):
            if shards[-1] and used + num_bytes > limit:
                shards.append([])
                used = 0
            shards[-1].append((spec, name, index))
            used += num_bytes
    return shards


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Maps each tensor's name to the open file that holds it. Only headers are read."""
    if (folder / SINGLE_FILE).is_file():
        file = _open_file(folder / SINGLE_FILE, stack)
        return dict.fromkeys(file.keys(), file)
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder}: found neither {SINGLE_FILE} nor {INDEX_FILE}; expected a checkpoint in safetensors "
            "(pytorch_model.bin is pickle, which is never read: convert it first)"
        )
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX_FILE}: not a safetensors index: {error!r}") from error
    files = {}
    for name in names:
        # A downloaded index must not make us open a file outside its own folder.
        if not isinstance(name, str) or not name.endswith(".safetensors") or re.search(r"[/\\:]", name):
            raise UserError(f"{folder / INDEX_FILE}: weight_map: found {name!r}; expected a file name in this folder")
        files[name] = _open_file(folder / name, stack)
    held = {name: set(file.keys()) for name, file in files.items()}
    for tensor, name in weight_map.items():
        if tensor not in held[name]:
            raise UserError(f"{folder / name}: tensor {tensor} is missing, though {INDEX_FILE} places it here")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def _open_file(path: Path, stack: contextlib.ExitStack) -> Any:
    try:
        return stack.enter_context(safetensors.safe_open(path, framework="numpy", backend="pread"))
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error


def _check(checkpoint: Mapping[str, Any], config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Compares every name, shape and dtype with the config."""
    expected = {name: spec.shape(sizes) for spec in tensors_of(config) for name, _ in _parts(spec, config)}
    for name, shape in expected.items():
        if name not in checkpoint:
            raise UserError(f"tensor {name}: missing from the checkpoint; expected shape {shape}")
        header = checkpoint[name].get_slice(name)
        found = tuple(header.get_shape())
        if found != shape:
            raise UserError(f"tensor {name}: found shape {found}; its config.json expects {shape}")
        if header.get_dtype() not in _STORED_DTYPES:
            raise UserError(f"tensor {name}: found dtype {header.get_dtype()}; expected {' or '.join(_STORED_DTYPES)}")
    for name in checkpoint:
        if name in expected or _is_redundant(name, config):
            continue
        found = tuple(checkpoint[name].get_slice(name).get_shape())
        raise UserError(f"tensor {name}: found shape {found}; expected no such tensor for its config.json")


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Tensors that old checkpoints store although the config determines them."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")
