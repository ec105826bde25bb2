"""Rewards of reasoning traces."""

from nrt_jax.rewards.group import BELOW_ZERO, GROUP_AGGREGATIONS, aggregate_group
from nrt_jax.rewards.intrinsic import AGGREGATIONS, Reward, aggregate, score_reference
from nrt_jax.rewards.shaping import ShapingConfig, punishment

__all__ = [
    "AGGREGATIONS",
    "BELOW_ZERO",
    "GROUP_AGGREGATIONS",
    "Reward",
    "ShapingConfig",
    "aggregate",
    "aggregate_group",
    "punishment",
    "score_reference",
]
