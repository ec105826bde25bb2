"""Where examples come from: built-in tasks and files of question-answer rows."""

import dataclasses
import json
from pathlib import Path

from nrt_jax import tasks
from nrt_jax.data.example import Example
from nrt_jax.errors import UserError

#: A held-out part of a file is this share of its rows, if the user gives no file of their own.
HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the questions come from.

    Attributes:
        held_out: JSONL file with the questions for evaluation; empty for the task's own held-out split or, with a
            file, for the last tenth of its rows (at most `evaluation.questions`).
        question_column: Name of the question in a row.
        answer_column: Name of the answer in a row.
        level: Difficulty of a built-in task; empty for its default.
        size: Number of training questions that a built-in task generates.
    """

    held_out: str = ""
    question_column: str = "question"
    answer_column: str = "answer"
    level: str = ""
    size: int = 20000


def load(data: str, config: DataConfig, *, num_held_out: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples of a built-in task or a JSONL file.

    Args:
        data: Name of a task, or path of a file.
        config: Columns, level, sizes.
        num_held_out: Most held-out examples to return.
        seed: Of a task's generator.

    Raises:
        UserError: The name is neither, or a file cannot be used.
    """
    if data in tasks.TASKS:
        if config.held_out:
            raise UserError(f"dataset.held_out: {config.held_out!r} given with task {data!r}, which has its own split")
        task, level = tasks.get(data), {"level": config.level} if config.level else {}
        train = task.examples(config.size, seed, split="train", **level)
        return train, task.examples(num_held_out, seed, split="heldout", **level)
    if not Path(data).suffix and not Path(data).exists():
        known = ", ".join(sorted(tasks.TASKS))
        raise UserError(f"data: {data!r} is no task ({known}) and no file; expected one of them")
    rows = read_jsonl(data, config)
    if config.held_out:
        return rows, read_jsonl(config.held_out, config)[:num_held_out]
    count = min(num_held_out, max(1, int(HELD_OUT_SHARE * len(rows))))
    if len(rows) <= count:
        raise UserError(f"data: {data!r} has {len(rows)} row; expected at least 2, to hold one out for evaluation")
    return rows[:-count], rows[-count:]


def read_jsonl(path: str, config: DataConfig) -> list[Example]:
    """Reads one example a line.

    Raises:
        UserError: The file cannot be read, is empty, or has a row without question or answer; names file and row.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"data: cannot read {path!r}: {reason}; expected a JSONL file") from error
    examples = [_parse_row(path, number, line, config) for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise UserError(
            f"data: {path!r} is empty; expected one JSON object a line with {config.question_column!r} "
            f"and {config.answer_column!r}"
        )
    return examples


def _parse_row(path: str, number: int, line: str, config: DataConfig) -> Example:
    where = f"data: {path!r}, row {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error}); expected an object") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: is a {type(row).__name__}; expected an object")
    values = []
    for field, column in (("question", config.question_column), ("answer", config.answer_column)):
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            found = "is missing" if column not in row else f"is {value!r:.40}"
            raise UserError(
                f"{where}: {field} column {column!r} {found}; expected non-empty text "
                f"(set --dataset.{field}-column if it has another name)"
            )
        values.append(value)
    trace = row.get("trace")
    return Example(values[0], values[1], trace if isinstance(trace, str) else None)
