"""safetensors <-> params, tensor by tensor, by the table in `table.py`.

Names, shapes and dtypes of the whole checkpoint are checked against the config before any data is read.
Pickle never is.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors

from nrt_jax import json_file
from nrt_jax.errors import UserError, unknown_name
from nrt_jax.hf.table import TensorSpec, get_leaf, parts_of, set_leaf, sizes_of, tensors_of
from nrt_jax.models import ModelConfig, Params

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "bfloat16", "float16")}
_STORED_DTYPES = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "F16": DTYPES["float16"]}


def read_params(
    folder: str | Path,
    config: ModelConfig,
    *,
    dtype: str | None = "float32",
    shardings: Params | None = None,
) -> Params:
    """Reads a folder's safetensors, single or sharded, one tensor at a time, straight onto the devices.

    The host holds one leaf's local shards beside the tensor at hand. On CPU those buffers become the params
    themselves, so that reading S bytes takes little more than S.

    Args:
        folder: Holds model.safetensors, or model.safetensors.index.json and its shards, of any of `DTYPES`.
        config: What the tensors must fit.
        dtype: Of the params, one of `DTYPES`; None keeps each leaf as it is stored.
        shardings: A `jax.sharding.Sharding` for each leaf; None puts all on the first local device.

    Returns:
        The params pytree.

    Raises:
        UserError: The folder has no safetensors, or a tensor is missing, unexpected or misfitting.
    """
    with contextlib.ExitStack() as stack:
        return read_tensors(
            open_checkpoint(folder, config, stack),
            tensors_of(config),
            sizes_of(config),
            dtype=dtype,
            shardings=shardings,
        )


def open_checkpoint(folder: str | Path, config: ModelConfig, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Maps the name of each tensor of a model to the open safetensors file that holds it.

    Redundant tensors are left out. Names, shapes and dtypes are not checked yet: `check_tensors` does.

    Raises:
        UserError: The folder has no readable safetensors, or a tied head of its own.
    """
    checkpoint = _open(Path(folder), stack)
    if config.tie_embeddings and "lm_head.weight" in checkpoint:
        _check_tied(checkpoint)
    return {name: file for name, file in checkpoint.items() if not _is_redundant(name, config)}


def read_tensors(
    checkpoint: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    *,
    dtype: str | None,
    shardings: Params | None = None,
) -> Params:
    """Reads what some lines of a table name: `read_params` for open files.

    Args:
        checkpoint: The open file that holds each tensor, by name.
        specs: Lines of a table, which must cover the checkpoint exactly.
        sizes: What the letters of the table stand for.
        dtype: As in `read_params`.
        shardings: As in `read_params`.
    """
    check_tensors(checkpoint, specs, sizes)
    params: Params = {}
    for spec in specs:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if shardings is not None:
            sharding = get_leaf(shardings, spec.path)
        set_leaf(params, spec.path, _read_leaf(spec, checkpoint, sizes, dtype, sharding))
    return params


def _read_leaf(spec: TensorSpec, checkpoint: Mapping[str, Any], sizes: Mapping[str, int], dtype, sharding) -> jax.Array:
    """One leaf of the params, put together on the host from its tensors and placed shard by shard."""
    shape = spec.our_shape(sizes)
    dtype = DTYPES[dtype] if dtype else _stored_dtype(spec, checkpoint, sizes)
    bounds = {
        device: tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards = {bound: _aligned_empty([stop - start for start, stop in bound], dtype) for bound in bounds.values()}
    for name, layer in parts_of(spec, sizes):
        tensor = spec.to_ours(checkpoint[name].get_tensor(name), sizes)
        for bound, shard in shards.items():
            if layer is ...:
                shard[...] = tensor[_slices(bound)]
            elif bound[0][0] <= layer < bound[0][1]:
                shard[layer - bound[0][0]] = tensor[_slices(bound[1:])]
    placed = [jax.device_put(shards[bound], device) for device, bound in bounds.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def _slices(bound: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(*part) for part in bound)


def _stored_dtype(spec: TensorSpec, checkpoint: Mapping[str, Any], sizes: Mapping[str, int]) -> np.dtype:
    """The dtype of a leaf's tensors; float32, which holds all of them, where they differ."""
    stored = {stored_dtype(checkpoint, name) for name, _ in parts_of(spec, sizes)}
    return stored.pop() if len(stored) == 1 else DTYPES["float32"]


def stored_dtype(checkpoint: Mapping[str, Any], name: str) -> np.dtype:
    """The dtype of one tensor in its file, which must be among DTYPES."""
    return _STORED_DTYPES[checkpoint[name].get_slice(name).get_dtype()]


def _aligned_empty(shape: list[int], dtype) -> np.ndarray:
    """An array at a multiple of 64 bytes, which JAX's CPU backend takes over without a copy."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def write_params(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    dtype: str | None = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes params as model.safetensors, or as shards with an index where they exceed `max_shard_bytes`.

    Args:
        folder: An existing folder.
        config: Says which tensors there are.
        params: The pytree, of any float dtype. One layer's tensor at a time is brought to the host.
        dtype: One of `DTYPES`, or None for the dtype of each leaf. Rounding is to nearest even.
        max_shard_bytes: A larger tensor gets a shard of its own.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    write_sharded(Path(folder), tensors_from(params, tensors_of(config), sizes_of(config), dtype), max_shard_bytes)


def tensors_from(
    params: Params, specs: Sequence[TensorSpec], sizes: Mapping[str, int], dtype: str | None
) -> list["Tensor"]:
    """What some lines of a table make of params, to be fetched when it is written.

    Raises:
        ValueError: A leaf has not the shape that the table gives it.
    """
    tensors = []
    for spec in specs:
        leaf = get_leaf(params, spec.path)
        if tuple(leaf.shape) != spec.our_shape(sizes):
            name = ".".join(spec.path)
            raise ValueError(f"params {name}: shape {leaf.shape}; its config expects {spec.our_shape(sizes)}")
        stored = np.dtype(DTYPES[dtype] if dtype else leaf.dtype)
        for name, index in parts_of(spec, sizes):
            tensors.append(Tensor(name, spec.shape(sizes), stored, _fetch(spec, leaf, index, sizes)))
    return tensors


def _fetch(spec: TensorSpec, leaf: jax.Array, index: Any, sizes: Mapping[str, int]) -> Callable[[], np.ndarray]:
    return lambda: spec.to_theirs(np.asarray(leaf[index]), sizes)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is about to be written.

    Attributes:
        name: In the file.
        shape: In the file.
        dtype: In the file.
        fetch: Brings its values to the host, of any float dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_sharded(folder: Path, tensors: Sequence[Tensor], max_shard_bytes: int) -> None:
    """Writes model.safetensors, or its shards and their index."""
    shards, weight_map = _plan(tensors, max_shard_bytes), {}
    for i, shard in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        weight_map |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        total = sum(tensor.num_bytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    """Writes a safetensors file tensor by tensor; the library's own writer wants the whole file in memory.

    The format (github.com/huggingface/safetensors): the header's length in 8 bytes, the header in JSON, the data.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants to be told whose layout it is
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        stored = next(name for name, dtype in _STORED_DTYPES.items() if dtype == tensor.dtype)
        header[tensor.name] = {"dtype": stored, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.fetch()
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(values.astype(tensor.dtype, copy=False))
            if tensor.dtype == np.float16 and not np.isfinite(stored).all() and np.isfinite(values).all():
                largest = np.abs(values).max()
                raise UserError(f"tensor {tensor.name}: {largest:.4g} is too large for float16; choose bfloat16")
            file.write(stored.view(np.uint8).data)


def _plan(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """Fills shards in order, none above `limit` bytes unless one tensor alone is."""
    shards, used = [[]], 0
    for tensor in tensors:
        if shards[-1] and used + tensor.num_bytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.num_bytes
    return shards


def open_file(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Maps the name of each tensor of one file to that file, opened."""
    file = _open_file(path, stack)
    return dict.fromkeys(file.keys(), file)


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Maps each tensor's name to the open file that holds it. Only headers are read."""
    if (folder / SINGLE_FILE).is_file():
        return open_file(folder / SINGLE_FILE, stack)
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"{folder}: found neither {SINGLE_FILE} nor {INDEX_FILE}; expected a checkpoint in safetensors "
            "(pytorch_model.bin is pickle, which is never read: convert it first)"
        )
    try:
        weight_map = json_file.read(folder / INDEX_FILE)["weight_map"]
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
        path.stat()  # FileNotFoundError
        if not path.is_file():  # to open a pipe would wait for a writer
            raise OSError("is no regular file")
        # The library compares the header's offsets, shapes and sizes with each other and with the file's size.
        return stack.enter_context(safetensors.safe_open(path, framework="numpy", backend="pread"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: not a readable safetensors file: {reason}; expected a whole one, copy or download it again"
        ) from error


def check_tensors(checkpoint: Mapping[str, Any], specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> None:
    """Compares every name, shape and dtype with the table.

    Raises:
        UserError: A tensor is missing, unexpected or misfitting.
    """
    expected = set()
    for name, shape in ((name, spec.shape(sizes)) for spec in specs for name, _ in parts_of(spec, sizes)):
        if name not in checkpoint:  # the first one ends it, however many layers a config claims
            raise UserError(f"tensor {name}: missing from the checkpoint; expected shape {shape}")
        expected.add(name)
        header = checkpoint[name].get_slice(name)
        found = tuple(header.get_shape())
        if found != shape:
            raise UserError(f"tensor {name}: found shape {found}; its config.json expects {shape}")
        if header.get_dtype() not in _STORED_DTYPES:
            raise UserError(f"tensor {name}: found dtype {header.get_dtype()}; expected {' or '.join(_STORED_DTYPES)}")
    for name in checkpoint:
        if name in expected:
            continue
        found = tuple(checkpoint[name].get_slice(name).get_shape())
        raise UserError(f"tensor {name}: found shape {found}; expected no such tensor for its config.json")


def _check_tied(checkpoint: Mapping[str, Any]) -> None:
    """Refuses a head of its own where the config ties it: some readers would use it, others would not.

    An embedding that is not there, or no matrix of a known dtype, is left for `check_tensors` to name.
    """
    if "model.embed_tokens.weight" not in checkpoint:
        return
    head, embedding = (checkpoint[name].get_slice(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
    if len(embedding.get_shape()) != 2 or embedding.get_dtype() not in _STORED_DTYPES:
        return
    rows = embedding.get_shape()[0]
    comparable = head.get_shape() == embedding.get_shape() and head.get_dtype() in _STORED_DTYPES
    equal = comparable and all(
        np.array_equal(head[start : min(start + 4096, rows)], embedding[start : min(start + 4096, rows)])
        for start in range(0, rows, 4096)
    )
    if not equal:
        raise UserError(
            "tensor lm_head.weight: differs from model.embed_tokens.weight though config.json ties them; "
            "expected equal ones, only the latter, or tie_word_embeddings: false"
        )


def _is_redundant(name: str, config: ModelConfig) -> bool:
    """Tensors that old checkpoints store although the config determines them."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == "lm_head.weight")
