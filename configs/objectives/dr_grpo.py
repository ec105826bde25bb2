"""Dr.GRPO (arXiv 2503.20783): GRPO without its two biases, the division by std and by |o_i|.

Theirs: A = R - mean, a trace's loss is the sum over its tokens divided by the most that it may have, eps 0.2, no KL.
Here: as in configs/objectives/grpo.py.
"""

import dataclasses

from configs import nrt
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.training.config import ReferenceConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        recipe,
        advantage=AdvantageConfig(clip="none", scale="none"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.2,
            normaliser="sequence_mean_token_sum",
            constant=0.0,
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(),
    )
