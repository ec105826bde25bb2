"""Sampling reasoning traces."""

from nrt_jax.rollout import engine
from nrt_jax.rollout.sampler import Rollout, SamplingConfig, cut_traces, prefill, row_keys, sample

__all__ = ["Rollout", "SamplingConfig", "cut_traces", "engine", "prefill", "row_keys", "sample"]
