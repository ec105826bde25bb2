"""NOVER (arXiv 2505.16022): format, rank of the answer's perplexity under a slow proxy, and efficiency, 1:1:1.

Theirs: proxy = 0.9 proxy + 0.1 policy every 100 steps, which is the reference of KL 0.1 too; GRPO without std, eps 0.1
and 0.2 (their code); no token term. Here: the format is that the policy wrote the delimiter itself.
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
        reward=RewardConfig(mode="nover"),
        advantage=AdvantageConfig(clip="none", scale="none"),
        loss=NRTLossConfig(
            policy="ppo",
            ratio_low=0.9,
            ratio_high=1.2,
            normaliser="sequence_mean_token_mean",
            kl_weight=0.1,
            delimiter_weight=0.0,
            token_weight=0.0,
        ),
        reference=ReferenceConfig(kind="ema", decay=0.9, every=100, scores="answers"),
    )
