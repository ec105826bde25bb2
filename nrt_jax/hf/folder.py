"""A Hugging Face model folder as one value: load it, save it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nrt_jax import json_file
from nrt_jax.errors import UserError
from nrt_jax.hf.config import from_hf, to_hf
from nrt_jax.hf.tokenizer import check_vocabulary, load_tokenizer, save_tokenizer
from nrt_jax.hf.weights import INDEX_FILE, read_params, write_params
from nrt_jax.models import Model, ModelConfig, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


#: What a model folder holds beside its weights: how to read them, how to sample, how to tokenize.
_DESCRIPTION = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
)


def load(
    path: str | Path, *, dtype: str = "float32", param_dtype: str = "float32"
) -> tuple[Model, Params, "Tokenizer"]:
    """Loads a folder that holds config.json, safetensors and a tokenizer.

    Args:
        path: A local folder, or the id of a model on the Hugging Face hub, which is downloaded once.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the params, whatever that of the files. Training wants float32; to sample and score,
            the compute dtype takes half the memory.

    Returns:
        (model, params, tokenizer).

    Raises:
        UserError: The folder is not a supported model; the line names the field, file or tensor.
    """
    folder = local_folder(path)
    config = read_config(folder, dtype=dtype)  # before the tokenizer, whose loader reads config.json too
    tokenizer = load_tokenizer(folder)  # before the weights: the quicker failure first
    check_vocabulary(tokenizer, config)
    return Model(config), read_params(folder, config, dtype=param_dtype), tokenizer


def load_model(path: str | Path, *, dtype: str = "float32", param_dtype: str = "float32") -> tuple[Model, Params]:
    """`load` for a folder whose tokenizer is absent or not wanted."""
    folder = local_folder(path)
    config = read_config(folder, dtype=dtype)
    return Model(config), read_params(folder, config, dtype=param_dtype)


def read_config(folder: str | Path, *, dtype: str = "float32") -> ModelConfig:
    """The config of a folder's model, or that in a file of any name, with this compute dtype.

    Raises:
        UserError: There is no config.json, or it asks for what is not supported.
    """
    path = Path(folder)
    return from_hf(read_json(path if path.is_file() else path / "config.json"), dtype=dtype)


def local_folder(path: str | Path) -> Path:
    """The folder itself, or a hub id's downloaded snapshot of it: descriptions and safetensors only.

    Raises:
        UserError: There is no such folder, and no such model on the hub or no way to reach it.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    missing = f"{path}: no such folder; expected a local folder in Hugging Face format, or a hub id"
    # An absolute or dotted path cannot be a hub id; asking the hub for it would end in a puzzling message.
    if folder.exists() or folder.is_absolute() or str(path).startswith(".") or len(folder.parts) != 2:
        raise UserError(missing)
    import huggingface_hub

    try:
        patterns = [*_DESCRIPTION, "model*.safetensors", INDEX_FILE]  # not Mistral's consolidated.safetensors
        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=patterns))
    except Exception as error:  # of many kinds: no network, no such repository, no permission, no disk space
        reason = str(error).strip().splitlines() or [repr(error)]
        raise UserError(f"{missing} (the hub: {reason[0]})") from error


def save(
    path: str | Path,
    model: Model,
    params: Params,
    tokenizer: "Tokenizer | None" = None,
    *,
    dtype: str | None = "float32",
    generation_config: Mapping[str, Any] | None = None,
    source: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a folder that plain `transformers` loads. A write that fails leaves no half folder there.

    Args:
        path: The folder to make; it must be absent or empty unless `overwrite`.
        model: Whose config goes into config.json.
        params: The pytree.
        tokenizer: Its files, and the ids of BOS, EOS and padding, go along; None for those of `source`, if any.
        dtype: Of the tensors: `float32`, `bfloat16` or `float16`; None for those of the params.
        generation_config: Keys to set in generation_config.json.
        source: The folder that the model came from. What did not change in its config.json and
            generation_config.json is kept.
        max_shard_bytes: Larger checkpoints are sharded.
        overwrite: Replace an existing folder, once the new one is complete.
    """
    with complete_or_absent(path, overwrite) as folder:
        write_description(
            folder,
            model,
            tokenizer,
            dtype=dtype or np.dtype(params["embedding"].dtype).name,
            source=source,
            generation_config=generation_config,
        )
        write_params(folder, model.config, params, dtype=dtype, max_shard_bytes=max_shard_bytes)


def copy_description(source: str | Path, folder: str | Path) -> None:
    """Copies config.json, generation_config.json and the tokenizer's files as they are.

    Raises:
        UserError: One of them is a link to somewhere else: what is copied here may be published.
    """
    for pattern in _DESCRIPTION:
        for file in Path(source).glob(pattern):
            if file.is_file():
                _check_inside(file)
                shutil.copyfile(file, Path(folder) / file.name)


def _check_inside(file: Path) -> None:
    """Refuses a link that leaves its folder, unless it leads to the blobs of a hub's cache.

    There, hub/models--ORG--NAME/snapshots/COMMIT/config.json is a link to ../../blobs/HASH.
    """
    folder = file.parent.resolve()
    snapshots = folder.parent
    allowed = [folder, *([snapshots.parent / "blobs"] if snapshots.name == "snapshots" else [])]
    target = file.resolve()
    if not any(target.is_relative_to(place.resolve()) for place in allowed):
        raise UserError(
            f"{file}: is a link to {target}, outside of its folder; expected a file: put a copy in its place"
        )


def write_description(
    folder: Path,
    model: Model,
    tokenizer: "Tokenizer | None" = None,
    *,
    dtype: str | None = None,
    source: str | Path | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> None:
    """What `save` writes, but for the weights, into an existing folder; `dtype` is that of the weights, if known."""
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config)
    original, generation = None, {}
    if source is not None:
        original = read_json(Path(source) / "config.json")
        if (Path(source) / "generation_config.json").is_file():
            generation = dict(read_json(Path(source) / "generation_config.json"))
        if tokenizer is None:
            copy_description(source, folder)
    config = to_hf(model.config, original)
    if dtype is not None:
        config[_dtype_field(config)] = dtype
    for target in (config, generation):
        target |= _special_ids(tokenizer, target)
    write_json(folder / "config.json", config)
    if generation or generation_config:
        write_json(folder / "generation_config.json", generation | dict(generation_config or {}))
    if tokenizer is not None:
        save_tokenizer(folder, tokenizer)


def rename_dtype(folder: str | Path, dtype: str) -> None:
    """Says in a folder's config.json of which dtype its tensors are: transformers rounds them to what stands there."""
    config = read_json(Path(folder) / "config.json")
    write_json(Path(folder) / "config.json", config | {_dtype_field(config): dtype})


def _dtype_field(config: Mapping[str, Any]) -> str:
    """`torch_dtype`, unless transformers 5 wrote the file."""
    return "dtype" if "dtype" in config else "torch_dtype"


def _special_ids(tokenizer: "Tokenizer | None", known: Mapping[str, Any]) -> dict[str, int | list[int]]:
    """BOS, EOS and padding ids of the tokenizer that a config lacks; to a list of EOS ids they are added."""
    ids: dict[str, int | list[int]] = {}
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value, present = getattr(tokenizer, field, None), known.get(field)
        if value is not None and value not in (present if isinstance(present, list) else [present]):
            ids[field] = [*present, value] if isinstance(present, list) else value
    return ids


@contextlib.contextmanager
def complete_or_absent(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Gives a temporary sibling folder that takes the final name if the block ends well and else vanishes.

    Raises:
        UserError: The name is taken (`check_writable`), or the folder cannot be written.
    """
    path = Path(path).resolve()  # a link keeps pointing where it points
    check_writable(path, overwrite)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        new, old = scratch / "new", scratch / "old"
        new.mkdir()  # with the permissions of an ordinary folder, which mkdtemp's has not
        yield new
        if path.is_dir():
            path.replace(old)
        try:
            new.replace(path)
        except OSError:
            if old.is_dir():
                old.replace(path)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written: {reason}; nothing was changed, choose another place") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def check_writable(path: str | Path, overwrite: bool) -> None:
    """Refuses a name that is taken; also with `overwrite`, which replaces a model's folder and nothing else.

    Raises:
        UserError: There is a file, a folder of something else or, without `overwrite`, any folder with files in it.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; expected the name of a folder to write")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{path}: exists and is not empty; choose another folder, or overwrite it (--overwrite)")
    descriptions = [path / "config.json", path / "adapter_config.json"]
    if not any(file.is_file() and _describes_model(file) for file in descriptions):
        raise UserError(
            f"{path}: is no model's folder, so it is not overwritten; choose another, or remove it yourself"
        )


def _describes_model(path: Path) -> bool:
    """Whether a file is a config.json of a model or an adapter; a run's folder has another one."""
    try:
        return not {"model_type", "peft_type"}.isdisjoint(read_json(path))
    except UserError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a model folder.

    Raises:
        UserError: The file is absent or holds something else.
    """
    try:
        content = json_file.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected a folder in Hugging Face format") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}; expected a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object as Hugging Face does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
