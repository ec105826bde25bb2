"""LaTRO (arXiv 2411.04282): R = log p(y* | x, z) - 0.05 (log pi(z) - log pi_ref(z)), RLOO.

Theirs: K = 16, as here; the gradient of log p(y* | x, z) on the answer. Here: one update a step; the trace's KL counts
its closing delimiter.
"""

import dataclasses

from configs import nrt
from configs.objectives.rloo import one_update
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        one_update(recipe),
        rollout=dataclasses.replace(recipe.rollout, group_size=16),
        reward=RewardConfig(mode="log_prob"),
        advantage=AdvantageConfig(clip="none", scale="rloo"),
        loss=NRTLossConfig(
            policy="reinforce",
            normaliser="sequence_mean_token_sum",
            kl_weight=0.05,
            kl_estimator="k1",
            kl_in="reward",
            delimiter_weight=0.0,
        ),
        reference=ReferenceConfig(kind="initial"),
    )
