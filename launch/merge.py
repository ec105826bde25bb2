"""Merge models of one shape in parameter space, tensor by tensor: Hugging Face folders in and out.

python -m launch.merge --models DEDUCTION INDUCTION ABDUCTION --weights 1.0 0.2 0.1 --output MERGED
python -m launch.merge --method ties --base BASE --models A B --density 0.2 --output MERGED --dtype bfloat16
"""

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from launch import cli
from launch.convert import check_apart, num_bytes
from nrt_jax import hf, merging
from nrt_jax.errors import UserError
from nrt_jax.hf.table import parts_of, sizes_of, tensors_of
from nrt_jax.hf.weights import DTYPES, Tensor, check_tensors, open_checkpoint, stored_dtype, write_sharded
from nrt_jax.models import ModelConfig

#: Methods that merge differences from a base.
FROM_BASE = ("task", "ties", "dare", "dare_ties")


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """What to merge, and how.

    Attributes:
        models: Folders in Hugging Face format, or hub ids, to merge.
        output: The folder to make. Its config.json and tokenizer are those of the base or, without one, of the first
            model.
        method: `linear`, the weighted sum; `task`, the weighted sum of differences from the base; `slerp`, along the
            arc from the first of two models to the second; `ties`, differences trimmed and of elected sign; `dare`,
            differences dropped at random and rescaled; `dare_ties`, these of elected sign.
        base: What the models were trained from; `linear` and `slerp` need none.
        weights: One for each model; empty for 1 each.
        normalize: Divide by the sum of weights; by default `linear` and `ties` do.
        density: `ties`, `dare`, `dare_ties`: share of the differences that is kept.
        t: `slerp`: 0 is the first model, 1 the second.
        lambda_: All but `linear` and `slerp`: factor of the merged differences.
        seed: `dare`, `dare_ties`: of the differences that are kept.
        dtype: Of the tensors written; `stored` keeps that of the base or the first model.
        max_shard_size: safetensors files hold at most this much, such as 500MB or 5GB.
        overwrite: Replace an existing folder, once the new one is complete.
    """

    models: tuple[str, ...]
    output: str
    method: Literal["linear", "task", "slerp", "ties", "dare", "dare_ties"] = "linear"
    base: str = ""
    weights: tuple[float, ...] = ()
    normalize: bool | None = None
    density: float = 1.0
    t: float = 0.5
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 1.0
    seed: int = 0
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    max_shard_size: str = "5GB"
    overwrite: bool = False

    def __post_init__(self):
        given, needed = len(self.weights), len(self.models)
        _require(needed > 0, "models", "none", "one folder or more")
        _require(self.method != "slerp" or needed == 2, "models", f"{needed} for slerp", "2")
        _require(self.method != "slerp" or not given, "weights", f"{given} for slerp", "none: --t is its only number")
        _require(given in (0, needed), "weights", f"{given} for {needed} models", "one for each model")
        _require(all(map(math.isfinite, self.weights)), "weights", str(self.weights), "finite numbers")
        sums_to_zero = self.does_normalize and abs(math.fsum(self.weights_or_ones)) < 1e-8
        _require(not sums_to_zero, "weights", f"the sum of {self.weights} is 0", "another, or --normalize false")
        _require(bool(self.base) or self.method not in FROM_BASE, "base", f"none for {self.method}", "a folder")
        _require(0.0 < self.density <= 1.0, "density", str(self.density), "a number above 0 and at most 1")
        _require(0.0 <= self.t <= 1.0, "t", str(self.t), "a number from 0 to 1")
        _require(math.isfinite(self.lambda_), "lambda", str(self.lambda_), "a finite number")
        _require(self.seed >= 0, "seed", str(self.seed), "0 or more")

    @property
    def weights_or_ones(self) -> tuple[float, ...]:
        """A weight for each model."""
        return self.weights or (1.0,) * len(self.models)

    @property
    def does_normalize(self) -> bool:
        """`normalize`, or the method's default."""
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize


def _require(condition: bool, field: str, found: str, expected: str) -> None:
    if not condition:
        raise UserError(f"--{field}: {found}; expected {expected}")


def main(config: MergeConfig) -> None:
    """Merges, and says what was written."""
    hf.check_writable(config.output, config.overwrite)
    max_shard_bytes = num_bytes(config.max_shard_size)
    folders = [hf.local_folder(name) for name in ([config.base] if config.base else []) + list(config.models)]
    check_apart("--output", config.output, *folders)
    model_config = _common_config(folders)
    _check_vocabularies(folders)
    with contextlib.ExitStack() as stack:
        checkpoints = [_open(folder, model_config, stack) for folder in folders]
        with hf.complete_or_absent(config.output, config.overwrite) as new:
            hf.copy_description(folders[0], new)
            if config.dtype != "stored":
                hf.rename_dtype(new, config.dtype)
            write_sharded(new, _tensors(config, model_config, checkpoints), max_shard_bytes)
    print(f"{config.output}: {model_config.num_parameters:,} parameters, {config.method} of {', '.join(config.models)}")


def _common_config(folders: Sequence[Path]) -> ModelConfig:
    """The config that all models have.

    Raises:
        UserError: One differs in a field.
    """
    first, *others = [hf.read_config(folder) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        for field in dataclasses.fields(first):
            here, there = getattr(first, field.name), getattr(other, field.name)
            if here != there:
                raise UserError(
                    f"{folder}: config.json: {field.name} is {there}, that of {folders[0]} {here}; "
                    "expected models of one shape, trained from the same base"
                )
    return first


def _check_vocabularies(folders: Sequence[Path]) -> None:
    """Raises UserError if two tokenizers, of the folders that have one, give a token different ids."""
    folders = [folder for folder in folders if any(folder.glob("tokenizer*"))]
    vocabularies = [hf.load_tokenizer(folder).get_vocab() for folder in folders]
    for folder, vocabulary in zip(folders[1:], vocabularies[1:], strict=True):
        differing = {token for token, _ in vocabulary.items() ^ vocabularies[0].items()}
        if differing:
            token = min(differing)
            here, there = (_id(v.get(token)) for v in (vocabularies[0], vocabulary))
            raise UserError(
                f"{folder}: tokenizer: token {token!r} has {there}, that of {folders[0]} {here}; "
                "expected one vocabulary, or the rows of the embedding would not fit each other"
            )


def _id(index: int | None) -> str:
    return "no id" if index is None else f"id {index}"


def _open(folder: Path, config: ModelConfig, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The tensors' open files, checked against the config."""
    try:
        checkpoint = open_checkpoint(folder, config, stack)
        check_tensors(checkpoint, tensors_of(config), sizes_of(config))
    except UserError as error:
        raise error if str(error).startswith(str(folder)) else UserError(f"{folder}: {error}") from error
    return checkpoint


def _tensors(config: MergeConfig, model: ModelConfig, checkpoints: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """The merged tensors, each of which is read and merged when it is written."""
    sizes = sizes_of(model)
    tensors = []
    for spec in tensors_of(model):
        for name, _ in parts_of(spec, sizes):
            dtype = stored_dtype(checkpoints[0], name) if config.dtype == "stored" else DTYPES[config.dtype]
            tensors.append(Tensor(name, spec.shape(sizes), dtype, _fetch(config, checkpoints, name)))
    return tensors


def _fetch(config: MergeConfig, checkpoints: Sequence[Mapping[str, Any]], name: str) -> Callable[[], np.ndarray]:
    def fetch() -> np.ndarray:
        tensors = [checkpoint[name].get_tensor(name) for checkpoint in checkpoints]
        merged = merge_tensor(config, name, tensors[0], tensors[1:] if config.base else tensors)
        if not np.isfinite(merged).all():
            raise UserError(f"tensor {name}: merged, some of its values are not finite; expected finite models")
        return merged

    return fetch


def merge_tensor(config: MergeConfig, name: str, base: np.ndarray, models: Sequence[np.ndarray]) -> np.ndarray:
    """One tensor of the merged model in float32.

    Args:
        config: Method and numbers.
        name: The tensor's, which with the seed decides what DARE drops: so neither order nor shards do.
        base: That of the base, for the methods that take differences.
        models: That of each model.
    """
    weights, normalize = config.weights_or_ones, config.does_normalize
    if config.method == "linear":
        return merging.linear(models, weights, normalize=normalize)
    if config.method == "slerp":
        return merging.slerp(*models, config.t)
    if config.method == "task":
        return merging.task_arithmetic(base, models, weights, scale=config.lambda_, normalize=normalize)
    numbers = {"density": config.density, "scale": config.lambda_, "normalize": normalize}
    if config.method == "ties":
        return merging.ties(base, models, weights, **numbers)
    rngs = [np.random.default_rng([config.seed, i, zlib.crc32(name.encode())]) for i in range(len(models))]
    return merging.dare(base, models, weights, rngs, elect_signs=config.method == "dare_ties", **numbers)


if __name__ == "__main__":
    cli.run(main, MergeConfig, "python -m launch.merge", __doc__)
