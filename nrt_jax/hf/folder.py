"""A Hugging Face model folder as one value: load it, save it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrt_jax.errors import UserError
from nrt_jax.hf.config import from_hf, to_hf
from nrt_jax.hf.tokenizer import check_vocabulary, load_tokenizer, save_tokenizer
from nrt_jax.hf.weights import read_params, write_params
from nrt_jax.models import Model, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def load(path: str | Path, *, dtype: str = "float32") -> tuple[Model, Params, "Tokenizer"]:
    """Loads a local folder that holds config.json, safetensors and a tokenizer.

    Args:
        path: The folder.
        dtype: Compute dtype of the model. Its params are float32 whatever the dtype of the files.

    Returns:
        (model, params, tokenizer).

    Raises:
        UserError: The folder is not a supported model; the line names the field, file or tensor.
    """
    tokenizer = load_tokenizer(_existing(path))  # before the weights: the quicker failure first
    config = from_hf(_read_json(Path(path) / "config.json"), dtype=dtype)
    check_vocabulary(tokenizer, config)
    return Model(config), read_params(path, config), tokenizer


def load_model(path: str | Path, *, dtype: str = "float32") -> tuple[Model, Params]:
    """`load` for a folder whose tokenizer is absent or not wanted."""
    config = from_hf(_read_json(_existing(path) / "config.json"), dtype=dtype)
    return Model(config), read_params(path, config)


def save(
    path: str | Path,
    model: Model,
    params: Params,
    tokenizer: "Tokenizer | None" = None,
    *,
    dtype: str = "float32",
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
        tokenizer: Its files, and the ids of BOS, EOS and padding, go along.
        dtype: Of the tensors: `float32`, `bfloat16` or `float16`.
        generation_config: Keys to set in generation_config.json.
        source: The folder that the model came from. What did not change in its config.json and
            generation_config.json is kept.
        max_shard_bytes: Larger checkpoints are sharded.
        overwrite: Replace an existing folder, once the new one is complete.
    """
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.config)
    original = _read_json(Path(source) / "config.json") if source else None
    config = to_hf(model.config, original)
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    has_generation = source and (Path(source) / "generation_config.json").is_file()
    generation = dict(_read_json(Path(source) / "generation_config.json")) if has_generation else {}
    for target in (config, generation):
        target |= _special_ids(tokenizer, target)
    with _complete_or_absent(Path(path), overwrite) as folder:
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", generation | dict(generation_config or {}))
        write_params(folder, model.config, params, dtype=dtype, max_shard_bytes=max_shard_bytes)
        if tokenizer is not None:
            save_tokenizer(folder, tokenizer)


def _special_ids(tokenizer: "Tokenizer | None", known: Mapping[str, Any]) -> dict[str, int]:
    """BOS, EOS and padding ids of the tokenizer that a config lacks; a list of EOS ids that has it stays."""
    ids = {}
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value, present = getattr(tokenizer, field, None), known.get(field)
        if value is not None and value not in (present if isinstance(present, list) else [present]):
            ids[field] = value
    return ids


@contextlib.contextmanager
def _complete_or_absent(path: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a temporary sibling folder that takes the final name if the block ends well and else vanishes."""
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; expected the name of a folder to write")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{path}: exists and is not empty; choose another folder, or overwrite it explicitly")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
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
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _existing(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; expected a local folder in Hugging Face format")
    return Path(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; expected a folder in Hugging Face format") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}; expected a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
