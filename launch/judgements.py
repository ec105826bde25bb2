"""Make judging tasks of data with verified labels: sampled answers that a verifier judges, or given ones.

python -m launch.judgements --checkpoints DIR [DIR ...] --data SOURCE --samples 4 --output judging
python -m launch.judgements --labelled FILE [FILE ...] --output judging
python -m launch.judgements --checkpoints DIR [DIR ...] --data SOURCE --unlabelled true --output responses

The output folder gets train.jsonl and test.jsonl, of different questions. A row has the fields of Libra Bench:
question, response, label (1 for right, 0 for wrong), subset, model, reference; `--data judging:FILE` reads them.

Without labels it gets responses.jsonl instead, for `launch.judge`: question, response, completion (with the thought
before it, for `launch.pairs --response-column completion`) and model. No verifier is asked.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from launch import cli
from nrt_jax import checkpoints, jsonl, tasks
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoded, Encoder, TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig
from nrt_jax.data.sources import open_rows
from nrt_jax.errors import UserError
from nrt_jax.evaluation.rejection import Sampled, answers
from nrt_jax.rewards import Rules, VerifierConfig, get_verifier
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged
from nrt_jax.training.judged import as_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgementsConfig:
    """Judging tasks.

    Attributes:
        output: Folder for train.jsonl and test.jsonl, or for responses.jsonl.
        checkpoints: Who answers the questions of `data`; each in any form that `launch.train` takes as a model.
        data: Questions and answers, as in `launch.train`.
        labelled: Files of responses that have labels already.
        unlabelled: Only samples answers, to be judged: no verifier, labels, parts or balance. Rows need an answer that
            is not empty, such as `-`, which nothing looks at; of a task, its training questions are answered.
        questions: Most questions of each source that are answered; 0 for all.
        held_out: Questions that a task holds out; all become tests.
        samples: Answers of each checkpoint to each question.
        test_share: Share of the questions that become tests, by a hash of the question, beside what tasks hold out.
        max_new_tokens: Of trace, delimiter and answer together.
        temperature: Divides the logits.
        seed: Of the sampling, and of a task's questions.
        batch_size: Answers decoded at once.
        dtype: Compute dtype of the models.
        verifier: How answers are judged; questions whose reference it does not find right are left out.
        dataset: Columns, bad rows, size and level of a task.
        text: Template and length limits; of a run's checkpoint, what is left at its default is that of the run.
        trace: Trace format; likewise.
    """

    output: str
    checkpoints: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    unlabelled: bool = False
    questions: int = 0
    held_out: int = 256
    samples: int = 4
    test_share: float = 0.1
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
        for name in ("held_out", "samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} cannot work; expected a number above 0")
        if self.questions < 0:
            raise UserError(f"questions: {self.questions} cannot work; expected 0 for all, or a number above it")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature: {self.temperature} cannot work; expected a number above 0")
        if not 0 <= self.test_share < 1:
            raise UserError(f"test_share: {self.test_share} cannot work; expected a number from 0 to below 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed: {self.seed} cannot work; expected a number from 0 to below 2**32")
        if bool(self.checkpoints) != bool(self.data) or not (self.data or self.labelled):
            raise UserError(
                f"data: {len(self.data)} sources with {len(self.checkpoints)} checkpoints and {len(self.labelled)} "
                "labelled files; expected --data and --checkpoints together, or --labelled"
            )
        if self.unlabelled and self.labelled:
            raise UserError("unlabelled: True cannot work with --labelled; expected --data and --checkpoints alone")
        get_verifier(self.verifier.name)


def main(config: JudgementsConfig) -> None:
    """Reads, samples, judges, chooses, writes."""
    config.validate()
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {config.output!r} is a file; expected the name of a folder")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):  # Before anything is sampled.
        raise UserError(f"output: {str(there)!r} cannot be written; choose another folder than {config.output!r}")
    parts, summary = _unlabelled(config) if config.unlabelled else _judging_tasks(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: cannot make {config.output!r}: {error.strerror}; choose another folder") from error
    for name, rows in parts.items():
        lines = [jsonl.Row(i, f"{name} {i}", row) for i, row in enumerate(rows, 1)]
        jsonl.write(str(folder / name), lines, field="output")
    print(f"{summary}\nwritten to {folder}: {' and '.join(parts)}")


def _judging_tasks(config: JudgementsConfig) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The rows of each file, and what is to be said of them."""
    rows, tests = [row for name in config.labelled for row in _labelled(name, config)], []
    for asked, is_held_out, row, answer in _sampled(config):
        judged = Judged(
            row.example.conversation,
            answer.text,
            int(answer.is_right),
            subset=asked.source,
            model=asked.checkpoint,
            reference=row.example.answer,
        )
        (tests if is_held_out else rows).append(judged)
    made = judging.make_tasks(rows, test_share=config.test_share, tests=tests)
    parts = {"train.jsonl": made.train, "test.jsonl": made.test}
    summary = f"{made}\nas many right as wrong responses of each subset and model"
    return {name: list(map(dataclasses.asdict, part)) for name, part in parts.items()}, summary


def _unlabelled(config: JudgementsConfig) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Likewise, for answers that are to be judged."""
    rows = [
        {
            "question": row.example.conversation,
            "response": answer.text,
            "completion": f"{answer.trace}{asked.trace.closing}{answer.text}",
            "model": asked.checkpoint,
        }
        for asked, _, row, answer in _sampled(config)
    ]
    if not rows:
        raise UserError(
            f"checkpoints: {', '.join(config.checkpoints)} gave no answer within {config.max_new_tokens} tokens; "
            "expected a trace, the delimiter (--trace.closing), an answer and EOS, or more --max-new-tokens"
        )
    return {"responses.jsonl": rows}, f"{len(rows)} responses to {len({row['question'] for row in rows})} questions"


def _labelled(name: str, config: JudgementsConfig) -> list[Judged]:
    source = open_rows(name, config.dataset, [field.name for field in dataclasses.fields(Judged)])
    rows = []
    for i in range(len(source)):
        try:
            row = judging.parse_row(source[i])
        except UserError as error:
            raise UserError(f"labelled: {name!r}, {source.where(i)}: {error}") from error
        rows.append(row if row.subset else dataclasses.replace(row, subset=name))
    return rows


@dataclasses.dataclass(frozen=True)
class _Questions:
    """What one checkpoint is to answer of one source: `train`, and of a task also what it holds out."""

    checkpoint: str
    source: str
    rules: Rules
    trace: TraceFormatConfig
    train: list[Encoded]
    held_out: list[Encoded]


def _questions(config: JudgementsConfig) -> list[_Questions]:
    """For each source and checkpoint; all is read and checked before anything is sampled."""
    found = []
    for name in config.data:
        dataset = dataclasses.replace(config.dataset, weights=(), held_out="")
        opened = open_sources([name], dataset, num_held_out=config.held_out, seed=config.seed)
        for checkpoint in config.checkpoints:
            text = as_trained(checkpoint, "text", config.text, TextConfig())
            trace = as_trained(checkpoint, "trace", config.trace, TraceFormatConfig())
            model, tokenizer = checkpoints.load_description(checkpoints.locate(checkpoint), dtype=config.dtype)
            trace_format, model, _, tokenizer = formats.resolve(trace, model, {}, tokenizer)
            encoder = Encoder(tokenizer, trace_format, text)
            longest = model.config.max_position_embeddings - config.max_new_tokens
            rules = Rules(encoder, config.verifier)
            check = None if config.unlabelled else rules.problem
            data = load(opened, encoder, dataset, num_held_out=config.held_out, max_length=longest, check=check)
            for line in data.report(with_trace=False):
                print(line, file=sys.stderr)
            is_task, most = tasks.is_task(name), config.questions or None
            parts = (data[:most], data.held_out[:most]) if is_task else ([*data, *data.held_out][:most], [])
            held_out = [] if config.unlabelled else parts[1]
            found.append(_Questions(checkpoint, name, rules, trace, parts[0], held_out))
    return found


def _sampled(config: JudgementsConfig) -> Iterator[tuple[_Questions, bool, Encoded, Sampled]]:
    """Who was asked, whether a task holds the question out, the question, an answer; of all checkpoints and sources."""
    for asked in _questions(config):
        model, params, tokenizer = checkpoints.load(asked.checkpoint, dtype=config.dtype)
        _, model, params, _ = formats.resolve(asked.trace, model, params, tokenizer)
        count = 0
        for questions, is_held_out in ((asked.train, False), (asked.held_out, True)):
            if not questions:
                continue
            for i, answer in answers(
                model,
                params,
                asked.rules,
                questions,
                samples=config.samples,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=config.seed,
                batch_size=config.batch_size,
                is_verified=not config.unlabelled,
            ):
                count += 1
                yield asked, is_held_out, questions[i], answer
        print(f"{asked.checkpoint}, {asked.source}: {count} responses", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, JudgementsConfig, "python -m launch.judgements", __doc__)
