"""VeriFree (arXiv 2505.21493): R = p(y* | x, z), and the exact gradient of its mean.

Theirs: RLOO on the trace, no std, no ratio; R grad log pi(y*) on the answer; 0 where the trace was cut off or has no
answer tag; logits divided by the sampling temperature. Here: the delimiter is one token where they split before the `>`
of `<answer>`; one update a step, as for every loss without a ratio.
"""

import dataclasses

from configs import nrt
from configs.objectives.rloo import one_update
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import ShapingConfig
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        one_update(recipe),
        reward=RewardConfig(mode="prob", shaping=ShapingConfig(require_delimiter=True)),
        advantage=AdvantageConfig(clip="none", scale="rloo"),
        loss=NRTLossConfig(
            policy="reinforce", normaliser="sequence_mean_token_sum", token_signal="derived", delimiter_weight=0.0
        ),
        reference=ReferenceConfig(),
    )
