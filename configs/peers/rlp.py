"""RLP (arXiv 2510.01265): R = log p(y* | x, z) - log p_EMA(y* | x), a clipped surrogate on the thought's tokens.

Theirs: next tokens of any text are the answers, the moving average has decay 0.999, A = G / (G - 1) (R - mean). Here:
answers of question-answer rows. The average's log p is the same for all of a group, so that it cancels in A; it is what
`reward_empty_trace` reports.
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
        reward=RewardConfig(mode="log_prob"),
        advantage=AdvantageConfig(clip="subtract", scale="rloo"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.8,
            ratio_high=1.2,
            normaliser="sequence_mean_token_mean",
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(kind="ema", decay=0.999, scores="empty_trace"),
    )
