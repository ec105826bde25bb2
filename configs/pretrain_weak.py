"""The weak base of the ablation: like the embedded base, but useful working is ten times rarer."""

import dataclasses

from nrt_jax.training.pretrain import PretrainConfig


def get_config() -> PretrainConfig:
    """One useful trace in a hundred documents of the second phase."""
    config = PretrainConfig()
    mixture = config.habit.mixture | {"useful": 0.01}
    return dataclasses.replace(config, habit=dataclasses.replace(config.habit, mixture=mixture))
