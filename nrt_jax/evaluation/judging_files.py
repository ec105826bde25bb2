"""Files to measure a judge with: responses with labels (Libra Bench) or pairs (RewardBench), as JSONL or Parquet.

    pointwise    question, response, label        index, model, reference, subset, response_with_cot of Libra Bench
    pairwise     prompt, chosen, rejected         subset; each text or a chat

and, where a judge has spoken already, what it said:

    pointwise    verdict       0, 1, "correct", "incorrect", or null where it cannot be read
                 p_correct     from 0 to 1; without a verdict, above 1/2 is `correct` and below `incorrect`
                 judgement     a judge's completion as text, or several, which vote (`nrt_jax.tasks.judging`)
    pairwise     score_chosen, score_rejected, or verdict_chosen_first, verdict_rejected_first: "A", "B" or null
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nrt_jax.data import files
from nrt_jax.data.example import BadRow, Example
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.errors import UserError
from nrt_jax.evaluation.judging import Preference, Verdict
from nrt_jax.jsonl import Row
from nrt_jax.tasks import judging
from nrt_jax.tasks.judging import Judged

#: What a judge's words may be in a file, and their labels.
_WORDS: dict[Any, int | None] = {"correct": 1, "incorrect": 0, None: None, 0: 0, 1: 1}
_PAIRS = DataConfig(pairs=True)
_GIVEN = ("verdict", "judgement", "p_correct")
_GIVEN_PAIR = ("score_chosen", "score_rejected", "verdict_chosen_first", "verdict_rejected_first")
_COLUMNS = ("index", "question", "response", "label", "model", "reference", "subset", "response_with_cot", "id")


def read(path: str, *, response_column: str = "response") -> list[Row]:
    """The rows of a file; of Parquet files the columns that are known here, and the named one.

    Raises:
        UserError: The file cannot be read, or holds no rows.
    """
    if not Path(path).is_file():
        raise UserError(f"input: cannot read {path!r}: no such file; expected a JSONL, JSON or Parquet file")
    wanted = dict.fromkeys((*_COLUMNS, response_column, *_PAIRS.columns, *_GIVEN, *_GIVEN_PAIR))
    try:
        if path.endswith(".parquet"):
            source = files.ParquetRows(path, [Path(path)], tuple(wanted))
        else:
            source = files.json_list(path) if path.endswith(".json") else files.jsonl(path)
        rows = []
        for i in range(len(source)):
            where = f"input: {path!r}, {source.where(i)}"
            try:
                values = source[i]
            except BadRow as problem:
                raise UserError(f"{where}: {problem}") from problem
            if not isinstance(values, dict):
                raise UserError(f"{where}: is a {type(values).__name__}; expected an object")
            try:
                json.dumps(values, allow_nan=False)  # What is read must be fit to be written, too.
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError(f"{where}: is no JSON ({error}); expected text and finite numbers") from error
            rows.append(Row(i + 1, where, values))
    except UserError as error:
        raise UserError(str(error).replace("data: ", "input: ", 1)) from error
    if not rows:
        raise UserError(f"input: {path!r} is empty; expected rows of responses or of pairs")
    return rows


def is_pairwise(rows: Sequence[Row], response_column: str = "response") -> bool:
    """Whether a file holds pairs.

    Raises:
        UserError: Its first row is neither a response nor a pair.
    """
    first = rows[0].values
    if response_column not in first and not {"chosen", "rejected"} <= first.keys():
        raise UserError(
            f"{rows[0].where}: has {', '.join(map(repr, first)) or 'no columns'}; expected 'question', "
            f"{response_column!r} and 'label', or 'prompt', 'chosen' and 'rejected'"
        )
    return response_column not in first


def response(row: Row, column: str = "response") -> Judged:
    """A response and its label.

    Args:
        row: Of a pointwise file.
        column: Which text of it is judged, such as Libra Bench's `response_with_cot`.

    Raises:
        UserError: The row is no response with a label.
    """
    try:
        return judging.parse_row(row.values | {"response": row.values.get(column)})
    except BadRow as problem:
        raise UserError(f"{row.where}: {problem}") from problem


def pair(row: Row) -> Example:
    """Two responses to one question, its earlier turns included.

    Raises:
        UserError: The row is no pair.
    """
    try:
        example = parse({name: value for name, value in row.values.items() if name != "answer"}, _PAIRS)
    except BadRow as problem:
        raise UserError(f"{row.where}: {problem}") from problem
    if example.pair is None:
        raise UserError(f"{row.where}: has no 'chosen' and 'rejected'; expected both")
    return Example(example.conversation, example.pair[0], pair=example.pair)


def given_verdict(row: Row, judged: Judged) -> Verdict:
    """What the row says that a judge said of its response.

    Raises:
        UserError: It says nothing, or no verdict or probability.
    """
    known = [name for name in _GIVEN if name in row.values]
    if not known:
        raise UserError(f"{row.where}: holds no judgement ({', '.join(_GIVEN)}); expected one, or --checkpoint DIR")
    p_correct, verdict = _number(row, "p_correct"), None
    if p_correct is not None and not 0 <= p_correct <= 1:
        raise UserError(f"{row.where}: 'p_correct' is {p_correct}; expected a number from 0 to 1")
    if "verdict" in known:
        verdict = row.values["verdict"]
        if isinstance(verdict, list | dict) or verdict not in _WORDS:
            raise UserError(f"{row.where}: 'verdict' is {verdict!r:.40}; expected 0, 1, 'correct', 'incorrect' or null")
        verdict = _WORDS[verdict]
    elif "judgement" in known:
        verdict = judging.vote([judging.parse_judgement(text)[1] for text in _texts(row, "judgement")])
    elif p_correct is not None and p_correct != 0.5:
        verdict = int(p_correct > 0.5)
    return as_verdict(judged, verdict, p_correct)


def as_verdict(judged: Judged, verdict: int | None, p_correct: float | None) -> Verdict:
    """A judge's words about a response, to be measured."""
    length = len(judged.response)
    return Verdict(judged.label, verdict, p_correct, subset=judged.subset, model=judged.model, length=length)


def given_preference(row: Row, example: Example) -> Preference:
    """What the row says that a judge said of its pair.

    Raises:
        UserError: It says nothing, or something else.
    """
    scores = tuple(_number(row, name) for name in _GIVEN_PAIR[:2])
    if None not in scores:
        return as_preference(row, example, scores)
    if not set(_GIVEN_PAIR[2:]) <= row.values.keys():
        raise UserError(
            f"{row.where}: holds no judgement ('score_chosen' and 'score_rejected', or 'verdict_chosen_first' and "
            "'verdict_rejected_first'); expected one, or --checkpoint DIR"
        )
    verdicts = tuple(row.values[name] for name in _GIVEN_PAIR[2:])
    for name, verdict in zip(_GIVEN_PAIR[2:], verdicts, strict=True):
        if verdict not in ("A", "B", None):
            raise UserError(f"{row.where}: {name!r} is {verdict!r:.40}; expected 'A', 'B' or null")
    return as_preference(row, example, None, verdicts)


def as_preference(row: Row, example: Example, scores, verdicts=(None, None)) -> Preference:
    """A judge's words about a pair, to be measured."""
    lengths = (len(example.pair[0]), len(example.pair[1]))
    return Preference(scores, verdicts, subset=str(row.values.get("subset") or ""), lengths=lengths)


def _number(row: Row, name: str) -> float | None:
    value = row.values.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not is_number:
        raise UserError(f"{row.where}: {name!r} is {value!r:.40}; expected a finite number")
    return value


def _texts(row: Row, name: str) -> list[str]:
    value = row.values[name]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{row.where}: {name!r} is {value!r:.40}; expected a text, or a list of texts")
    return texts
