"""Induction: from hypotheses and observations to the rule, as masked sequences (arXiv 2505.10554).

    Each number follows from the one before it by an operation: add 1 to 4, subtract 1 to 4, or multiply by 2 to 4. The
    operations repeat after 6 to 10 of them. What number stands at the question mark?
    1, 3, 2, ..., ?
    Answer with the number alone.

    trace   Period 6 fails: 1 to 3, 8 to 9. Period 7: 1 to 3, 8 to 10: +2. ... Next: 20+2=22.
    answer  22

Known: k = 6 to 10 operations by level, each +a or -b (1 to 4) or xc (2 to 4), of the three kinds equally often; the
start of 1 to 5; that the last term is masked. Ours: 2k + 1 to 3k terms before it, so that every operation is seen twice
(the published generator shows 6 to 10 terms, which often do not determine the answer) and their number does not say
which of them is masked; the question tells the family of rules, and whatever rule of it fits the shown terms gives the
same answer; terms are limited; the solution; level 0, of two operations and small terms.
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Sequence

from nrt_jax.tasks.puzzle import Puzzle, PuzzleTask

#: Level -> k, the number of operations.
LEVELS = {0: 2, 1: 6, 2: 7, 3: 8, 4: 9, 5: 10}
#: The numbers of operations that a question allows.
PERIODS, MINI_PERIODS = tuple(LEVELS.values())[1:], (LEVELS[0],)
START, MINI_START = (1, 5), (1, 20)
#: Largest size of a term; at level 0 none is negative.
MAX_TERM, MAX_MINI_TERM = 9999, 99

#: (sign, number), by kind.
ADD = tuple(("+", n) for n in range(1, 5))
SUBTRACT = tuple(("-", n) for n in range(1, 5))
MULTIPLY = tuple(("x", n) for n in range(2, 5))

Operation = tuple[str, int]

_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")


@dataclasses.dataclass(frozen=True)
class Induction(Puzzle):
    """A sequence whose last term is masked.

    Attributes:
        operations: One period of them.
        terms: All terms, the last of which is masked.
    """

    operations: tuple[Operation, ...]
    terms: tuple[int, ...]

    @property
    def periods(self) -> tuple[int, ...]:
        """The numbers of operations that it may have."""
        return MINI_PERIODS if len(self.operations) in MINI_PERIODS else PERIODS

    @property
    def content(self) -> str:
        """The shown terms."""
        return ", ".join(map(str, self.terms[:-1]))

    def question(self) -> str:
        """The family of rules, and the shown terms."""
        first, last = self.periods[0], self.periods[-1]
        span = f"after {first} to {last}" if first < last else f"after {first}"
        return (
            "Each number follows from the one before it by an operation: add 1 to 4, subtract 1 to 4, or multiply by 2 "
            f"to 4. The operations repeat {span} of them. What number stands at the question mark?\n"
            f"{self.content}, ?\nAnswer with the number alone."
        )

    def answer(self) -> str:
        """The masked term."""
        return str(self.terms[-1])

    def steps(self) -> list[str]:
        """Why shorter periods fail, what each operation is, and the masked term."""
        shown, k = self.terms[:-1], len(self.operations)
        steps = []
        for period in range(self.periods[0], k):
            conflict = _conflict(shown, period)
            if not conflict:  # a rule of this period fits too, and gives the same answer
                k = period
                break
            steps.append(f"Period {period} fails: {', '.join(_pair(shown, i) for i in conflict)}.")
        for i in range(k):
            places = range(i, len(shown) - 1, k)
            sign, n = _fitting([(shown[j], shown[j + 1]) for j in places])[0]
            seen = ", ".join(_pair(shown, j) for j in places)
            steps.append(f"{f'Period {k}: ' if i == 0 else ''}{seen}: {sign}{n}.")
        sign, n = _fitting([(shown[j], shown[j + 1]) for j in range((len(shown) - 1) % k, len(shown) - 1, k)])[0]
        return [*steps, f"Next: {shown[-1]}{sign}{n}={apply((sign, n), shown[-1])}."]

    def givens(self) -> str:
        """The shown terms."""
        return f"{self.content}."


class InductionTask(PuzzleTask):
    """Sequences whose next term all rules that fit agree on."""

    name = "induction"

    def draw(self, rng: random.Random, level: int) -> Induction:
        """Sequences until one determines its answer."""
        k = LEVELS[level]
        num_steps = 2 * k + 1 + rng.randrange(k)  # Drawn once: long sequences are refused more often.
        starts, lowest, highest = (START, -MAX_TERM, MAX_TERM) if level else (MINI_START, 0, MAX_MINI_TERM)
        while True:
            operations = tuple(rng.choice(rng.choice((ADD, SUBTRACT, MULTIPLY))) for _ in range(k))
            repeated = itertools.islice(itertools.cycle(operations), num_steps)
            start = rng.randint(*starts)
            terms = tuple(itertools.accumulate(repeated, lambda term, operation: apply(operation, term), initial=start))
            puzzle = Induction(operations, terms)
            if lowest <= min(terms) <= max(terms) <= highest and _next_terms(terms[:-1], puzzle.periods) == {terms[-1]}:
                return puzzle

    def parse(self, text: str) -> int | None:
        """An integer and nothing else, but for a full stop."""
        match = _NUMBER.fullmatch(text.strip().removesuffix(".").rstrip())
        return int(match[0]) if match else None


def apply(operation: Operation, term: int) -> int:
    """The term after this one."""
    sign, n = operation
    return term * n if sign == "x" else term + n if sign == "+" else term - n


def _fitting(transitions: Sequence[tuple[int, int]]) -> list[Operation]:
    """The operations that make all these steps from one term to the next."""
    return [op for op in (*ADD, *SUBTRACT, *MULTIPLY) if all(apply(op, a) == b for a, b in transitions)]


def _next_terms(shown: Sequence[int], periods: Sequence[int] = PERIODS) -> set[int]:
    """What the rules of any period that fit the shown terms say of the next one."""
    transitions = list(itertools.pairwise(shown))
    found = set()
    for period in periods:
        fits = [_fitting(transitions[i::period]) for i in range(period)]
        if all(fits):
            found |= {apply(op, shown[-1]) for op in fits[len(transitions) % period]}
    return found


def _conflict(shown: Sequence[int], period: int) -> list[int]:
    """The first steps, a period apart, that no operation makes all of; empty if the period fits."""
    transitions = list(itertools.pairwise(shown))
    for first in range(period):
        places = []
        for i in range(first, len(transitions), period):
            places.append(i)
            if not _fitting([transitions[j] for j in places]):
                return places
    return []


def _pair(shown: Sequence[int], i: int) -> str:
    return f"{shown[i]} to {shown[i + 1]}"
