"""Advantages and losses: functions of rewards and log-probabilities, with no model inside."""

from nrt_jax.objectives.advantage import BASELINES, SCALES, AdvantageConfig, drop_low_std, group_advantage
from nrt_jax.objectives.dpo import DPOConfig, dpo_loss
from nrt_jax.objectives.kl import KL_ESTIMATORS, kl_estimate
from nrt_jax.objectives.nrt import (
    Denominators,
    LossMasks,
    NRTLossConfig,
    denominators,
    nrt_loss,
    policy_mask,
    token_signal,
)
from nrt_jax.objectives.policy import POLICY_LOSSES, PolicyTerm
from nrt_jax.objectives.sft import sft_loss

__all__ = [
    "BASELINES",
    "KL_ESTIMATORS",
    "POLICY_LOSSES",
    "SCALES",
    "AdvantageConfig",
    "DPOConfig",
    "Denominators",
    "LossMasks",
    "NRTLossConfig",
    "PolicyTerm",
    "denominators",
    "dpo_loss",
    "drop_low_std",
    "group_advantage",
    "kl_estimate",
    "nrt_loss",
    "policy_mask",
    "sft_loss",
    "token_signal",
]
