"""Deduction: from hypotheses and a rule to what follows, as propositional satisfiability (arXiv 2505.10554).

    Each of A, B, C, D is true or false. Find the only values that make all formulas true.
    1. A xor B
    2. A -> C
    3. B -> C
    4. C <-> not D
    5. A -> D
    Answer in the form A=true, B=false, and so on.

    trace   Suppose A=true. 1: B=false. 2: C=true. 4: D=false. 5 fails. So A=false. 1: B=true. 3: C=true. 4: D=false.
    answer  A=false, B=true, C=true, D=false

Known: variables and depth of a level (LEVELS), 3 to 6 formulas, and how a formula is drawn: at the depth of the level
a literal, negated with probability 0.4; above it with probability 0.2 the negation of a sub-formula and else two
sub-formulas under ->, and, or, <-> or xor. Kept are puzzles that exactly one assignment solves.

Ours: the formulas of a puzzle are all different, and found among the sets of a small pool of drawn ones, since of
random sets only one in 10 (level 1) to 150 (level 5) is a puzzle; words instead of symbols; the solution; level 0,
which needs no supposition, and whose solution asks one formula after the other:

    1: C xor B: ?. 2: not not C: C=true. 3: not A or not C: A=false. 1: C xor B: B=false.

An assignment is a number below 2^n, bit v of which is the value of variable v, and a set of assignments, such as those
that satisfy a formula, is a Python integer of 2^n bits.
"""

import dataclasses
import functools
import itertools
import random

from nrt_jax.tasks.puzzle import Puzzle, PuzzleTask, parse_pairs

#: Level -> (variables, depth of the formulas).
LEVELS = {0: (3, 1), 1: (4, 1), 2: (6, 2), 3: (8, 3), 4: (10, 4), 5: (12, 5)}
NUM_FORMULAS = (3, 6)
P_NEGATED_LITERAL = 0.4
P_NEGATION = 0.2
OPERATORS = ("->", "and", "or", "<->", "xor")

#: Formulas that the solution of a puzzle of level 0 asks.
MAX_MINI_STEPS = 6

NAMES = "ABCDEFGHIJKL"
WORDS = {"true": True, "false": False}

#: Formulas drawn together, and sets of them that are tried before others are drawn.
_POOL, _TRIALS = 24, 200


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula.

    Attributes:
        text: In words; one of two sides stands in parentheses.
        models: The assignments that satisfy it.
    """

    text: str
    models: int

    @functools.cached_property
    def variables(self) -> tuple[int, ...]:
        """Those that occur in it."""
        return tuple(v for v, name in enumerate(NAMES) if name in self.text)


@dataclasses.dataclass(frozen=True)
class Deduction(Puzzle):
    """Formulas that hold together for exactly one assignment.

    Attributes:
        num_variables: n; NAMES names them.
        formulas: All different.
        solution: The assignment, below 2^n.
    """

    num_variables: int
    formulas: tuple[Formula, ...]
    solution: int

    @property
    def content(self) -> str:
        """The formulas in whatever order."""
        return "; ".join(sorted(formula.text for formula in self.formulas))

    def question(self) -> str:
        """One formula a line."""
        names = ", ".join(NAMES[: self.num_variables])
        lines = [f"{i}. {formula.text}" for i, formula in enumerate(self.formulas, start=1)]
        return "\n".join(
            [
                f"Each of {names} is true or false. Find the only values that make all formulas true.",
                *lines,
                "Answer in the form A=true, B=false, and so on.",
            ]
        )

    def answer(self) -> str:
        """The value of each variable."""
        return ", ".join(_said(v, self._value(v)) for v in range(self.num_variables))

    def steps(self) -> list[str]:
        """A proof that no other assignment does it: values that a formula forces, and suppositions that fail.

        `2: B=false.` is what formula 2 says once the values before it are put in. `2 fails.` ends what was supposed
        last and not yet refuted, and is followed by the opposite.
        """
        if self.num_variables == LEVELS[0][0]:
            return self._rounds()
        state = _State(self.num_variables)
        steps, _ = self._propagate(state)
        while state.free:
            # The wrong value of that variable which is refuted in the fewest steps without another supposition.
            tries = [(v, *self._propagate(state.copy_with(v, not self._value(v)))) for v in state.free]
            v, refutation, fails = min(tries, key=lambda tried: (not tried[2], len(tried[1])))
            if not fails:
                v = self._most_constrained(state)
                refutation = self._refute(state.copy_with(v, not self._value(v)))
            steps += [f"Suppose {_said(v, not self._value(v))}.", *refutation, f"So {_said(v, self._value(v))}."]
            state.fix(v, self._value(v))
            steps += self._propagate(state)[0]
        return steps

    def givens(self) -> str:
        """The formulas."""
        return " ".join(f"{i}: {formula.text}." for i, formula in enumerate(self.formulas, start=1))

    @property
    def is_direct(self) -> bool:
        """Whether each value is forced by one formula and the values before it."""
        state = _State(self.num_variables)
        self._propagate(state)
        return not state.free

    def _value(self, variable: int) -> bool:
        return bool(self.solution >> variable & 1)

    def _propagate(self, state: "_State") -> tuple[list[str], bool]:
        """Fixes what each formula by itself forces, until one fails (True) or none forces anything more."""
        steps, changed = [], True
        while changed:
            changed = False
            for i, formula in enumerate(self.formulas, start=1):
                left = formula.models & state.possible
                if not left:
                    return [*steps, f"{i} fails."], True
                for v in formula.variables:
                    if v not in state.free:
                        continue
                    if_true = left & _TRUE[self.num_variables][v]
                    if if_true in (0, left):
                        state.fix(v, bool(if_true))
                        steps.append(f"{i}: {_said(v, bool(if_true))}.")
                        changed = True
        return steps, False

    def _rounds(self) -> list[str]:
        """Each formula in turn and in full, over and over, with the values that it forces or a question mark."""
        state, steps = _State(self.num_variables), []
        for i, formula in itertools.cycle(enumerate(self.formulas, start=1)):
            if not state.free:
                return steps
            free = state.free.intersection(formula.variables)
            if free:
                left = formula.models & state.possible
                forced = [v for v in sorted(free) if left & _TRUE[self.num_variables][v] in (0, left)]
                for v in forced:
                    state.fix(v, self._value(v))
                said = ", ".join(_said(v, self._value(v)) for v in forced)
                steps.append(f"{i}: {formula.text}: {said or '?'}.")

    def _refute(self, state: "_State") -> list[str]:
        """Steps that lead from values that no solution has to a formula that fails."""
        steps, fails = self._propagate(state)
        if fails:
            return steps
        v = self._most_constrained(state)
        for value in (True, False):
            tried = state.copy_with(v, value)
            if value:
                steps += [f"Suppose {_said(v, True)}.", *self._refute(tried), f"So {_said(v, False)}."]
            else:
                steps += self._refute(tried)
        return steps

    def _most_constrained(self, state: "_State") -> int:
        """A free variable of the formula that fewest of the possible assignments satisfy."""
        counts = [
            ((formula.models & state.possible).bit_count(), min(free))
            for formula in self.formulas
            if (free := state.free.intersection(formula.variables))
        ]
        return min(counts)[1]


class _State:
    """What is known so far: the variables without a value, and the assignments that have the values of the others."""

    def __init__(self, num_variables: int):
        self.num_variables = num_variables
        self.free = set(range(num_variables))
        self.possible = _all(num_variables)

    def fix(self, variable: int, value: bool) -> None:
        self.free.discard(variable)
        models = _TRUE[self.num_variables][variable]
        self.possible &= models if value else ~models

    def copy_with(self, variable: int, value: bool) -> "_State":
        copy = _State.__new__(_State)
        copy.num_variables, copy.free, copy.possible = self.num_variables, set(self.free), self.possible
        copy.fix(variable, value)
        return copy


class DeductionTask(PuzzleTask):
    """Sets of formulas with one solution."""

    name = "deduction"

    def draw(self, rng: random.Random, level: int) -> Deduction:
        """Sets of formulas until one has exactly one model."""
        num_variables, depth = LEVELS[level]
        while True:
            pool = [_draw_formula(rng, num_variables, depth) for _ in range(_POOL)]
            for _ in range(_TRIALS):
                formulas = rng.sample(pool, rng.randint(*NUM_FORMULAS))
                models = functools.reduce(lambda left, formula: left & formula.models, formulas, -1)
                if models.bit_count() == 1 and len({formula.text for formula in formulas}) == len(formulas):
                    puzzle = Deduction(num_variables, tuple(formulas), models.bit_length() - 1)
                    if level > 0 or (puzzle.is_direct and len(puzzle.steps()) <= MAX_MINI_STEPS):
                        return puzzle

    def parse(self, text: str) -> frozenset[tuple[str, bool]] | None:
        """The values that are stated."""
        return parse_pairs(text, WORDS)


def _draw_formula(rng: random.Random, num_variables: int, depth: int) -> Formula:
    text, models = _draw_part(rng, num_variables, depth)
    if text.startswith("("):
        text = text[1:-1]
    return Formula(text, models)


def _draw_part(rng: random.Random, num_variables: int, depth: int) -> tuple[str, int]:
    """Text and models of a formula of at most this depth; two sides are put in parentheses."""
    everything = _all(num_variables)
    if depth == 0:
        v = rng.randrange(num_variables)
        models = _TRUE[num_variables][v]
        return (f"not {NAMES[v]}", everything ^ models) if rng.random() < P_NEGATED_LITERAL else (NAMES[v], models)
    if rng.random() < P_NEGATION:
        text, models = _draw_part(rng, num_variables, depth - 1)
        return f"not {text}", everything ^ models
    operator = rng.choice(OPERATORS)
    left, a = _draw_part(rng, num_variables, depth - 1)
    right, b = _draw_part(rng, num_variables, depth - 1)
    if operator == "->":
        models = everything ^ a | b
    elif operator == "and":
        models = a & b
    elif operator == "or":
        models = a | b
    else:
        models = a ^ b if operator == "xor" else everything ^ a ^ b
    return f"({left} {operator} {right})", models


def _said(variable: int, value: bool) -> str:
    return f"{NAMES[variable]}={'true' if value else 'false'}"


def _all(num_variables: int) -> int:
    """All assignments."""
    return (1 << (1 << num_variables)) - 1


def _assignments_with(variable: int, num_variables: int) -> int:
    """The assignments in which a variable is true: 2^v zeros and 2^v ones, over and over."""
    period = 2 << variable
    return _all(num_variables) // ((1 << period) - 1) * (((1 << (1 << variable)) - 1) << (1 << variable))


#: Number of variables -> for each of them, the assignments in which it is true.
_TRUE = {n: [_assignments_with(v, n) for v in range(n)] for n, _ in LEVELS.values()}
