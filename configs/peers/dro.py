"""DRO (arXiv 2506.13351): R3, the gain of log c_i over no reasoning, weighted by how much the traces disagree on it.

Theirs: GRPO; the baseline is the trace with its tokens masked; prompts whose largest sigma is low are dropped. Here:
the baseline is the empty trace; weights are sigma_i / sum sigma, whose scale cancels in A; no prompt is dropped
(`--advantage.min-std` drops by the std of the rewards); the delimiter is learned by cross-entropy, as in NRT.
"""

import dataclasses

from configs import nrt
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        recipe,
        reward=RewardConfig(mode="dro"),
        advantage=AdvantageConfig(clip="none", scale="std"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.2,
            normaliser="sequence_mean_token_mean",
            token_weight=0.0,
        ),
        reference=ReferenceConfig(),
    )
