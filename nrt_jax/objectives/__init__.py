"""Advantages and losses: functions of rewards and log-probabilities, with no model inside."""

from nrt_jax.objectives.advantage import BASELINES, AdvantageConfig, group_advantage
from nrt_jax.objectives.nrt import (
    Denominators,
    LossMasks,
    NRTLossConfig,
    denominators,
    nrt_loss,
    token_signal,
)
from nrt_jax.objectives.sft import sft_loss

__all__ = [
    "BASELINES",
    "AdvantageConfig",
    "Denominators",
    "LossMasks",
    "NRTLossConfig",
    "denominators",
    "group_advantage",
    "nrt_loss",
    "sft_loss",
    "token_signal",
]
