"""Rewards of reasoning traces."""

from nrt_jax.rewards.group import BELOW_ZERO, GROUP_AGGREGATIONS, aggregate_group
from nrt_jax.rewards.intrinsic import AGGREGATIONS, Reward, aggregate, score_reference
from nrt_jax.rewards.judge import Judge, JudgeConfig, Judgement
from nrt_jax.rewards.rules import Rules
from nrt_jax.rewards.shaping import ShapingConfig, punishment
from nrt_jax.rewards.verifiable import VERIFIERS, Completion, VerifierConfig, get_verifier, vote

__all__ = [
    "AGGREGATIONS",
    "BELOW_ZERO",
    "GROUP_AGGREGATIONS",
    "VERIFIERS",
    "Completion",
    "Judge",
    "JudgeConfig",
    "Judgement",
    "Reward",
    "Rules",
    "ShapingConfig",
    "VerifierConfig",
    "aggregate",
    "aggregate_group",
    "get_verifier",
    "punishment",
    "score_reference",
    "vote",
]
