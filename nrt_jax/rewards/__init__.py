"""Rewards of reasoning traces."""

from nrt_jax.rewards.intrinsic import AGGREGATIONS, Reward, aggregate, score_reference
from nrt_jax.rewards.rules import Rules
from nrt_jax.rewards.verifiable import VERIFIERS, Completion, VerifierConfig, get_verifier

__all__ = [
    "AGGREGATIONS",
    "VERIFIERS",
    "Completion",
    "Reward",
    "Rules",
    "VerifierConfig",
    "aggregate",
    "get_verifier",
    "score_reference",
]
