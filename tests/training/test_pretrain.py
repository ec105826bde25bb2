"""Pretraining is a pure function of its config, and runs its two phases in order."""

import dataclasses

import chex
import jax
import numpy as np

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
