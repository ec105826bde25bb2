"""Rewards of reasoning traces."""

from nrt_jax.rewards.intrinsic import AGGREGATIONS, Reward, aggregate, score_reference

__all__ = ["AGGREGATIONS", "Reward", "aggregate", "score_reference"]
