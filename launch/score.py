"""Score given traces: how likely a checkpoint finds the reference answer after each, and the rewards that follow.

python -m launch.score --checkpoint DIR --input qa.jsonl --output out.jsonl

A row of the input is {"question", "trace", "answer"}; the output adds "token_log_probs", "base_token_log_probs" and
"rewards" to it.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

from launch import cli
from nrt_jax import checkpoints, jsonl
from nrt_jax.data import Example, formats
from nrt_jax.data.encode import Encoded, Encoder, TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import scoring
from nrt_jax.training import workdir
from nrt_jax.training.config_io import from_dict

ADDS = ("token_log_probs", "base_token_log_probs", "rewards")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Scores of given traces.

    Attributes:
        checkpoint: Folder of a model in Hugging Face format, an Orbax checkpoint, a run's folder, or a PEFT adapter's.
        input: JSONL file. A row has the texts `question`, `trace` (`""` for the empty trace) and `answer`.
        output: JSONL file to write: the input's rows with `token_log_probs`, `base_token_log_probs` (after the empty
            trace) and `rewards`, by mode.
        temperature: Divides the logits, as `rollout.temperature` does in training.
        batch_size: Rows scored at once.
        dtype: Compute dtype of the model.
        text: Template and length limits; of a run's checkpoint by default those of the run. A longer row is refused.
        trace: Trace format; of a run's checkpoint by default that of the run.
    """

    checkpoint: str
    input: str
    output: str
    temperature: float = 1.0
    batch_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature: {self.temperature} cannot work; expected a number above 0")
        if self.batch_size < 1:
            raise UserError(f"batch_size: {self.batch_size} cannot work; expected a number above 0")
        if self.trace.opening == self.trace.closing:
            raise UserError(
                f"trace.opening: {self.trace.opening!r} cannot work; expected another token than trace.closing"
            )


def as_in_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """The template and trace format of the run whose checkpoint is scored, by dotted field name."""
    run = checkpoints.locate(values["checkpoint"]).run if "checkpoint" in values else None
    if run is None:
        return {}
    trained = workdir.read_config(run)
    found = {}
    for name, config_type in (("text", TextConfig), ("trace", TraceFormatConfig)):
        section = from_dict(config_type, trained.get(name, {}), where=f"{run / workdir.CONFIG_FILE}: {name}")
        found |= {f"{name}.{field}": value for field, value in vars(section).items()}
    return found


def main(config: ScoreConfig) -> None:
    """Reads, scores, writes."""
    config.validate()
    rows = jsonl.read(config.input, field="input", adds=ADDS)
    examples = [Example(row.text("question"), row.text("answer"), row.text("trace", may_be_empty=True)) for row in rows]
    jsonl.check_writable(config.output, field="output")
    model, params, tokenizer = checkpoints.load(config.checkpoint, dtype=config.dtype)
    known = len(tokenizer)
    trace_format, model, params, tokenizer = formats.resolve(config.trace, model, params, tokenizer)
    if len(tokenizer) > known:
        print(
            f"note: {config.trace.closing} is new to this checkpoint and scored as a copy of EOS; "
            "--trace.closing names the delimiter that it was trained with"
        )
    encoder = Encoder(tokenizer, trace_format, config.text)
    encoded = [encoder.encode(example) for example in examples]
    for row, ids in zip(rows, encoded, strict=True):
        _check_length(row, ids, config.text, model.config.max_position_embeddings)

    started, done, tokens = time.monotonic(), {}, 0
    for scores in scoring.score(
        model,
        params,
        encoded,
        delimiter=trace_format.delimiter,
        temperature=config.temperature,
        batch_size=config.batch_size,
    ):
        done |= scores
        tokens += sum(_length(encoded[i]) for i in scores)
        rate = tokens / (time.monotonic() - started)
        print(f"{len(done)} of {len(rows)} rows, {rate:.0f} tokens/s", file=sys.stderr)
    scored = [dataclasses.replace(row, values=row.values | dataclasses.asdict(done[i])) for i, row in enumerate(rows)]
    jsonl.write(config.output, scored, field="output")
    with_trace, without = (
        sum(math.fsum(getattr(score, name)) for score in done.values()) / len(rows)
        for name in ("token_log_probs", "base_token_log_probs")
    )
    print(
        f"scored {len(rows)} rows with {tokens} tokens in {time.monotonic() - started:.1f} s: mean log p(answer) "
        f"{with_trace:.3f}, after the empty trace {without:.3f}; written to {config.output}"
    )


def _length(ids: Encoded) -> int:
    """Tokens of prompt, trace, delimiter and answer."""
    return len(ids.prompt) + len(ids.trace) + 1 + len(ids.answer)


def _check_length(row: jsonl.Row, ids: Encoded, limits: TextConfig, longest: int) -> None:
    """Raises UserError for a row that training would not take."""
    for name, limit in (("prompt", limits.max_prompt_length), ("answer", limits.max_answer_length)):
        length = len(getattr(ids, name))
        if length > limit:
            raise UserError(
                f"{row.where}: the {name} has {length} tokens; expected at most text.max_{name}_length, {limit}; "
                f"shorten it or raise --text.max-{name}-length"
            )
    if _length(ids) > longest:
        raise UserError(
            f"{row.where}: {_length(ids)} tokens of prompt, trace, delimiter and answer; expected at most {longest}, "
            "the model's max_position_embeddings; shorten the trace"
        )


if __name__ == "__main__":
    cli.run(main, ScoreConfig, "python -m launch.score", __doc__, implied=as_in_training)
