"""Evaluate a checkpoint: by what it writes, by how likely it finds the known answer, and against another one.

python -m launch.eval --checkpoint DIR --data SOURCE --samples 8 --output eval.json

Accuracy of greedy completions, avg@k, pass@k and majority@k; c_i of the reference answer after the checkpoint's own
traces and after the empty one, by how hard tokens are; trace length and entropy. Everything with its interval over
questions, as a table and as JSON, and every question's record beside it as JSONL. --against DIR evaluates a second
checkpoint on the same questions and compares the two; --compare A.json B.json does so with results that exist.
--lm-eval TASKS runs tasks of EleutherAI's lm-eval instead (docs/evaluation.md).
"""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launch import cli
from launch.score import as_in_training
from nrt_jax import checkpoints, json_file, jsonl
from nrt_jax.checkpoints import Location
from nrt_jax.data import formats
from nrt_jax.data.encode import Encoded, Encoder, TextConfig
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import Limits, generation, results
from nrt_jax.evaluation.attempts import DecodingConfig, Record, attempt
from nrt_jax.evaluation.questions import open_questions, shares, take
from nrt_jax.rewards import Rules, VerifierConfig, get_verifier
from nrt_jax.training import workdir
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.config_io import from_dict


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """How tasks of lm-eval are run.

    Attributes:
        include_path: Folder of task files of one's own (YAML), beside those that lm-eval ships.
        num_fewshot: Examples before each question; None for each task's own number.
        limit: Most questions of a task; None for all.
        apply_chat_template: Puts requests into the tokenizer's chat template.
        thinking: In tasks that generate, the checkpoint reasons first, with its own template and trace format, for at
            most `decoding.max_trace_length` tokens; lm-eval sees what follows the delimiter.
    """

    include_path: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    thinking: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation of a checkpoint.

    Attributes:
        checkpoint: Folder of a model in Hugging Face format, an Orbax checkpoint, a run's folder, or a PEFT adapter's.
        data: Questions and answers, as in `launch.train`: all rows of files, the held-out split of tasks. Without it, a
            run's checkpoint is asked what the run has held out.
        output: JSON file to write. The records of questions go to a file of the same name that ends in .jsonl, those
            of `--against` to one that ends in .against.jsonl.
        samples: K, sampled completions of each question beside the greedy one; 0 for none.
        questions: Most questions of all sources together; the first ones of each, equally many where it has them.
        against: A second checkpoint, to be evaluated with the same settings on the same questions, and compared.
        compare: Two results of earlier evaluations, to be compared; nothing is evaluated.
        lm_eval: Tasks of lm-eval, such as `gsm8k,mmlu`, to be run in place of `data`.
        harness: How they are run.
        dtype: Compute dtype of the model.
        decoding: How completions are sampled.
        verifier: How answers are judged; of a run's checkpoint by default as in the run.
        dataset: Columns, bad rows and level of a task.
        text: Template and length limits; of a run's checkpoint by default those of the run.
        trace: Trace format; of a run's checkpoint by default that of the run.
    """

    checkpoint: str = ""
    data: tuple[str, ...] = ()
    output: str = "eval.json"
    samples: int = 0
    questions: int = 512
    against: str = ""
    compare: tuple[str, ...] = ()
    lm_eval: str = ""
    harness: HarnessConfig = HarnessConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    decoding: DecodingConfig = DecodingConfig()
    verifier: VerifierConfig = VerifierConfig()
    dataset: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    trace: TraceFormatConfig = TraceFormatConfig()

    def validate(self) -> None:
        """Raises UserError for values that cannot work."""
        if self.compare and (len(self.compare) != 2 or self.checkpoint):
            found = f"{len(self.compare)} files" + (" and --checkpoint" if self.checkpoint else "")
            raise UserError(f"compare: {found}; expected two results of this command, and no checkpoint")
        if not self.compare and not self.checkpoint:
            raise UserError("checkpoint: missing; expected a model's folder, or --compare A.json B.json")
        if Path(self.output).suffix != ".json":
            raise UserError(f"output: {self.output!r} cannot work; expected a name that ends in .json")
        if self.lm_eval and (self.data or self.against):
            raise UserError(f"lm_eval: {self.lm_eval!r} given with --data or --against; expected one or the other")
        least = {"questions": 1, "samples": 0, "decoding.max_trace_length": 1, "decoding.max_answer_length": 0}
        least |= {"decoding.batch_size": 1, "decoding.chunk_size": 1, "harness.limit": 1, "harness.num_fewshot": 0}
        for name, low in least.items():
            value = self
            for part in name.split("."):
                value = getattr(value, part)
            if value is not None and value < low:
                raise UserError(f"{name}: {value} cannot work; expected a number from {low} on")
        if not (math.isfinite(self.decoding.temperature) and self.decoding.temperature > 0):
            raise UserError(f"decoding.temperature: {self.decoding.temperature} cannot work; expected a number above 0")
        if not 0 <= self.decoding.seed < 2**32:
            raise UserError(f"decoding.seed: {self.decoding.seed} cannot work; expected a number from 0 to below 2**32")
        get_verifier(self.verifier.name)


def as_in_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's checkpoint brings with it, by dotted field name: template, formats, verifier, length of traces."""
    found = as_in_training(values)
    if found:
        run = _config_of(checkpoints.locate(values["checkpoint"]).run)
        found |= {f"verifier.{name}": value for name, value in vars(run.verifier).items()}
        found["decoding.max_trace_length"] = run.rollout.max_trace_length
    return found


def main(config: EvalConfig) -> None:
    """Evaluates or compares, prints, writes."""
    config.validate()
    jsonl.check_writable(config.output, field="output")
    if config.compare:
        first, second = (_read(path) for path in config.compare)
        compared = results.compare(first, second, config.decoding.seed)
        workdir.write_json(config.output, {"compare": list(config.compare), "comparison": compared})
        print(f"{results.comparison_table(compared)}\nwritten to {config.output}")
    elif config.lm_eval:
        _run_harness(config)
    else:
        _evaluate(config)


def _evaluate(config: EvalConfig) -> None:
    started = time.monotonic()
    names = [config.checkpoint] + [config.against] * bool(config.against)
    places = [checkpoints.locate(name) for name in names]  # A wrong name before hours of work.
    opened = (
        open_questions(config.data, config.dataset, config.questions, config.decoding.seed) if config.data else None
    )
    if opened is None and places[0].run is None:
        raise UserError(f"data: missing, and {config.checkpoint!r} is no run's checkpoint; expected questions to ask")
    evaluated = [_records(config, place, places[0], opened) for place in places]
    for records, ending in zip(evaluated, ("", ".against"), strict=False):
        rows = [jsonl.Row(i, f"question {i}", dataclasses.asdict(record)) for i, record in enumerate(records)]
        jsonl.write(str(Path(config.output).with_suffix(f"{ending}.jsonl")), rows, field="output")
    compared = results.compare(*evaluated, config.decoding.seed) if config.against else None
    summaries = [_summary(records, config) for records in evaluated]
    content = {"checkpoint": config.checkpoint, "data": list(config.data), "samples": config.samples}
    content |= {"decoding": vars(config.decoding), "verifier": config.verifier.name, **summaries[0]}
    if compared is not None:
        content |= {"against": {"checkpoint": config.against, **summaries[1]}, "comparison": compared}
    workdir.write_json(config.output, content)
    for name, summary in zip(names, summaries, strict=True):
        table = results.table(summary["metrics"], summary["by_difficulty"], summary.get("by_source", {}))
        print(f"{name}\n{table}\n")
    if compared is not None:
        print(f"first {names[0]}, second {names[1]}\n{results.comparison_table(compared)}\n")
    records = Path(config.output).with_suffix(".jsonl")
    print(f"{time.monotonic() - started:.1f} s; written to {config.output}, every question to {records}")


def _summary(records: Sequence[Record], config: EvalConfig) -> dict[str, Any]:
    seed = config.decoding.seed
    sources = results.by_source(records, seed)
    return {
        "questions": len(records),
        "metrics": results.summarise(records, seed),
        "by_difficulty": results.by_difficulty(records, seed),
    } | ({"by_source": sources} if sources else {})


def _records(config: EvalConfig, location: Location, asked: Location, opened) -> list[Record]:
    """Loads a checkpoint, asks it, and lets it go; `asked` is the one whose run has held questions out."""
    plain, tokenizer = checkpoints.load_description(location, dtype=config.dtype)
    params = checkpoints.load_params(location, plain, param_dtype=config.dtype)
    trace_format, model, params, tokenizer = formats.resolve(config.trace, plain, params, tokenizer)
    encoder = Encoder(tokenizer, trace_format, config.text)
    longest = model.config.max_position_embeddings
    if opened is None:
        parts = _held_out_of_run(_config_of(asked.run), encoder, longest, config.questions)
    else:
        parts = take(opened, encoder, config.dataset, config.questions, longest - config.decoding.max_trace_length)
    rows = [row for part in parts.values() for row in part]
    rules, longest_answer = Rules(encoder, config.verifier), max(len(row.answer) for row in rows)
    limits = Limits(
        trace=config.decoding.max_trace_length,
        answer=config.decoding.max_answer_length or longest_answer + rules.num_tag_tokens,
        chunk_size=config.decoding.chunk_size,
    )
    sources = [name for name, part in parts.items() for _ in part]
    answered = _ask(config, model, params, rules, rows, limits)
    return [dataclasses.replace(record, source=name) for record, name in zip(answered, sources, strict=True)]


def _ask(config: EvalConfig, model, params, rules: Rules, rows: Sequence[Encoded], limits: Limits) -> list[Record]:
    done, finished = {}, 0
    asked = attempt(model, params, rules, rows, samples=config.samples, limits=limits, config=config.decoding)
    for finished, found in enumerate(asked, 1):
        done |= found
        if finished % config.decoding.batch_size == 0:
            completions = max(0, finished - len(rows)) * config.samples + min(finished, len(rows))
            print(f"{completions} of {len(rows) * (1 + config.samples)} completions", file=sys.stderr)
    return [done[i] for i in range(len(rows))]


def _held_out_of_run(config: TrainConfig, encoder: Encoder, longest: int, most: int) -> dict[str, list[Encoded]]:
    """The questions on which a run is evaluated, by their source.

    Args:
        config: Of the run.
        encoder: With the run's template and limits.
        longest: The model's `max_position_embeddings`.
        most: Most of them, divided over the sources.
    """
    held_out = config.evaluation.questions
    opened = open_sources(config.data, config.rows, num_held_out=held_out, seed=config.seed)
    max_length = min(config.rollout.max_length or longest, longest)
    data = load(opened, encoder, config.rows, num_held_out=held_out, max_length=max_length)
    parts: dict[str, list[Encoded]] = {}
    for row, source in zip(data.held_out, data.held_out_sources, strict=True):
        parts.setdefault(source, []).append(row)
    counts = shares({name: len(part) for name, part in parts.items()}, most)
    return {name: part[: counts[name]] for name, part in parts.items()}


def _config_of(run: Path) -> TrainConfig:
    return from_dict(TrainConfig, workdir.read_config(run), where=str(run / workdir.CONFIG_FILE))


def _read(path: str) -> list[Record]:
    """The records beside a results file.

    Raises:
        UserError: One of the two is no file of this command.
    """
    try:
        content = json_file.read(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"compare: cannot read {path!r}: {error}; expected a results file of this command") from error
    if not isinstance(content, dict) or "metrics" not in content:
        raise UserError(f"compare: {path!r} has no metrics; expected a results file of launch.eval with --data")
    rows = jsonl.read(str(Path(path).with_suffix(".jsonl")), field="compare", adds=())
    try:
        return [Record.of_json(row.values) for row in rows]
    except (TypeError, KeyError) as error:
        raise UserError(f"compare: the rows beside {path!r} are no records of launch.eval ({error})") from error


def _run_harness(config: EvalConfig) -> None:
    try:
        from nrt_jax.evaluation import lm_eval as harness
    except ImportError as error:
        raise UserError(
            f"lm_eval: needs the package lm-eval, which cannot be imported ({error}); pip install 'nrt_jax[eval]'"
        ) from error
    location = checkpoints.locate(config.checkpoint)
    options = vars(config.harness).copy()
    is_thinking, include_path = options.pop("thinking"), options.pop("include_path")
    tasks = harness.open_tasks(config.lm_eval.split(","), include_path)  # A wrong name before minutes of loading.
    model, params, tokenizer = checkpoints.load(config.checkpoint, dtype=config.dtype)
    thinking = None
    if is_thinking:
        trace_format, model, params, tokenizer = formats.resolve(config.trace, model, params, tokenizer)
        thinking = harness.Thinking(Encoder(tokenizer, trace_format, config.text), config.decoding.max_trace_length)
    stop_ids = generation.stop_ids(location.base, tokenizer, model.config.vocab_size)
    language_model = harness.NRTModel(model, params, tokenizer, stop_ids, config.decoding, thinking)
    found = harness.run(language_model, tasks, **options)
    rows = [jsonl.Row(i, f"sample {i}", sample) for i, sample in enumerate(found.samples)]
    jsonl.write(str(Path(config.output).with_suffix(".jsonl")), rows, field="output")
    settings = {"checkpoint": config.checkpoint, "harness": vars(config.harness), "decoding": vars(config.decoding)}
    workdir.write_json(config.output, settings | found.content)
    print(f"{found.table}\nwritten to {config.output}")


if __name__ == "__main__":
    cli.run(main, EvalConfig, "python -m launch.eval", __doc__, implied=as_in_run)
