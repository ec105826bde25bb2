"""What `launch.bench` times: the model, the work, and how often."""

import dataclasses
import pathlib
from typing import Literal

from tyro.conf import Positional

from nrt_jax.errors import UserError
from nrt_jax.models import Remat
from nrt_jax.models.backends import Backend


@dataclasses.dataclass(frozen=True)
class ShapeConfig:
    """The model. The defaults are small enough for two cores.

    Attributes:
        num_layers: L.
        hidden_size: D.
        intermediate_size: F.
        num_heads: H.
        num_kv_heads: G.
        head_dim: d.
        vocab_size: V.
    """

    num_layers: int = 4
    hidden_size: int = 256
    intermediate_size: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 32
    vocab_size: int = 4096


@dataclasses.dataclass(frozen=True)
class SizeConfig:
    """The work.

    Attributes:
        prompts: P.
        group_size: K.
        prompt_length: X, tokens of every prompt.
        trace_length: Z, most tokens of a trace.
        answer_length: Y, tokens of every answer.
    """

    prompts: int = 8
    group_size: int = 4
    prompt_length: int = 128
    trace_length: int = 128
    answer_length: int = 16


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes:
        work: `rollout`: sampling the traces, with finished rows leaving, and beside it in lock step. `score`: c_i and
            c_base from the caches that a rollout left, and beside it the same from a forward of the whole sequences.
            `train`: one update. `step`: rollout, scoring and update.
        model: The model's shape.
        size: The batch's shape.
        mean_length: Mean length of a trace as a share of Z, the lengths being geometric; 1 for Z tokens in every row.
        dtype: Compute dtype.
        attention: What computes attention over many tokens; `auto` is flash attention where the device has it.
        remat: What a layer keeps for the backward pass.
        micro_batches: Parts of the batch, sorted by length, whose gradients are added up.
        chunk_size: Steps between two looks at which rows are done, and least slots of a row's cache.
        max_rows: Rows that a device decodes at once; 0 for all.
        cache_dtype: Of keys and values in decoding and scoring.
        devices: Devices that sample, each with a copy of the policy.
        repeats: Measurements, after one that compiles.
        json: File to write them to; empty for none.
    """

    work: Positional[Literal["rollout", "score", "train", "step"]]
    model: ShapeConfig = ShapeConfig()
    size: SizeConfig = SizeConfig()
    mean_length: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Backend = "auto"
    remat: Remat = "dots"
    micro_batches: int = 1
    chunk_size: int = 32
    max_rows: int = 0
    cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    devices: int = 1
    repeats: int = 5
    json: str = ""


def validate(config: BenchConfig) -> None:
    """Raises UserError for values that cannot be measured."""
    sizes = {f"{part}.{name}": n for part in ("model", "size") for name, n in vars(getattr(config, part)).items()}
    sizes |= {name: getattr(config, name) for name in ("micro_batches", "chunk_size", "devices", "repeats")}
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name}: {value} is no size; expected a number above 0")
    if config.max_rows < 0:
        raise UserError(f"max_rows: {config.max_rows} cannot work; expected 0 (all) or more")
    shape, size = config.model, config.size
    if shape.num_heads % shape.num_kv_heads:
        raise UserError(
            f"model.num_heads: {shape.num_heads} is no multiple of model.num_kv_heads, {shape.num_kv_heads}"
        )
    if shape.head_dim % 2:
        raise UserError(f"model.head_dim: {shape.head_dim} is odd; expected an even number, which RoPE turns in pairs")
    if config.work in ("train", "step") and size.prompts % config.micro_batches:
        raise UserError(
            f"micro_batches: {size.prompts} prompts cannot be split into {config.micro_batches} equal parts; "
            "expected a divisor of size.prompts"
        )
    if not 0 < config.mean_length <= 1:
        raise UserError(f"mean_length: {config.mean_length} cannot work; expected a share above 0 and at most 1")
    mean = config.mean_length * size.trace_length
    if config.mean_length < 1 and not 1 <= mean <= shape.vocab_size:
        raise UserError(
            f"mean_length: traces of {mean:g} tokens on average cannot be drawn; expected, times size.trace_length, "
            f"1 to model.vocab_size, {shape.vocab_size}"
        )
    if config.json and not pathlib.Path(config.json).absolute().parent.is_dir():
        raise UserError(f"json: {config.json!r} is in no folder that exists; make the folder first")
