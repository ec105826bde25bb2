"""Convert a Hugging Face folder to an Orbax checkpoint and back, bit for bit.

python -m launch.convert from-hf SRC DST                          a folder, or a hub id, to Orbax
python -m launch.convert to-hf CKPT DST --dtype bfloat16          an Orbax checkpoint or a run's folder to a HF folder
"""

import dataclasses
import re
from pathlib import Path
from typing import Literal

import jax
from tyro.conf import Positional

from launch import cli
from nrt_jax import checkpoints, hf
from nrt_jax.errors import UserError
from nrt_jax.models import Model


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """What to convert.

    Attributes:
        direction: `from-hf` or `to-hf`.
        source: What to read: for `from-hf` a folder with safetensors or a hub id; for `to-hf` an Orbax checkpoint, a
            run's folder, one step of it, or a PEFT adapter, which is merged into its base.
        destination: The folder to make.
        dtype: Of the tensors written; `stored` keeps each as it is.
        max_shard_size: `to-hf`: safetensors files hold at most this much, such as 500MB or 5GB.
        overwrite: Replace an existing folder, once the new one is complete.
    """

    direction: Positional[Literal["from-hf", "to-hf"]]
    source: Positional[str]
    destination: Positional[str]
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    max_shard_size: str = "5GB"
    overwrite: bool = False


def main(config: ConvertConfig) -> None:
    """Converts, and says what was written."""
    jax.config.update("jax_platforms", "cpu")  # nothing is computed: the model need not fit an accelerator
    hf.check_writable(config.destination, config.overwrite)
    convert = from_hf if config.direction == "from-hf" else to_hf
    model = convert(config)
    print(f"{config.destination}: {model.config.num_parameters:,} parameters, from {config.source}")


def from_hf(config: ConvertConfig) -> Model:
    """Writes the folder's description as it is, and its tensors as one Orbax pytree."""
    folder = hf.local_folder(config.source)
    check_apart("DESTINATION", config.destination, folder)
    model = Model(hf.read_config(folder))
    with hf.complete_or_absent(config.destination, config.overwrite) as new:
        hf.copy_description(folder, new)
        if _dtype(config) is not None:
            hf.rename_dtype(new, config.dtype)
        checkpoints.save_params(new, hf.read_params(folder, model.config, dtype=_dtype(config)))
    return model


def to_hf(config: ConvertConfig) -> Model:
    """Writes safetensors beside the checkpoint's description."""
    max_shard_bytes = num_bytes(config.max_shard_size)
    location = checkpoints.locate(config.source)
    check_apart("DESTINATION", config.destination, Path(config.source), location.description, location.base)
    tokenizer = None
    if location.has_adapter:
        model, params, tokenizer = checkpoints.load_location(location, param_dtype=_dtype(config))
    elif location.arrays is not None:
        model = Model(hf.read_config(location.description))
        params = checkpoints.open_params(location, model)
    else:
        raise UserError(f"{config.source}: is in Hugging Face format already; expected an Orbax checkpoint or a run")
    hf.save(
        config.destination,
        model,
        params,
        tokenizer,
        dtype=_dtype(config),
        source=location.base,
        max_shard_bytes=max_shard_bytes,
        overwrite=config.overwrite,
    )
    return model


def check_apart(label: str, destination: str, *sources: Path) -> None:
    """Refuses a destination, called `label`, whose replacement would take what is read with it."""
    target = Path(destination).resolve()
    for source in sources:
        if target == source.resolve() or target in source.resolve().parents:
            raise UserError(f"{label}: {destination} is or holds what is read, {source}; choose another folder")


def _dtype(config: ConvertConfig) -> str | None:
    return None if config.dtype == "stored" else config.dtype


def num_bytes(text: str) -> int:
    """`500MB` -> 500,000,000, `1GiB` -> 2^30."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMG])(i?)B?|B)?", text.strip(), re.IGNORECASE)
    power = " KMG".index((match[2] or " ").upper()) if match else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if size < 1:
        raise UserError(f"--max-shard-size: bad value {text!r}; expected a size such as 500MB or 5GB")
    return size


if __name__ == "__main__":
    cli.run(main, ConvertConfig, "python -m launch.convert", __doc__)
