"""RLPR (arXiv 2506.18254): R = max(0, mean c_i - the same without reasoning, by the policy before training).

Theirs: GRPO with std, eps 0.2 and 0.27, no token term; prompts whose rewards have a low standard deviation are dropped
(beta x its moving average, decay 0.99, beta 0.9 in their Llama script); -1 for an n-gram seen too often; 0.9 R + 0.1
for the format. Here: n-grams are of token ids (10 of them, 10 times), dropped prompts have advantage 0, and the format
is that the policy wrote the delimiter, which is learned by cross-entropy too, as in NRT.
"""

import dataclasses

from configs import nrt
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.rewards import ShapingConfig
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig


def get_config() -> TrainConfig:
    """Give it `--model DIR --data SOURCE`."""
    return change(nrt.get_config())


def change(recipe: TrainConfig) -> TrainConfig:
    """Makes any recipe's method this one."""
    return dataclasses.replace(
        recipe,
        reward=RewardConfig(mode="arithmetic_mean", intrinsic=0.9, format=0.1, shaping=ShapingConfig(ngram_count=10)),
        advantage=AdvantageConfig(clip="clip", scale="std", min_std=0.9),
        loss=NRTLossConfig(policy="ppo", ratio_low=0.8, ratio_high=1.27, token_weight=0.0),
        reference=ReferenceConfig(kind="initial", scores="empty_trace"),
    )
