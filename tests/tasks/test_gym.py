"""Datasets of reasoning-gym as tasks; skipped where the package is not installed, but for the line that says so."""

import inspect
import re
import sys

import pytest

from nrt_jax import tasks
from nrt_jax.data.load import open_sources
from nrt_jax.data.rows import DataConfig
from nrt_jax.errors import UserError
from nrt_jax.tasks import gym

MISSING = r"data: gym:leg_counting needs reasoning-gym .*; install it: pip install 'nrt_jax\[gym\]'"


def test_without_the_package_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym.get.cache_clear()
    with pytest.raises(UserError, match=MISSING):
        open_sources(["gym:leg_counting"], DataConfig(), num_held_out=1, seed=0)


@pytest.fixture(scope="module")
def package():
    gym.get.cache_clear()
    return pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", ["leg_counting", "spell_backward", "word_sorting", "number_sorting"])
def test_rows_are_the_packages_with_disjoint_splits_and_its_verdicts(package, name):
    opened = open_sources([f"gym:{name}"], DataConfig(size=60), num_held_out=20, seed=1)
    task, train, heldout = tasks.get(f"gym:{name}"), list(opened.train[0]), list(opened.own[0])
    assert (len(train), len(heldout)) == (60, 20) and task is tasks.get(task.name)
    assert not {e.question for e in train} & {e.question for e in heldout}
    assert task.examples(60, 1) == train != task.examples(60, 2) and train[0].trace is None
    dataset = package.create_dataset(name, seed=0, size=1)
    for example in train[:10]:
        entry = task._entries[example.question, example.answer]
        assert dataset.score_answer(example.answer, entry) == 1.0 and task.is_correct(example, example.answer)
        assert task.verdict(example, "no such answer") == "wrong"
        assert [task.verdict(example, text) for text in ("", " \n", "x" * 20000)] == ["unparseable"] * 3


def test_no_answer_is_run_as_python(package):
    runs = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(answer")
    classes = {name: dataset for name, (dataset, _) in package.factory.DATASETS.items()}
    assert {name for name, dataset in classes.items() if runs.search(inspect.getsource(dataset))} == gym.EVALUATES
    task = tasks.get("gym:countdown")
    (example,) = task.examples(1, 0)
    with pytest.raises(UserError, match="gym:countdown: its verifier runs answers as Python; expected another dataset"):
        task.verdict(example, "__import__('os').system('true')")


def test_a_verifier_that_fails_counts_as_no_answer(package):
    task = tasks.get("gym:leg_counting")
    (example,) = task.examples(1, 0)

    class Broken:
        def score_answer(self, answer, entry):
            raise ZeroDivisionError

    broken = gym.GymTask(task.name)
    broken._entries, broken._dataset = task._entries, Broken()
    assert broken.verdict(example, "1") == "unparseable"


def test_bad_uses_are_one_clear_line(package):
    task = tasks.get("gym:leg_counting")
    for call, line in (
        (lambda: tasks.get("gym:leg_countin"), r"data: unknown value 'gym:leg_countin'; .* 'gym:leg_counting'\?"),
        (lambda: task.examples(1, 0, split="test"), "split: unknown value"),
        (lambda: task.examples(1, 0, level="3"), "dataset.level: '3' given for gym:leg_counting, which has no levels"),
        (lambda: task.documents(1, 0, {}), "has no traces to pretrain on"),
        (lambda: task.verdict(tasks.Example("q", "a"), "a"), "is none of those generated here"),
    ):
        with pytest.raises(UserError, match=line):
            call()
