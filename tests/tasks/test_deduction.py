"""Deduction: that a puzzle has one solution, the stated one, is found here by trying all 2^n assignments."""

import collections
import functools
import random
import re

import numpy as np
import pytest

from nrt_jax import tasks
from nrt_jax.tasks import deduction

TASK = tasks.get("deduction")
LEVELS = ("mini", "1", "2", "3", "4", "5")
NUM_VARIABLES = dict(zip(LEVELS, (3, 4, 6, 8, 10, 12), strict=True))
DEPTHS = dict(zip(LEVELS, (1, 1, 2, 3, 4, 5), strict=True))

OPERATORS = {
    "->": lambda a, b: ~a | b,
    "and": np.logical_and,
    "or": np.logical_or,
    "<->": np.equal,
    "xor": np.not_equal,
}


def all_assignments(n: int) -> np.ndarray:
    """[n, 2^n]: row v holds the value of variable v in every assignment."""
    return np.array(np.meshgrid(*[[False, True]] * n, indexing="ij")).reshape(n, -1)


def evaluate(text: str, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Truth of a formula for each assignment, and how deep its operators nest, by a parser of its own."""
    tokens = re.findall(r"->|<->|[()]|\w+", text)

    def part(i):
        if tokens[i] == "not":
            inner, depth, i = part(i + 1)
            return ~inner, depth, i
        if tokens[i] == "(":
            inner, depth, i = pair(i + 1)
            assert tokens[i] == ")"
            return inner, depth, i + 1
        return values[ord(tokens[i]) - ord("A")], 0, i + 1

    def pair(i):
        left, depth, i = part(i)
        if i == len(tokens) or tokens[i] == ")":
            return left, depth, i
        right, other, j = part(i + 1)
        return OPERATORS[tokens[i]](left, right), 1 + max(depth, other), j

    result, depth, end = pair(0)
    assert end == len(tokens)
    return result, depth


def formulas_of(question: str) -> list[str]:
    return re.findall(r"^\d+\. (.*)$", question, re.MULTILINE)


def said(text: str) -> dict[str, bool]:
    return {name: value == "true" for name, value in re.findall(r"([A-L])=(true|false)", text)}


@functools.cache
def instances(level: str):
    """1,000 examples with the truth tables and depths of their formulas."""
    values = all_assignments(NUM_VARIABLES[level])
    found = []
    for example in TASK.examples(1000, seed=7, level=level):
        evaluated = [evaluate(text, values) for text in formulas_of(example.question)]
        found.append((example, values, np.array([table for table, _ in evaluated]), [depth for _, depth in evaluated]))
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_the_answer_is_the_only_assignment_of_all_that_satisfies_every_formula(level):
    for example, values, tables, _ in instances(level):
        (solution,) = np.flatnonzero(tables.all(axis=0))
        stated = said(example.answer)
        assert [stated[name] for name in sorted(stated)] == values[:, solution].tolist()
        assert TASK.is_correct(example, example.answer)


@pytest.mark.parametrize("level", LEVELS)
def test_the_trace_proves_the_answer_step_by_step(level):
    for example, values, tables, _ in instances(level):
        known, supposed, failed = {}, [], False
        for step in re.findall(r"[^.]+\.", example.trace):
            fixed = functools.reduce(
                np.logical_and, [values[ord(name) - ord("A")] == value for name, value in known.items()], True
            )
            forced = said(step)
            ((name, value),) = (forced if len(forced) == 1 else {"": False}).items()
            number = re.match(r" ?(\d+)", step)
            left = values[:, tables[int(number[1]) - 1] & fixed] if number else None
            if step.startswith(" So"):
                before, opposite = supposed.pop()
                assert failed and opposite == {name: not value}
                known, failed = before | {name: value}, False
                continue
            assert not failed
            if step.strip().startswith("Suppose"):
                supposed.append((known, {name: value}))
                known = known | {name: value}
            elif "fails" in step:
                failed = left.shape[1] == 0
                assert failed
            elif level == "mini":
                assert formulas_of(example.question)[int(number[1]) - 1] == step.split(": ")[1]
                told = {name for name, column in zip("ABC", left, strict=True) if len(set(column)) == 1}
                assert forced.keys() == told - known.keys() and all(
                    left[ord(x) - ord("A")][0] == forced[x] for x in forced
                )
                known = known | forced
            else:
                assert name not in known and left.shape[1] and (left[ord(name) - ord("A")] == value).all()
                known = known | {name: value}
        assert known == said(example.answer) and not supposed and not failed


@pytest.mark.parametrize("level", LEVELS)
def test_variables_depths_and_numbers_of_formulas_are_those_of_the_level(level):
    counts, deepest = set(), 0
    for example, _, tables, depths in instances(level):
        assert len(said(example.answer)) == NUM_VARIABLES[level]
        assert len(set(formulas_of(example.question))) == len(tables)
        counts.add(len(tables))
        deepest = max(deepest, *depths)
    assert counts == {3, 4, 5, 6} and deepest == DEPTHS[level]


def test_a_mini_puzzle_needs_no_supposition_and_others_may():
    assert not any("Suppose" in example.trace for example, *_ in instances("mini"))
    assert any("Suppose" in example.trace for example, *_ in instances("1"))


def test_literals_negations_and_operators_are_drawn_with_the_published_probabilities():
    rng = random.Random(0)
    literals = [deduction._draw_part(rng, 4, 0)[0].startswith("not") for _ in range(20000)]
    assert abs(np.mean(literals) - 0.4) < 0.015
    # Of depth 1: a negation of a literal, or two of them under an operator.
    texts = [deduction._draw_part(rng, 4, 1)[0] for _ in range(20000)]
    assert abs(np.mean([not text.startswith("(") for text in texts]) - 0.2) < 0.015
    operators = collections.Counter(re.findall(r"->|<->|\band\b|\bor\b|xor", " ".join(texts)))
    assert len(operators) == 5
    assert all(abs(count / operators.total() - 0.2) < 0.015 for count in operators.values())


def test_a_short_case_by_hand():
    def formula(text):
        table, _ = evaluate(text, all_assignments(4)[::-1])  # our assignments have variable 0 in their lowest bit
        return deduction.Formula(text, sum(1 << int(i) for i in np.flatnonzero(table)))

    texts = ("A xor B", "A -> C", "B -> C", "C <-> not D", "A -> D")
    puzzle = deduction.Deduction(4, tuple(map(formula, texts)), solution=0b0110)
    assert puzzle.answer() == "A=false, B=true, C=true, D=false"
    assert " ".join(puzzle.steps()) == (
        "Suppose A=true. 1: B=false. 2: C=true. 4: D=false. 5 fails. So A=false. 1: B=true. 3: C=true. 4: D=false."
    )
