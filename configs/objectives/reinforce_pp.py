"""REINFORCE++ (arXiv 2501.03262): PPO's loss without a critic, advantages whitened over the whole batch.

Theirs: KL (k1) in the reward, summed from each token to the end; eps 0.2. Here: the KL is summed over the trace, one
advantage a trace. The variant with a baseline, R - mean of the group, divided by the batch's std, is `--advantage.scale
batch_std`, with KL (k2) in the loss: `--loss.kl-in loss --loss.kl-estimator k2`.
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
        advantage=AdvantageConfig(clip="none", scale="batch"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.2,
            normaliser="token_mean",
            kl_weight=1e-3,
            kl_estimator="k1",
            kl_in="reward",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(kind="initial"),
    )
