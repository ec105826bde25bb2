"""V2V: questions whose answers can be verified become judging tasks, whose verdicts can be verified (arXiv 2507.21645).

A judging task asks whether a response to a question is correct, and its label, 0 or 1, is known. To a model it is a
question like any other, whose reference answer is the verdict:

    question  What is 2 + 2?                                            x of the judge
              A response to this question: 5 Is the response ..
    z         2 + 2 is 4, and the response says 5.                      the judge's thought
    answer    <verdict>incorrect</verdict>                              all that it writes after its thought

Known: what V2V is, and the fields of Libra Bench, which files of such rows have here, too. Ours: the prompt, the form
of a verdict, and how rows are chosen.

The verdict is read from what the judge wrote after its thought, and from nothing else. What question and response say,
tags of verdicts included, is a part of the prompt, and no prompt is ever parsed.
"""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nrt_jax.data.example import BadRow, Example
from nrt_jax.tasks.puzzle import MAX_ANSWER_CHARACTERS

#: Before the name of a file of judged responses, as `--data` takes it.
PREFIX = "judging:"
#: Words of a verdict, by label.
VERDICTS = ("incorrect", "correct")
#: Columns that a row must have.
COLUMNS = ("question", "response", "label")

_AFTER_QUESTION = "\n\nA response to this question:\n"
_OPENING, _CLOSING = "<verdict>", "</verdict>"
_ANSWER = re.compile(rf"\s*{_OPENING}\s*({'|'.join(VERDICTS)})\s*{_CLOSING}\s*")
_TAG = re.compile(r"</?\s*verdict", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Judged:
    """A response whose label is known; the fields are those of Libra Bench.

    Attributes:
        question: What was asked.
        response: What a model answered, which may be empty.
        label: 1 if the response is right, 0 if it is wrong.
        subset: Where the question comes from.
        model: Who answered.
        reference: The right answer, if it is known; a judge never sees it.
    """

    question: str
    response: str
    label: int
    subset: str = ""
    model: str = ""
    reference: str = ""

    @property
    def question_key(self) -> str:
        """The question without its spacing and letter case: what may not be in train and test."""
        return _key(self.question)

    def example(self, trace: str | None = None) -> Example:
        """The judging task, perhaps with a thought as its demonstration."""
        return Example(prompt(self.question, self.response), verdict(self.label), trace)


def prompt(question: str, response: str) -> str:
    """What a judge is asked about a response; both texts stand in it as they are."""
    return (
        f"{question}{_AFTER_QUESTION}{response}\n\nIs the response correct? Think, then write "
        f"{verdict(1)} or {verdict(0)} and nothing else."
    )


def question_key(text: str) -> str:
    """`Judged.question_key`, given a judge's prompt: of what stands before the response; else of all the text."""
    return _key(text.partition(_AFTER_QUESTION)[0])


def _key(question: str) -> str:
    return " ".join(question.split()).casefold()


def verdict(label: int) -> str:
    """What a judge answers, 1 for a right response."""
    return f"{_OPENING}{VERDICTS[label]}{_CLOSING}"


def vote(verdicts: Sequence[int | None]) -> int | None:
    """The label of more verdicts, the first one's where they are equal; None where none can be read."""
    counts = collections.Counter(verdict for verdict in verdicts if verdict is not None)
    return max(counts, key=counts.__getitem__, default=None)


def parse_verdict(thought: str, answer: str | None) -> int | None:
    """The label that a judge gave, 0 or 1.

    All that follows the thought is the verdict, spaces aside: other words beside it, a second one, one inside the
    other, or tags of verdicts in the thought leave none. So a judge that only repeats what a response says of itself
    has given no verdict.

    Args:
        thought: What the judge wrote before the delimiter.
        answer: What it wrote after it, without EOS; None where it never wrote the delimiter.

    Returns:
        None where there is no verdict; so where the answer has more than `MAX_ANSWER_CHARACTERS`.
    """
    if answer is None or len(answer) > MAX_ANSWER_CHARACTERS or _TAG.search(thought):
        return None
    found = _ANSWER.fullmatch(answer)
    return None if found is None else VERDICTS.index(found[1])


def parse_judgement(text: str, opening: str = "<think>", closing: str = "</think>") -> tuple[str, int | None]:
    """Thought and label of a judge's whole completion as text.

    Args:
        text: What the judge wrote, from its thought on, without EOS and without the prompt.
        opening: May stand at its beginning; elsewhere it leaves no verdict.
        closing: The delimiter; a second one leaves no verdict. Where neither is there, the judge did not think, and all
            of the text is its answer.
    """
    stripped = text.lstrip()
    text = stripped.removeprefix(opening)
    thought, *answers = text.split(closing)
    if not answers and text == stripped:
        thought, answers = "", [text]
    is_clean = len(answers) == 1 and opening not in text
    return thought, parse_verdict(thought, answers[0] if is_clean else None)


def parse_row(row: Any) -> Judged:
    """A judged response from the columns of Libra Bench; others of its columns than those of `Judged` are passed over.

    Raises:
        BadRow: One of `COLUMNS` is missing or of another type, or the question is empty.
    """
    if not isinstance(row, Mapping):
        raise BadRow("is not an object", f"is a {type(row).__name__}; expected an object")
    for column in COLUMNS:
        if row.get(column) is None:
            raise BadRow(f"{column} is missing", f"column {column!r} is missing; expected {', '.join(COLUMNS)}")
    texts = {name: _text(name, row.get(name)) for name in ("question", "response", "subset", "model", "reference")}
    if not texts["question"].strip():
        raise BadRow("question is empty", f"column 'question' is {row['question']!r:.40}; expected non-empty text")
    label = row["label"]
    if label not in (0, 1):
        raise BadRow("label is not 0 or 1", f"column 'label' is {label!r:.40}; expected 1 for a right response, or 0")
    return Judged(**texts, label=int(label))


def _text(name: str, value: Any) -> str:
    """A column as text: TFDS gives bytes, and a reference may be a number."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    value = "" if value is None else str(value) if isinstance(value, int | float) else value
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text", f"column {name!r} is {value!r:.40}; expected text")
    return value


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Judging tasks made of judged responses.

    Attributes:
        train: To learn from.
        test: To measure with; of other questions.
        num_repeated: Responses that were left out since the same one to the same question is there.
        num_contradicted: Responses that were left out since the same one has both labels.
        num_unbalanced: Responses that were left out since their subset and model have too few of the other label.
    """

    train: list[Judged]
    test: list[Judged]
    num_repeated: int
    num_contradicted: int
    num_unbalanced: int

    def __str__(self) -> str:
        return (
            f"{len(self.train)} judging tasks to train on, {len(self.test)} to test on, of other questions; left out: "
            f"{self.num_repeated} repeated, {self.num_contradicted} with both labels, {self.num_unbalanced} to balance"
        )


def make_tasks(rows: Sequence[Judged], *, test_share: float, tests: Sequence[Judged] = ()) -> Tasks:
    """Chooses judging tasks: each response once, no question in both parts, as many right as wrong ones of each cell.

    A cell is what one model answered to one subset, in one part. What is chosen does not depend on the order of the
    rows; they stay in theirs.

    Args:
        rows: Judged responses.
        test_share: Share of the questions that is held out, by a hash of the question.
        tests: More rows, whose questions are held out for certain.
    """
    rows, held_out = [*rows, *tests], {row.question_key for row in tests}
    unique, num_contradicted = deduplicate(rows)
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    for row in unique:
        parts[row.question_key in held_out or is_test(row, test_share)].append(row)
    train, test = map(balance, parts)
    return Tasks(
        train=train,
        test=test,
        num_repeated=len(rows) - len(unique) - num_contradicted,
        num_contradicted=num_contradicted,
        num_unbalanced=len(unique) - len(train) - len(test),
    )


def is_test(row: Judged, share: float) -> bool:
    """Whether a row's question is held out; all responses to one question go the same way."""
    return int.from_bytes(_digest(row.question_key)[:8], "big") < share * 2**64


def deduplicate(rows: Iterable[Judged]) -> tuple[list[Judged], int]:
    """The first of equal responses to one question, and how many rows were left out since theirs has both labels."""
    labels = collections.defaultdict(set)
    first: dict[tuple[str, str], Judged] = {}
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in rows:
        key = (row.question_key, row.response.strip())
        labels[key].add(row.label)
        first.setdefault(key, row)
        count[key] += 1
    kept = [row for key, row in first.items() if len(labels[key]) == 1]
    return kept, sum(number for key, number in count.items() if len(labels[key]) > 1)


def balance(rows: Sequence[Judged]) -> list[Judged]:
    """As many right as wrong responses of each model to each subset, chosen by a hash of what they say."""
    cells: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        cells.setdefault((row.subset, row.model), ([], []))[row.label].append(i)

    def order(i: int) -> bytes:
        return _digest(f"{rows[i].question}\0{rows[i].response}")

    kept = []
    for cell in cells.values():
        size = min(map(len, cell))
        kept += [i for label in cell for i in sorted(label, key=order)[:size]]
    return [rows[i] for i in sorted(kept)]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
