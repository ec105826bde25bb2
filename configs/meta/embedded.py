"""All three stages of meta-ability alignment on a model of half a million parameters, in minutes on one core."""

import dataclasses

from configs import default
from configs.meta import domain
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.meta import MetaConfig
from nrt_jax.training.pretrain import Architecture, Phase, PretrainConfig


def get_config() -> MetaConfig:
    """The paper's reward and policy gradient; sizes, steps, groups and learning rate are those of a tiny model."""
    specialist, clock = _recipe("deduction"), _recipe("clock")
    return MetaConfig(
        base="tiny_meta",
        pretraining=PretrainConfig(
            task=("deduction", "induction", "abduction", "clock"),
            level=("mini", "mini", "mini", "easy"),
            architecture=Architecture(num_layers=4, vocab_size=1000),
            skill=Phase(2000, 3e-3, {"useful": 0.9, "empty": 0.04, "filler": 0.03, "irrelevant": 0.03}),
            habit=Phase(
                300,
                1e-3,
                {"useful": 0.1, "empty": 0.3, "filler": 0.2, "irrelevant": 0.2, "lazy": 0.12, "sloppy": 0.08},
            ),
        ),
        levels=("mini",),
        recipe=specialist,
        domain=dataclasses.replace(
            clock,
            steps=24,
            dataset=dataclasses.replace(clock.dataset, level="easy"),
            evaluation=dataclasses.replace(clock.evaluation, every=6),
        ),
    )


def _recipe(verifier: str) -> TrainConfig:
    """Reward and policy gradient of the recipes for real models, everything else of the embedded default."""
    recipe = domain.change(default.get_config(), verifier)
    return dataclasses.replace(
        recipe,
        steps=20,
        dataset=dataclasses.replace(recipe.dataset, size=2000),
        rollout=dataclasses.replace(recipe.rollout, prompts=16, max_trace_length=64, chunk_size=32),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=1e-3, warmup_updates=5),
        evaluation=dataclasses.replace(recipe.evaluation, questions=128, every=0, examples=0),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=0, keep=1),
    )
