"""Abduction: from observations and a rule to hypotheses, as reverse search in a graph of rules (arXiv 2505.10554).

    Given true: C, M. Given false: B, F. A letter is true if it is given as true or stands after => in a rule whose
    condition is true; not X is true only if X is given as false. A letter that is true is reachable. Which of these are
    reachable: K, D?
    1. M and not B => A
    2. A or D => K
    3. E => D
    ...
    Answer in the form A: reachable, B: unreachable, and so on.

    trace   K: rule 2 from A. A: rule 1 from M, not B. K is reachable. D: rule 3 lacks E. E: no rule. D is unreachable.
    answer  K: reachable, D: unreachable

Known: depth of the chains, goals, distractor rules and probability of cycles by level (LEVELS); premises `expression
=> head`, expressions of and, or, not of depth 2 at most; one goal is reachable, and the chains of the others are
broken by leaving out their last rules; a puzzle is checked by all assignments that satisfy its rules.

Ours: a chain leads over fresh letters from a goal to a given one; with the probability of cycles a link gets one more
rule, back from a letter nearer to the goal; letters can be given as false, which is what makes `not` true; with a
single goal, a coin decides whether it is the reachable one, or the answer would always be the same; the letter at the
end of a broken chain is given all the same, and a distractor stands in for each rule left out, so that neither number
tells the answer; a distractor that would change what is reachable is drawn again; level 0.

A goal is reachable if the rules derive it from what is given. It is then true in every assignment that satisfies rules
and givens; and there is one assignment (`_counter_model`) that satisfies them and in which no unreachable goal is
true: so derivation and entailment agree on the goals, and the rules are consistent.
"""

import dataclasses
import functools
import random
from collections.abc import Iterable

from nrt_jax.tasks.puzzle import Puzzle, PuzzleTask, parse_pairs

LETTERS = "ABCDEFGHIJKLMNOPQRST"
WORDS = {"reachable": True, "unreachable": False}

#: An expression is a literal with probability 0.4, and else two literals under and, or (published).
P_LITERAL = 0.4
#: Letters given as true beside those at the end of a chain, and letters given as false.
NUM_TRUE, NUM_FALSE = 1, 2


@dataclasses.dataclass(frozen=True)
class Level:
    """Numbers of a level; pairs are inclusive ranges.

    Attributes:
        depth: Rules of a chain.
        goals: Goals.
        distractors: Rules of random letters.
        p_cycle: Probability that a link of a chain gets a rule that leads back to it.
    """

    depth: tuple[int, int]
    goals: int
    distractors: tuple[int, int]
    p_cycle: float


LEVELS = {
    0: Level((2, 3), 1, (1, 2), 0.0),
    1: Level((2, 3), 1, (3, 5), 0.10),
    2: Level((3, 4), 2, (5, 7), 0.15),
    3: Level((4, 5), 2, (7, 9), 0.20),
    4: Level((5, 6), 3, (8, 10), 0.25),
    5: Level((6, 7), 3, (10, 12), 0.30),
}


@dataclasses.dataclass(frozen=True)
class Literal:
    """A letter or its negation."""

    letter: str
    positive: bool = True

    def __str__(self) -> str:
        return self.letter if self.positive else f"not {self.letter}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """`body => head`: one literal, or two under `operator`."""

    body: tuple[Literal, ...]
    operator: str
    head: str

    def __str__(self) -> str:
        return f"{f' {self.operator} '.join(map(str, self.body))} => {self.head}"


@dataclasses.dataclass(frozen=True)
class Abduction(Puzzle):
    """Rules, what is given, and goals.

    Attributes:
        rules: All different.
        true: Letters given as true.
        false: Letters given as false.
        goals: Letters of neither.
    """

    rules: tuple[Rule, ...]
    true: frozenset[str]
    false: frozenset[str]
    goals: tuple[str, ...]

    @property
    def content(self) -> str:
        """Rules, givens and goals, in whatever order."""
        return "; ".join([*sorted(map(str, self.rules)), self._given(), *sorted(self.goals)])

    @functools.cached_property
    def derived(self) -> dict[str, tuple[int, tuple[Literal, ...]]]:
        """The least fixpoint of the rules: letter -> the rule (from 0) and the true literals of it that first gave it.

        Letters stand in the order of their derivation, so that each needs earlier ones only.
        """
        derived: dict[str, tuple[int, tuple[Literal, ...]]] = {}
        changed = True
        while changed:
            changed = False
            for i, rule in enumerate(self.rules):
                if rule.head in derived or rule.head in self.true:
                    continue
                holding = tuple(literal for literal in rule.body if self._holds(literal, derived))
                if len(holding) == len(rule.body) or (holding and rule.operator == "or"):
                    derived[rule.head] = (i, holding if rule.operator == "and" else holding[:1])
                    changed = True
        return derived

    @property
    def is_sound(self) -> bool:
        """Whether some assignment satisfies rules and givens and has no unreachable goal in it."""
        counter_model = self._counter_model()
        return all(
            rule.head in counter_model
            or not (all if rule.operator == "and" else any)(
                (literal.letter in counter_model) == literal.positive for literal in rule.body
            )
            for rule in self.rules
        )

    def question(self) -> str:
        """Givens, goals, and one rule a line."""
        lines = [f"{i}. {rule}" for i, rule in enumerate(self.rules, start=1)]
        return "\n".join(
            [
                f"{self._given()} A letter is true if it is given as true or stands after => in a rule whose condition "
                "is true; not X is true only if X is given as false. A letter that is true is reachable. Which of "
                f"these are reachable: {', '.join(self.goals)}?",
                *lines,
                "Answer in the form A: reachable, B: unreachable, and so on.",
            ]
        )

    def answer(self) -> str:
        """Reachable or not, for each goal."""
        return ", ".join(f"{goal}: {self._word(goal)}" for goal in self.goals)

    def steps(self) -> list[str]:
        """Backward from each goal: the rules that derive it, or for each of its rules what is missing."""
        steps: list[str] = []
        for goal in self.goals:
            steps += self._proof(goal) if goal in self.derived else self._refutation(goal)
            steps.append(f"{goal} is {self._word(goal)}.")
        return list(dict.fromkeys(steps))  # Two goals may need the same letters.

    def givens(self) -> str:
        """What is given, and the rules."""
        return " ".join([self._given(), *(f"{i}: {rule}." for i, rule in enumerate(self.rules, start=1))])

    def _given(self) -> str:
        return f"Given true: {', '.join(sorted(self.true))}. Given false: {', '.join(sorted(self.false))}."

    def _word(self, goal: str) -> str:
        return "reachable" if goal in self.derived else "unreachable"

    def _holds(self, literal: Literal, derived: Iterable[str]) -> bool:
        if literal.positive:
            return literal.letter in self.true or literal.letter in derived
        return literal.letter in self.false

    def _proof(self, goal: str) -> list[str]:
        """The rules that a goal needs, each before those that derive its condition."""
        needed, steps = {goal}, []
        for letter in reversed(self.derived):
            if letter in needed:
                i, literals = self.derived[letter]
                needed |= {literal.letter for literal in literals if literal.positive}
                steps.append(f"{letter}: rule {i + 1} from {', '.join(map(str, literals))}.")
        return steps

    def _refutation(self, goal: str) -> list[str]:
        """For each letter that could lead to the goal, what each of its rules lacks."""
        return [self._lacking(letter) for letter in self._missing([goal])]

    def _lacking(self, letter: str) -> str:
        if letter in self.false:
            return f"{letter}: given false."
        lacks = [
            f"rule {i} lacks {', '.join(map(str, self._lacks(rule)))}"
            for i, rule in enumerate(self.rules, start=1)
            if rule.head == letter
        ]
        return f"{letter}: {'; '.join(lacks) or 'no rule'}."

    def _lacks(self, rule: Rule) -> tuple[Literal, ...]:
        """Literals without which a rule is not satisfied: none of an `or` holds, and one of an `and` is enough."""
        missing = [literal for literal in rule.body if not self._holds(literal, self.derived)]
        return tuple(missing if rule.operator == "or" else missing[:1])

    def _missing(self, goals: Iterable[str]) -> list[str]:
        """The goals, and all letters that their rules lack, and these letters' rules, and so on."""
        letters = list(goals)
        for letter in letters:  # which grows
            for rule in self.rules:
                if rule.head == letter and letter not in self.false:
                    lacks = [literal.letter for literal in self._lacks(rule) if literal.positive]
                    letters += [lacking for lacking in dict.fromkeys(lacks) if lacking not in letters]
        return letters

    def _counter_model(self) -> set[str]:
        """All letters but those that are given as false or that an unreachable goal would need."""
        missing = self._missing([goal for goal in self.goals if goal not in self.derived])
        return set(LETTERS) - self.false - set(missing)


class AbductionTask(PuzzleTask):
    """Graphs of rules with reachable and unreachable goals."""

    name = "abduction"

    def draw(self, rng: random.Random, level: int) -> Abduction:
        """Chains until the goal that is meant to be, and no other, is reachable; then distractors that keep it so."""
        numbers = LEVELS[level]
        goals = rng.sample(LETTERS, numbers.goals)
        reachable = rng.choice(goals) if numbers.goals > 1 else rng.choice([goals[0], ""])

        def is_as_meant(puzzle: Abduction) -> bool:
            return {goal for goal in goals if goal in puzzle.derived} == {reachable} - {""} and puzzle.is_sound

        puzzle, num_left_out = _draw_chains(rng, numbers, goals, reachable)
        while not is_as_meant(puzzle):
            puzzle, num_left_out = _draw_chains(rng, numbers, goals, reachable)
        letters = sorted(
            {literal.letter for rule in puzzle.rules for literal in rule.body}.union(goals, puzzle.true, puzzle.false)
        )
        for _ in range(rng.randint(*numbers.distractors) + num_left_out):
            more = _with_distractor(rng, puzzle, letters)
            while len(more.rules) == len(puzzle.rules) or not is_as_meant(more):
                more = _with_distractor(rng, puzzle, letters)
            puzzle = more
        return dataclasses.replace(puzzle, rules=tuple(rng.sample(puzzle.rules, len(puzzle.rules))))

    def parse(self, text: str) -> frozenset[tuple[str, bool]] | None:
        """What is said of each goal."""
        return parse_pairs(text, WORDS)


def _draw_chains(rng: random.Random, level: Level, goals: list[str], reachable: str) -> tuple[Abduction, int]:
    """A whole chain to `reachable`, broken ones to the other goals; and the number of links that these lack."""
    free = [letter for letter in LETTERS if letter not in goals]
    rng.shuffle(free)
    false = {free.pop() for _ in range(NUM_FALSE)}
    true = {free.pop() for _ in range(NUM_TRUE)}
    facts = [*map(Literal, sorted(true)), *(Literal(letter, positive=False) for letter in sorted(false))]
    rules: list[Rule] = []
    num_left_out = 0
    for goal in sorted(goals, key=lambda goal: goal != reachable):  # the reachable one first
        depth = rng.randint(*level.depth)
        chain = [goal, *rng.sample(free, depth)]
        links = [_link(rng, chain, i, facts, free, level.p_cycle) for i in range(depth)]
        true.add(chain[-1])
        if goal == reachable:
            free = [letter for letter in free if letter not in chain]  # The others' chains must not meet this one.
        else:
            left = rng.randint(1, depth - 1)
            links, num_left_out = links[:left], num_left_out + depth - left
        rules += [rule for link in links for rule in link]
    return Abduction(tuple(dict.fromkeys(rules)), frozenset(true), frozenset(false), tuple(goals)), num_left_out


def _link(
    rng: random.Random, chain: list[str], i: int, facts: list[Literal], free: list[str], p_cycle: float
) -> list[Rule]:
    """The rule from chain[i + 1] to chain[i], and at times one that leads back from nearer to the goal."""
    rules = [_rule(rng, chain[i + 1], facts, free, chain[i])]
    if rng.random() < p_cycle:
        rules.append(_rule(rng, chain[rng.randint(0, i)], facts, free, chain[i + 1]))
    return rules


def _rule(rng: random.Random, needed: str, facts: list[Literal], free: list[str], head: str) -> Rule:
    """A rule for `head` that holds when `needed` does: with it stands something given, or it has an alternative."""
    if rng.random() < P_LITERAL:
        return Rule((Literal(needed),), "and", head)
    operator = rng.choice(("and", "or"))
    letters = [letter for letter in free if letter not in (needed, head)]
    other = rng.choice(facts) if operator == "and" else Literal(rng.choice(letters), rng.random() < 0.5)
    body = [Literal(needed), other]
    rng.shuffle(body)
    return Rule(tuple(body), operator, head)


def _with_distractor(rng: random.Random, puzzle: Abduction, letters: list[str]) -> Abduction:
    """One more rule, of random literals."""
    head = rng.choice([letter for letter in letters if letter not in puzzle.true | puzzle.false])
    chosen = rng.sample([letter for letter in letters if letter != head], 1 if rng.random() < P_LITERAL else 2)
    body = tuple(Literal(letter, rng.random() < 0.5) for letter in chosen)
    rule = Rule(body, rng.choice(("and", "or")) if len(body) == 2 else "and", head)
    return dataclasses.replace(puzzle, rules=tuple(dict.fromkeys((*puzzle.rules, rule))))
