"""Everything that a run needs before its first step, loaded and checked before anything is written."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from nrt_jax import hf
from nrt_jax.data import formats, sources
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.formats import TraceFormat
from nrt_jax.errors import UserError
from nrt_jax.evaluation import Limits
from nrt_jax.models import Frozen, Model, Params, lora
from nrt_jax.training.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's model and data.

    Attributes:
        model: The policy.
        params: What is trained of it, before training.
        frozen: The rest of it; None without adapters.
        adapter: What the exported adapter says of itself; None without adapters.
        tokenizer: With the trace format's tokens in it.
        trace_format: In token ids.
        encoder: Text to ids.
        train: Training rows.
        held_out: Evaluation rows.
        left_out: How many rows were left out, by reason.
        limits: Most tokens of a trace and an answer in evaluation.
        model_folder: Where the model came from.
        max_length: Most tokens of a whole sample.
    """

    model: Model
    params: Params
    frozen: Frozen | None
    adapter: hf.Adapter | None
    tokenizer: "Tokenizer"
    trace_format: TraceFormat
    encoder: Encoder
    train: list[Encoded]
    held_out: list[Encoded]
    left_out: dict[str, int]
    limits: Limits
    model_folder: Path
    max_length: int

    def policy(self, params: Params) -> Params:
        """The params of the whole policy, given those that are trained."""
        return lora.combine(params, self.frozen)


def model_path(name: str) -> Path:
    """The folder of a built-in model, or the path itself."""
    return ASSETS / name if (ASSETS / name / "config.json").is_file() else Path(name)


def prepare(config: TrainConfig) -> Setup:
    """Loads model and data.

    Raises:
        UserError: A value, file, row, tensor or token is wrong; the message names it.
    """
    config.validate()
    held_out, seed = config.evaluation.questions, config.seed
    train, held_out = sources.load(config.data, config.dataset, num_held_out=held_out, seed=seed)
    if config.objective == "sft_with_trace" and not any(example.trace for example in train):
        raise UserError(
            f"objective: 'sft_with_trace' learns from traces and {config.data!r} has none; "
            "expected rows with a column 'trace', or --objective sft"
        )
    folder = hf.local_folder(model_path(config.model))
    param_dtype = config.dtype if config.lora.rank else "float32"  # only what is trained needs float32
    model, params, tokenizer = hf.load(folder, dtype=config.dtype, param_dtype=param_dtype)
    known = set(tokenizer.get_vocab())
    trace_format, model, params, tokenizer = formats.resolve(config.trace, model, params, tokenizer)
    adapter = frozen = None
    if config.lora.rank:
        model = dataclasses.replace(model, lora=config.lora)
        added = sorted(token_id for token, token_id in tokenizer.get_vocab().items() if token not in known)
        params, frozen = lora.split(model, params, added, jax.random.key(config.seed))
        base = str(folder.absolute()) if model_path(config.model).is_dir() else config.model
        adapter = hf.Adapter(config.lora, base, tuple(added))
    encoder = Encoder(tokenizer, trace_format, config.text)
    longest = model.config.max_position_embeddings
    max_length = min(config.rollout.max_length or longest, longest)
    train, left_out = encoder.encode_all(train, max_length=max_length)
    held_out, held_out_left_out = encoder.encode_all(held_out, max_length=max_length, name="held-out data")
    return Setup(
        model=model,
        params=params,
        frozen=frozen,
        adapter=adapter,
        tokenizer=tokenizer,
        trace_format=trace_format,
        encoder=encoder,
        train=train,
        held_out=held_out,
        left_out={f"training rows {why}": count for why, count in left_out.items()}
        | {f"held-out rows {why}": count for why, count in held_out_left_out.items()},
        limits=Limits(
            trace=config.rollout.max_trace_length,
            answer=max(len(row.answer) for row in train + held_out),
            chunk_size=config.rollout.chunk_size,
        ),
        model_folder=folder,
        max_length=max_length,
    )
