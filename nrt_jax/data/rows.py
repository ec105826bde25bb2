"""From a row of a source to an example: columns by config, question-answer rows and chats."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from nrt_jax.data.example import BadRow, Example

#: Who may speak in a chat.
ROLES = ("system", "user", "assistant")
#: What published pairs call the question.
PROMPT_COLUMN = "prompt"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the questions come from.

    Attributes:
        held_out: Source with the questions for evaluation, written as in `--data`; empty for the task's own held-out
            split or, with a file, for the last tenth of its rows (at most `evaluation.questions`).
        weights: How often a question comes from each source of `--data`; empty for all rows equally often.
        question_column: Name of the question in a row.
        answer_column: Name of the answer in a row.
        trace_column: Name of the reasoning trace in a row, which may lack it or hold null.
        messages_column: Name of the chat in a row without a question: its last assistant turn is the answer, all
            before it the question.
        pairs: A row holds a question (or a `prompt`) and two completions, text or chats: `--objective dpo` learns from
            both and sets this; other objectives learn from the chosen one.
        chosen_column: Name of the better completion of a pair.
        rejected_column: Name of the worse one.
        bad_rows: `skip` leaves out and counts rows that are no examples; `stop` refuses the first of them.
        tfds_dir: Folder of the TFDS data sets; empty for `~/tensorflow_datasets`.
        workers: Processes that read and tokenize ahead of the run; 0 for none.
        level: Difficulty of a built-in task, such as `mini`, `2` or, for 1 and 2, `1-2`; empty for its default.
        size: Number of training questions that a built-in task generates.
    """

    held_out: str = ""
    weights: tuple[float, ...] = ()
    question_column: str = "question"
    answer_column: str = "answer"
    trace_column: str = "trace"
    messages_column: str = "messages"
    pairs: bool = False
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    bad_rows: Literal["skip", "stop"] = "skip"
    tfds_dir: str = ""
    workers: int = 0
    level: str = ""
    size: int = 20000

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read."""
        names = (self.question_column, self.answer_column, self.trace_column, self.messages_column)
        return (*names, PROMPT_COLUMN, self.chosen_column, self.rejected_column) if self.pairs else names


def parse(row: Any, config: DataConfig) -> Example:
    """The example of a row: a pair if those are asked for and it has one, a chat if it has messages and no question.

    Raises:
        BadRow: The row is no example.
    """
    if isinstance(row, Example):
        return row
    if not isinstance(row, Mapping):
        raise BadRow("is not an object", f"is a {type(row).__name__}; expected an object")
    if config.pairs and any(row.get(name) is not None for name in (config.chosen_column, config.rejected_column)):
        return _parse_pair(row, config)
    trace = row.get(config.trace_column)
    if trace is not None:
        trace = _checked("trace", config.trace_column, trace, "text or null (set --dataset.trace-column)")
    if row.get(config.question_column) is None and row.get(config.messages_column) is not None:
        *history, (_, question), (_, answer) = _turns(row[config.messages_column], config.messages_column)
        return Example(question, answer, trace, tuple(history))
    question, answer = (
        _required(field, column, row)
        for field, column in (("question", config.question_column), ("answer", config.answer_column))
    )
    return Example(question, answer, trace)


def _parse_pair(row: Mapping[str, Any], config: DataConfig) -> Example:
    """The example of a row with two completions; its answer is the row's own or else the chosen completion."""
    asked = next((name for name in (config.question_column, PROMPT_COLUMN) if row.get(name) is not None), None)
    chats = []
    for field, column in (("chosen", config.chosen_column), ("rejected", config.rejected_column)):
        if row.get(column) is None:
            raise BadRow(f"{field} is missing", f"{field} column {column!r} is missing; expected text or a chat")
        chats.append(_completed(row, asked, column))
    *history, (_, question), (_, chosen) = chats[0]
    rejected = chats[1][-1][1]
    if chats[0][:-1] != chats[1][:-1]:
        raise BadRow("chosen and rejected have different prompts", "the turns before chosen and rejected differ")
    if chosen == rejected:
        raise BadRow("chosen equals rejected", f"chosen equals rejected, {chosen!r:.40}; expected two completions")
    has_answer = row.get(config.answer_column) is not None
    answer = _required("answer", config.answer_column, row) if has_answer else chosen
    return Example(question, answer, history=tuple(history), pair=(chosen, rejected))


def _completed(row: Mapping[str, Any], asked: str | None, column: str) -> list[tuple[str, str]]:
    """The turns of a prompt and one of its completions, each text or a chat; a chat may hold the prompt itself."""
    completion, prompt = row[column], None if asked is None else row[asked]
    if isinstance(completion, str | bytes):
        if asked is None:
            raise BadRow("question is missing", "question column is missing; expected text or a chat before the pair")
        completion = [{"role": "assistant", "content": completion}]
    turns = _as_list(completion, column)
    holds_prompt = len(turns) > 1 or prompt is None
    if not holds_prompt:
        said = [{"role": "user", "content": prompt}] if isinstance(prompt, str | bytes) else _as_list(prompt, asked)
        turns = [*said, *turns]
    return _turns(turns, column)


def _required(field: str, column: str, row: Mapping[str, Any]) -> str:
    """A column that must hold text with something in it."""
    flag = f"(set --dataset.{field}-column if it has another name"
    flag += ", --dataset.messages-column for chats)" if field == "question" else ")"
    if column not in row:
        raise BadRow(f"{field} is missing", f"{field} column {column!r} is missing; expected non-empty text {flag}")
    text = _checked(field, column, row[column], f"non-empty text {flag}")
    if not text.strip():
        raise BadRow(f"{field} is empty", f"{field} column {column!r} is {text!r:.40}; expected non-empty text {flag}")
    return text


def _checked(field: str, column: str, value: Any, expected: str) -> str:
    """What a column holds, which must be text."""
    if not isinstance(value, str | bytes):
        raise BadRow(f"{field} is not text", f"{field} column {column!r} is {value!r:.40}; expected {expected}")
    return _text(field, column, value)


def _text(field: str, column: str, value: str | bytes) -> str:
    """Text that a tokenizer takes: TFDS gives bytes, and JSON can spell halves of a surrogate pair."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError as error:
        detail = f"{field} column {column!r} is not UTF-8 text ({error.reason}); expected valid text"
        raise BadRow(f"{field} is not UTF-8", detail) from error
    return text


def _turns(messages: Any, column: str) -> list[tuple[str, str]]:
    """(role, content) of all turns up to the last assistant turn, which answers a user.

    Args:
        messages: A list of objects or, as TFDS and Arrow may hold it, an object of two lists.
        column: Where they were found.
    """
    turns = []
    for turn in _as_list(messages, column):
        role, content = turn.get("role"), turn.get("content")
        role = role.decode(errors="replace") if isinstance(role, bytes) else role
        if role not in ROLES:
            raise _bad_chat(column, "has a turn of an unknown role", f"{', '.join(ROLES)}; found {role!r:.40}")
        if not isinstance(content, str | bytes):
            raise _bad_chat(column, "has a turn without text", f"text as content; found {content!r:.40}")
        turns.append((role, _text("chat", column, content)))
    last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=None)
    if last is None:
        raise _bad_chat(column, "has no assistant turn", "one, whose content is the answer")
    if last == 0 or turns[last - 1][0] != "user":
        raise _bad_chat(column, "has no user turn before its last assistant turn", "the question there")
    if not turns[last][1].strip() or not turns[last - 1][1].strip():
        raise _bad_chat(column, "has an empty question or answer", "text in its last user and assistant turns")
    return turns[: last + 1]


def _as_list(messages: Any, column: str) -> list[Mapping[str, Any]]:
    """The turns of a chat, not looked at."""
    if isinstance(messages, Mapping) and {"role", "content"} <= messages.keys():
        try:
            pairs = zip(messages["role"], messages["content"], strict=True)
            messages = [{"role": role, "content": content} for role, content in pairs]
        except (TypeError, ValueError):
            problem = "has roles and contents that do not match"
            raise _bad_chat(column, problem, "two lists of the same length") from None
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) for turn in messages):
        raise _bad_chat(column, "is not a list of turns", "a list of objects with 'role' and 'content'")
    return messages


def _bad_chat(column: str, problem: str, expected: str) -> BadRow:
    return BadRow(f"chat {problem}", f"chat column {column!r} {problem}; expected {expected}")
