"""GRPO (DeepSeekMath, arXiv 2402.03300): PPO's loss, A = (R - mean) / std, 1/|o_i| a trace, KL (k3) in the loss.

Theirs: eps 0.2, KL 0.04 to the policy before training, K = 64, lr 1e-6. Here: K, batch and learning rate are the
recipe's, and so is the reward; the loss covers what the policy sampled, the trace and its closing delimiter. The
standard deviation is the unbiased one, without an epsilon.
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
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.2,
            normaliser="sequence_mean_token_mean",
            kl_weight=0.04,
            kl_estimator="k3",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(kind="initial"),
    )
