"""Sample chains of thought that end in a right answer.

python -m launch.chains --checkpoint DIR --data SOURCE --output chains.jsonl --samples 8 --keep 1

A row of the output is {"question", "answer", "trace"}, as training takes it, or, of a chat, {"messages", "trace"}: the
reference answer, and a trace after which the checkpoint wrote an answer that the verifier finds right. For hints
(docs/stephint.md) and for --objective sft_with_trace.
"""

import dataclasses
import math
import sys
import time
from typing import Any, Literal

from launch import cli
from launch.score import as_in_training
from nrt_jax import checkpoints, jsonl
from nrt_jax.data import Example, formats
from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.evaluation.rejection import at_most, right_chains
from nrt_jax.rewards import Rules, VerifierConfig, get_verifier


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainsConfig:
    """Right chains of thought.

    Attributes:
        checkpoint: Who thinks: a model's folder in Hugging Face format, an Orbax checkpoint, a run's folder, or a PEFT
            adapter's.
        data: Questions and answers, as in `launch.train`.
        held_out: What a run would hold out of a file for evaluation, its last tenth but at most so many rows, stays
            out: `evaluation.questions` of that run.
        output: JSONL file to write.
        samples: Completions of each question.
        keep: Most that are kept of each; the first right ones.
        keep_per_question: Most that are kept of all judging tasks whose responses are to one question, as many as
            possible of different responses; 0 for no such limit.
        min_answer_prob: Least probability that the right answer had after its trace: above 0 it leaves out guesses,
            which are often right where there are few answers, as verdicts are.
        max_new_tokens: Of trace, delimiter and answer together.
        temperature: Divides the logits.
        seed: Of the sampling, and of a task's questions.
        batch_size: Completions decoded at once.
        dtype: Compute dtype of the model.
        verifier: How answers are judged; questions whose reference it does not find right are left out.
        dataset: Columns, bad rows, size and level of a task.
        text: Template and length limits; of a run's checkpoint by default those of the run.
        trace: Trace format; of a run's checkpoint by default that of the run.
    """

    checkpoint: str
    data: tuple[str, ...]
    output: str
    held_out: int = EvaluationConfig().questions
    samples: int = 8
    keep: int = 1
    keep_per_question: int = 0
    min_answer_prob: float = 0.0
    max_new_tokens: int = 1024
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    verifier: VerifierConfig = VerifierConfig()
    dataset: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        for name in ("held_out", "samples", "keep", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} cannot work; expected a number above 0")
        if self.keep_per_question < 0:
            raise UserError(
                f"keep_per_question: {self.keep_per_question} cannot work; expected 0 for none, or a number above it"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature: {self.temperature} cannot work; expected a number above 0")
        if not 0 <= self.min_answer_prob <= 1:
            raise UserError(f"min_answer_prob: {self.min_answer_prob} cannot work; expected a number from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} cannot work; expected a number from 0 to below 2**32")
        get_verifier(self.verifier.name)


def main(config: ChainsConfig) -> None:
    """Reads, samples, judges, writes."""
    config.validate()
    opened = open_sources(config.data, config.dataset, num_held_out=config.held_out, seed=config.seed)
    jsonl.check_writable(config.output, field="output")
    model, params, tokenizer = checkpoints.load(config.checkpoint, dtype=config.dtype)
    trace_format, model, params, tokenizer = formats.resolve(config.trace, model, params, tokenizer)
    encoder = Encoder(tokenizer, trace_format, config.text)
    rules = Rules(encoder, config.verifier)
    longest = model.config.max_position_embeddings - config.max_new_tokens
    how = {"num_held_out": config.held_out, "max_length": longest, "check": rules.problem}
    data = load(opened, encoder, config.dataset, **how)
    for line in data.report(with_trace=False):
        print(line, file=sys.stderr)
    rows = list(data)

    started, done = time.monotonic(), {}
    for found in right_chains(
        model,
        params,
        rules,
        rows,
        samples=config.samples,
        keep=config.keep,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        batch_size=config.batch_size,
        min_answer_prob=config.min_answer_prob,
    ):
        done |= found
        print(f"{len(done)} of {len(rows)} questions, {sum(map(bool, done.values()))} with a chain", file=sys.stderr)
    if config.keep_per_question:
        done = at_most(config.keep_per_question, done)
    chains = [example for i in range(len(rows)) for example in done[i]]
    lines = [jsonl.Row(i, f"chain {i}", _row(example)) for i, example in enumerate(chains, 1)]
    jsonl.write(config.output, lines, field="output")
    print(
        f"kept {len(chains)} chains of {sum(map(bool, done.values()))} questions; {len(rows)} questions, "
        f"{config.samples} samples each, in {time.monotonic() - started:.1f} s; written to {config.output}"
    )


def _row(example: Example) -> dict[str, Any]:
    if not example.history:
        return {"question": example.question, "answer": example.answer, "trace": example.trace}
    turns = (*example.history, ("user", example.question), ("assistant", example.answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns], "trace": example.trace}


if __name__ == "__main__":
    cli.run(main, ChainsConfig, "python -m launch.chains", __doc__, implied=as_in_training)
