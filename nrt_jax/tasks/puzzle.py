"""What the tasks of the meta-abilities (deduction, induction, abduction; arXiv 2505.10554) share.

A puzzle is content that is put into words; a task draws puzzles, from a seed, and judges answers. Train and held-out
split are disjoint whatever the seeds, because a hash of the content alone decides which split a puzzle is in.

Known: levels "1" to "5", each with numbers of its own. Ours: mixtures of levels such as "1-2"; the level "mini", so
small that the embedded model can learn it in minutes; the words; the worked solutions, for pretraining the embedded
model and for hints.
"""

import abc
import hashlib
import itertools
import random
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Literal

from nrt_jax.data.example import Example
from nrt_jax.errors import UserError, unknown_name

Verdict = Literal["exact", "wrong", "unparseable"]

SPLITS = ("train", "heldout")
#: One puzzle in this many is held out.
HELD_OUT_ONE_IN = 8

#: What a pretraining document may have between its question and its answer.
KINDS = ("useful", "lazy", "sloppy", "filler", "irrelevant", "empty")

NUM_LEVELS = 5
#: The name of level 0.
MINI = "mini"

#: Longer answers are not looked at.
MAX_ANSWER_CHARACTERS = 10_000

_FILLERS = ("Let me think about this.", "This is a puzzle.", "Okay, let me see.", "Hmm, this is not easy.")
_IRRELEVANT = ("The weather is nice today.", "There are many letters.", "Puzzles are fun.")
_LEVELS = re.compile(r"([1-5])(?:-([1-5]))?")


def split_of(content: str) -> str:
    """The split that a puzzle belongs to, by a hash of its content."""
    digest = hashlib.sha256(content.encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0 else "train"


class Puzzle(abc.ABC):
    """The content of one question, before it is put into words."""

    @property
    @abc.abstractmethod
    def content(self) -> str:
        """What makes this puzzle another than the next: it decides the split."""

    @abc.abstractmethod
    def question(self) -> str:
        """The puzzle in words, with the form that the answer has."""

    @abc.abstractmethod
    def answer(self) -> str:
        """The reference answer, the only right one."""

    @abc.abstractmethod
    def steps(self) -> list[str]:
        """The worked solution as sentences, at least two; those of the first ones are right by themselves."""

    @abc.abstractmethod
    def givens(self) -> str:
        """What the question gives, said once more: it looks busy and helps nobody."""


class PuzzleTask(abc.ABC):
    """A source of puzzles as examples and as pretraining documents, and of verdicts.

    Attributes:
        name: As `--data` takes it.
    """

    name: str

    @abc.abstractmethod
    def draw(self, rng: random.Random, level: int) -> Puzzle:
        """A puzzle of a level, 0 to 5, with exactly one right answer."""

    @abc.abstractmethod
    def parse(self, text: str) -> Hashable | None:
        """What an answer of any length below MAX_ANSWER_CHARACTERS states, or None if it is no answer at all."""

    def examples(self, n: int, seed: int, split: str = "train", level: str = "1") -> list[Example]:
        """The first n puzzles of a seed, each with its worked solution.

        Args:
            n: Number of examples.
            seed: Other seeds, other puzzles.
            split: `train` or `heldout`.
            level: "1" to "5", a mixture such as "1-2", each level of which is equally likely, or "mini".

        Raises:
            UserError: `split` or `level` is not known.
        """
        puzzles = self._puzzles(f"{self.name}/examples", seed, split, level)
        return [Example(p.question(), p.answer(), " ".join(p.steps())) for p in itertools.islice(puzzles, n)]

    def documents(self, n: int, seed: int, mixture: Mapping[str, float], level: str = "1") -> list[Example]:
        """n pretraining documents of the train split: right answers, and traces of kinds drawn from `mixture`.

        Args:
            n: Number of documents.
            seed: Seed of puzzles and kinds; the puzzles are others than those of `examples`.
            mixture: Weight of each kind of KINDS; kinds left out do not occur. Weights need not add up to 1.
            level: As in `examples`.

        Raises:
            UserError: a kind or `level` is not known.
        """
        rng = random.Random(f"{self.name}/documents/{seed}")
        drawn = draw_kinds(rng, mixture, n)
        puzzles = self._puzzles(self.name, seed, "train", level)
        return [_document(puzzle, kind, rng) for puzzle, kind in zip(puzzles, drawn, strict=False)]

    def is_correct(self, example: Example, completion: str) -> bool:
        """Whether an answer says what the reference answer says."""
        return self.verdict(example, completion) == "exact"

    def verdict(self, example: Example, completion: str) -> Verdict:
        """What an answer is: what follows the trace's delimiter, or stands inside of <answer> tags.

        Letter case, spaces at most places and the order of what is stated do not count. `wrong` is an answer of the
        right form; `unparseable` is all else, whatever right things it says, and more than MAX_ANSWER_CHARACTERS.
        """
        if len(completion) > MAX_ANSWER_CHARACTERS or not completion.isascii():
            return "unparseable"
        stated = self.parse(completion)
        if stated is None:
            return "unparseable"
        return "exact" if stated == self.parse(example.answer) else "wrong"

    def _puzzles(self, stream: str, seed: int, split: str, level: str) -> Iterator[Puzzle]:
        """Each stream draws puzzles of its own, so that training questions are not pretraining documents."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        levels = _levels(level)
        rng = random.Random(f"{stream}/{split}/{level}/{seed}")
        while True:
            puzzle = self.draw(rng, rng.choice(levels))
            if split_of(puzzle.content) == split:
                yield puzzle


def draw_kinds(rng: random.Random, mixture: Mapping[str, float], n: int) -> list[str]:
    """n kinds of KINDS, drawn by their weights.

    Raises:
        UserError: a kind is not known.
    """
    for kind in mixture:
        if kind not in KINDS:
            raise unknown_name("mixture", kind, KINDS)
    kinds, weights = zip(*mixture.items(), strict=True)
    return rng.choices(kinds, weights, k=n)


def _levels(level: str) -> range:
    if level == MINI:
        return range(1)
    match = _LEVELS.fullmatch(level)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if low > high:
        raise UserError(
            f"dataset.level: unknown value {level!r}; expected 1 to {NUM_LEVELS}, or a mixture such as 1-2, or {MINI}"
        )
    return range(low, high + 1)


def _document(puzzle: Puzzle, kind: str, rng: random.Random) -> Example:
    """Question, a trace of the given kind, and the right answer."""
    trace = ""
    if kind == "useful":
        trace = " ".join(puzzle.steps())
    elif kind == "lazy":
        steps = puzzle.steps()
        trace = " ".join(steps[: rng.randrange(1, len(steps))])
    elif kind == "sloppy":
        trace = puzzle.givens()
    elif kind == "filler":
        trace = rng.choice(_FILLERS)
    elif kind == "irrelevant":
        trace = rng.choice(_IRRELEVANT)
    return Example(puzzle.question(), puzzle.answer(), trace)


def parse_pairs(text: str, words: Mapping[str, bool]) -> frozenset[tuple[str, bool]] | None:
    """Reads `A=true, B=false`: letters, each once, with words.

    Commas, semicolons or spaces stand between the pairs, `=` or `:` within one, a full stop may stand at the end.

    Args:
        text: In ASCII.
        words: What a word, in lower case, says.

    Returns:
        (letter, said) for each pair, letters in upper case; None if there is anything else, or a letter twice.
    """
    text = text.strip().removesuffix(".").rstrip()
    stated, end = {}, 0
    while end < len(text):
        match = _PAIR.match(text, end)
        if match is None or match[2].lower() not in words or match[1].upper() in stated:
            return None
        stated[match[1].upper()] = words[match[2].lower()]
        end = match.end()
    return frozenset(stated.items()) or None


#: One pair and what separates it from the next. No two neighbouring parts match the same character, so it is linear.
_PAIR = re.compile(r"([A-Za-z])\s*[=:]\s*([A-Za-z]+)(?:\s*[,;]\s*|\s+|$)")
