"""Pretraining is a pure function of its config, runs its two phases in order, and takes any built-in task."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from nrt_jax.errors import UserError
from nrt_jax.tasks import InductionTask
from nrt_jax.training import learner
from nrt_jax.training.pretrain import Phase, PretrainConfig, pretrain

CONFIG = PretrainConfig(
    batch_size=4,
    skill=Phase(steps=2, learning_rate=1e-3, mixture={"useful": 1.0}),
    habit=Phase(steps=1, learning_rate=1e-3, mixture={"empty": 1.0}),
)


def test_same_config_same_parameters_other_seed_others():
    lines = []
    _, params, tokenizer = pretrain(CONFIG, lines.append)
    model, again, same_tokenizer = pretrain(CONFIG, lambda _: None)
    chex.assert_trees_all_equal(params, again)
    assert tokenizer.get_vocab() == same_tokenizer.get_vocab()
    assert [line.split()[0] for line in lines] == ["clock:", "skill", "habit"]
    _, other, _ = pretrain(dataclasses.replace(CONFIG, seed=1), lambda _: None)
    assert any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True))
    assert model.config.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_tokenizer_and_both_phases_take_documents_of_the_level(monkeypatch):
    documents, levels = InductionTask.documents, []

    def spy(self, n, seed, mixture, level="1"):
        levels.append(level)
        return documents(self, n, seed, mixture, level)

    monkeypatch.setattr(InductionTask, "documents", spy)
    _, _, tokenizer = pretrain(dataclasses.replace(CONFIG, task=("induction",), level=("2",)), lambda _: None)
    assert levels == ["2"] * 3
    assert len(tokenizer("Period", add_special_tokens=False).input_ids) == 1


def test_tasks_take_turns_and_each_has_its_level(monkeypatch):
    batches, make_batch = [], learner.from_demonstrations

    def spy(encoder, rows, **how):
        batches.append([row.example.question for row in rows])
        return make_batch(encoder, rows, **how)

    monkeypatch.setattr("nrt_jax.training.pretrain.from_demonstrations", spy)
    skill = dataclasses.replace(CONFIG.skill, steps=3)
    mixed = dataclasses.replace(CONFIG, task=("clock", "induction"), level=("easy", "mini"), skill=skill)
    pretrain(mixed, lambda _: None)
    told = {"clock": "o'clock", "induction": "repeat after 2 of them"}
    for questions, task in zip(batches, ("clock", "induction", "clock", "clock"), strict=True):
        assert len(questions) == CONFIG.batch_size and all(told[task] in question for question in questions)
    assert len({question for batch in batches for question in batch}) == 16  # each document is used once
    with pytest.raises(UserError, match="level: mini for 2 tasks"):
        pretrain(dataclasses.replace(mixed, level=("mini",)), lambda _: None)
