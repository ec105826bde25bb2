"""CISPO (MiniMax-M1, arXiv 2506.13585): the importance weight is clipped, no token's gradient is dropped.

Theirs: sg(min(r, 1 + eps_high)) A log pi, mean over tokens, no lower bound, no KL; eps_high is tuned and not published.
Here: DAPO's 0.28. The NRT release's loss is this one with a lower bound, and with tokens beyond the bounds dropped.
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
        advantage=AdvantageConfig(clip="none", scale="std"),
        loss=NRTLossConfig(
            policy="cispo",
            ratio_low=0.0,
            ratio_high=1.28,
            normaliser="token_mean",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(),
    )
