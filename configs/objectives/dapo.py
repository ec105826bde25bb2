"""DAPO (arXiv 2503.14476): GRPO with a higher upper bound, the mean over tokens, a soft punishment of length, no KL.

Theirs: eps_low 0.2 and eps_high 0.28; L_max 20480 with L_cache 4096, a fifth, as here, of the most that a row samples;
dynamic sampling, which draws questions until no group has equal rewards. Here: no resampling; groups of equal rewards
have advantage 0 and no gradient, but their tokens count in the mean (`equal_group_share` in the metrics says how many
they are).
"""

import dataclasses

from configs import nrt
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import ShapingConfig
from nrt_jax.training.config import ReferenceConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        recipe,
        reward=dataclasses.replace(recipe.reward, shaping=ShapingConfig(overlong_max=-1, overlong_cache=-1)),
        advantage=AdvantageConfig(clip="none", scale="std"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.28,
            normaliser="token_mean",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(),
    )
