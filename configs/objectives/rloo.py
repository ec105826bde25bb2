"""RLOO (arXiv 2402.14740): REINFORCE on whole traces against the mean of their siblings, KL in the reward.

Theirs: A = R - mean of the others, R = r - beta log(pi / pi_ref) of the whole trace, no ratio, no clipping; beta 0.03
to 0.1. Here: beta 0.05, and one update a step, since without a ratio only a step's first one is on-policy.
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
        one_update(recipe),
        advantage=AdvantageConfig(clip="none", scale="rloo"),
        loss=NRTLossConfig(
            policy="reinforce",
            normaliser="sequence_mean_token_sum",
            kl_weight=0.05,
            kl_estimator="k1",
            kl_in="reward",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(kind="initial"),
    )


def one_update(recipe: TrainConfig) -> TrainConfig:
    """One update a step, of all its prompts, in parts as large as before."""
    return dataclasses.replace(
        recipe,
        updates_per_step=1,
        micro_batches=recipe.updates_per_step * recipe.micro_batches,
        optimizer=dataclasses.replace(
            recipe.optimizer, warmup_updates=recipe.optimizer.warmup_updates // recipe.updates_per_step
        ),
    )
