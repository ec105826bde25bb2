"""Sampling reasoning traces."""

from nrt_jax.rollout import engine
from nrt_jax.rollout.draw import Truncation, check_truncation
from nrt_jax.rollout.rollout import Rollout, cut_traces, until_delimiter
from nrt_jax.rollout.sampler import SamplingConfig, cache_dtype, force, prefill, row_keys, sample

__all__ = [
    "Rollout",
    "SamplingConfig",
    "Truncation",
    "cache_dtype",
    "check_truncation",
    "cut_traces",
    "engine",
    "force",
    "prefill",
    "row_keys",
    "sample",
    "until_delimiter",
]
