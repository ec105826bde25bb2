"""What holds for every task: names, splits, levels, documents, and a verifier that no text deceives."""

import inspect
import itertools
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import tasks
from nrt_jax.errors import UserError
from nrt_jax.tasks import puzzle

NAMES = sorted(tasks.TASKS)
PUZZLES = ["abduction", "deduction", "induction"]
LEVELS = ("1", "2", "3", "4", "5")
EXAMPLES = {name: tasks.get(name).examples(20, seed=3) for name in NAMES}
PAIRS = {"deduction": ("true", "false"), "abduction": ("reachable", "unreachable")}


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_called_as_the_protocol_says(name):
    task = tasks.get(name)
    assert tasks.is_task(name) and task.name == name
    for method in ("examples", "documents", "is_correct", "verdict"):
        expected = inspect.signature(getattr(tasks.Task, method)).parameters
        assert list(inspect.signature(getattr(type(task), method)).parameters) == list(expected)


@pytest.mark.parametrize("name", NAMES)
def test_reference_is_exact_and_that_of_another_question_wrong(name):
    task = tasks.get(name)
    for example, other in itertools.pairwise(EXAMPLES[name]):
        assert task.verdict(example, f" {example.answer}\n") == "exact" and task.is_correct(example, example.answer)
        if other.answer != example.answer:
            assert task.verdict(example, other.answer) == "wrong" and not task.is_correct(example, other.answer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n", ".", "nan", "NaN", "inf", "1e3", "\u0663", "1_000", "--5", "+", "0x10", "None", "True",
        "1" * 4500, "A", "A=", "=true", "A=true=false", "A==true", "A=1", "A=nan", "A=true, A=false", "A=true A=true",
        "Á=true", "A=true; garbage", "A=true\x00", "<answer>A=true</answer>", "A is true", "not A", "A, B", ",A=true",
        "A=tru\u0435", "__import__('os').system('true')", "A" * 9999, "A=true," * 1400, "A=true " * 1400, " " * 9999,
        "=" * 9999, "A: " * 3000, "A=true" + " " * 9000 + "!", "-" * 9999, "{" * 9999, "(" * 9999, "\ud800",
        "A: reachable, A: unreachable", "A: reachable and B: unreachable", "12 34", "12.5", "1,234", "12 apples",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_unparseable(name, text):
    assert tasks.get(name).verdict(EXAMPLES[name][0], text) == "unparseable"


@pytest.mark.parametrize("name", PUZZLES)
def test_right_answers_with_anything_more_or_too_long_are_not_exact(name):
    task = tasks.get(name)
    for example in EXAMPLES[name]:
        right = example.answer
        for text in (
            f"{right} {right}",
            f"{right}\n{right}",
            f"{right} or not",
            f"<answer>{right}</answer>",
            f"<{right}",
            f"{right}\u3000",  # a space of another script
        ):
            assert task.verdict(example, text) == "unparseable"
        assert task.verdict(example, right + " " * (puzzle.MAX_ANSWER_CHARACTERS - len(right))) == "exact"
        assert task.verdict(example, right + " " * puzzle.MAX_ANSWER_CHARACTERS) == "unparseable"


@pytest.mark.parametrize("name", sorted(PAIRS))
@settings(max_examples=60)
@given(data=st.data())
def test_order_spaces_and_case_do_not_count_but_every_pair_does(name, data):
    task, example = tasks.get(name), data.draw(st.sampled_from(tasks.get(name).examples(50, 4, level="1-5")))
    pairs = [tuple(re.split(r"\s*[=:]\s*", pair)) for pair in example.answer.split(", ")]
    spaces = st.sampled_from(["", " ", "\n", "  "])

    def written(pairs):
        text = ""
        for letter, word in data.draw(st.permutations(pairs)):
            letter, word = (data.draw(st.sampled_from([x.lower(), x.upper(), x])) for x in (letter, word))
            between = "".join((data.draw(spaces), data.draw(st.sampled_from("=:")), data.draw(spaces)))
            text += letter + between + word + data.draw(st.sampled_from([", ", ";", " , ", "\n"]))
        return text.strip(" ,;\n") + data.draw(st.sampled_from(["", ".", "\n"]))

    assert task.verdict(example, written(pairs)) == "exact"
    i = data.draw(st.integers(0, len(pairs) - 1))
    letter, word = pairs[i]
    (opposite,) = set(PAIRS[name]) - {word}
    assert task.verdict(example, written([*pairs[:i], (letter, opposite), *pairs[i + 1 :]])) == "wrong"
    assert task.verdict(example, written([*pairs, (letter, opposite)])) == "unparseable"
    assert task.verdict(example, written([*pairs, ("Z", word)])) == "wrong"
    if len(pairs) > 1:
        assert task.verdict(example, written(pairs[:i] + pairs[i + 1 :])) == "wrong"


@settings(max_examples=60)
@given(number=st.integers(-(10**19), 10**19), data=st.data())
def test_numbers_are_compared_as_numbers(number, data):
    task, example = tasks.get("induction"), EXAMPLES["induction"][0]
    text = data.draw(st.sampled_from([f"{number}", f" {number}. ", f"{number:+d}"]))
    assert task.verdict(example, text) == ("exact" if str(number) == example.answer else "wrong")
    assert task.verdict(example, f"+{example.answer}" if "-" not in example.answer else example.answer) == "exact"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100)
@given(text=st.text(max_size=200) | st.text("ABab =:,;.truefalsunrchb01-9+\n", max_size=200))
def test_no_text_makes_a_verifier_fail(name, text):
    assert tasks.get(name).verdict(EXAMPLES[name][0], text) in ("exact", "wrong", "unparseable")


@pytest.mark.parametrize("name", PUZZLES)
def test_splits_are_disjoint_in_content_for_any_seeds_and_names_of_levels(name):
    def contents(split, seed, level):
        task = tasks.get(name)
        found = itertools.islice(task._puzzles(f"{name}/examples", seed, split, level), 300)
        return {p.content for p in found}

    assert not contents("train", 0, "mini") & contents("heldout", 1, "mini")
    train = contents("train", 0, "1") | contents("train", 1, "1-2") | contents("train", 2, "2")
    heldout = contents("heldout", 0, "1") | contents("heldout", 3, "1-2") | contents("heldout", 2, "2")
    assert not train & heldout and len(train) > 800 and len(heldout) > 800


@pytest.mark.parametrize("name", ["abduction", "deduction"])
def test_a_puzzle_is_in_the_same_split_in_whatever_order_its_lines_stand(name):
    task, rng = tasks.get(name), random.Random(0)
    lines = "rules" if name == "abduction" else "formulas"
    for drawn in (task.draw(rng, 2) for _ in range(20)):
        parts = list(getattr(drawn, lines))
        rng.shuffle(parts)
        fields = vars(drawn) | {lines: tuple(parts)}
        assert type(drawn)(**{k: v for k, v in fields.items() if k != "derived"}).content == drawn.content


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_texts_and_other_seed_other_texts(name):
    task, mixture = tasks.get(name), dict.fromkeys(puzzle.KINDS, 1.0)
    assert task.examples(20, 5) == task.examples(40, 5)[:20] != task.examples(20, 6)
    assert task.documents(20, 5, mixture) == task.documents(20, 5, mixture) != task.documents(20, 6, mixture)
    assert not {d.question for d in task.documents(300, 5, mixture)} & {e.question for e in task.examples(300, 5)}


@pytest.mark.parametrize("name", PUZZLES)
def test_documents_have_right_answers_and_traces_of_the_kinds_asked_for(name):
    task = tasks.get(name)
    useful = task.documents(200, 0, {"useful": 1.0}, level="1-2")
    for kind in puzzle.KINDS:
        documents = task.documents(200, 0, {kind: 1.0}, level="1-2")
        assert [(d.question, d.answer) for d in documents] == [(d.question, d.answer) for d in useful]
        traces = [(d.trace, whole.trace) for d, whole in zip(documents, useful, strict=True)]
        if kind == "lazy":
            assert all(trace and whole.startswith(trace + " ") for trace, whole in traces)
        elif kind == "sloppy":
            words = [(set(re.findall(r"\w+", d.trace)), set(re.findall(r"\w+", d.question))) for d in documents]
            assert all(said <= asked for said, asked in words)
        elif kind == "empty":
            assert not any(trace for trace, _ in traces)
        elif kind != "useful":
            assert len({trace for trace, _ in traces}) < 5 and all(trace for trace, _ in traces)
    mixed = task.documents(1000, 0, {"useful": 1, "empty": 3})
    assert 0.2 < np.mean([d.trace != "" for d in mixed]) < 0.3


@pytest.mark.parametrize("name", PUZZLES)
def test_a_mixture_of_levels_has_each_of_them_equally_often(name, monkeypatch):
    task, levels = tasks.get(name), []
    draw = type(task).draw
    monkeypatch.setattr(type(task), "draw", lambda self, rng, level: levels.append(level) or draw(self, rng, level))
    task.examples(800, 0, level="2-4")
    counts = [levels.count(level) / len(levels) for level in (1, 2, 3, 4, 5)]
    assert np.abs(np.subtract(counts, [0, 1 / 3, 1 / 3, 1 / 3, 0])).max() < 0.06


@pytest.mark.parametrize("level", ["0", "6", "2-1", "1-6", "one", "", "1 - 2", "\u0661", "default", "mini-1"])
def test_an_unknown_level_is_one_clear_line(level):
    with pytest.raises(UserError, match=r"dataset\.level: unknown value .*; expected 1 to 5, or a mixture such as 1-2"):
        tasks.get("deduction").examples(1, 0, level=level)


def test_other_unknown_names_are_one_clear_line():
    for call in (
        lambda: tasks.get("deducton"),
        lambda: tasks.get("deduction").examples(1, 0, split="test"),
        lambda: tasks.get("deduction").documents(1, 0, {"usefull": 1.0}),
    ):
        with pytest.raises(UserError, match="unknown value"):
            call()


def test_the_system_prompt_has_each_tag_once_in_order():
    assert re.findall(r"</?\w+>", tasks.SYSTEM_PROMPT) == ["<think>", "</think>", "<answer>", "</answer>"]
