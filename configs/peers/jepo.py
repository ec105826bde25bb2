"""JEPO (arXiv 2503.19618): the multi-sample bound L = log(1/n sum_j p_j) on log p(y* | x), and its gradient.

Theirs: A_i = L - L without trace i, divided by its std, in [-1, 1]; beta_sup grad L on the answer, beta_sup 0 to 1e-2
for short answers (`--loss.token-weight`) and 1 for long ones, as here; KL 1e-3. Here: KL (k3) is in the loss, one
update a step.
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
        reward=RewardConfig(mode="jepo"),
        advantage=AdvantageConfig(clip="none", scale="jepo"),
        loss=NRTLossConfig(
            policy="reinforce",
            normaliser="sequence_mean_token_sum",
            token_signal="derived",
            kl_weight=1e-3,
            delimiter_weight=0.0,
        ),
        reference=ReferenceConfig(kind="initial"),
    )
