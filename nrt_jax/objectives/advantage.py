"""Advantages: a trace against its siblings, against no trace at all, or against the whole batch."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from nrt_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages.

    Attributes:
        clip: What the empty trace's reward does: `clip` max(0, R - R_base) (the NRT paper, RLPR), `subtract`
            R - R_base, or `none` (the NRT release).
        scale: How the rewards of a group are compared; one of `SCALES`: `std` (GRPO, NRT), `none` (Dr.GRPO, NOVER),
            `rloo` (RLOO, VeriFree, LaTRO, RLP), `batch` and `batch_std` (REINFORCE++ and its variant with a baseline),
            `jepo`.
        min_std: A prompt whose rewards have a standard deviation below min_std x a moving average of it has no
            advantage at all (RLPR's filter, 0.5 to 1.0); 0 keeps all.
        std_decay: Of that moving average, which starts as the first step's mean and counts the steps before this one.
    """

    clip: Literal["clip", "subtract", "none"] = "clip"
    scale: Literal["std", "none", "rloo", "batch", "batch_std", "jepo"] = "std"
    min_std: float = 0.0
    std_decay: float = 0.99


BASELINES = {
    "none": lambda reward, baseline: reward,
    "subtract": lambda reward, baseline: reward - baseline[..., None],
    "clip": lambda reward, baseline: jnp.maximum(0.0, reward - baseline[..., None]),
}


def _equal(reward: jax.Array, axis) -> jax.Array:
    """Where all are equal: compared exactly, since their mean may be an ulp off, which 1 / std would blow up to 1."""
    return jnp.max(reward, axis, keepdims=True) == jnp.min(reward, axis, keepdims=True)


def _centred(reward: jax.Array) -> jax.Array:
    return jnp.where(_equal(reward, -1), 0.0, reward - jnp.mean(reward, -1, keepdims=True))


def _divided(values: jax.Array, axis=None) -> jax.Array:
    """values / their unbiased standard deviation; zero where that is zero."""
    equal = _equal(values, axis)
    std = jnp.std(values, axis, ddof=1, keepdims=True)
    return jnp.where(equal, 0.0, values / jnp.where(equal, 1.0, std))


def _std(reward):
    """(R - mean) / std over the group (GRPO, arXiv 2402.03300)."""
    equal = _equal(reward, -1)
    std = jnp.std(reward, -1, ddof=1, keepdims=True)
    return jnp.where(equal, 0.0, (reward - jnp.mean(reward, -1, keepdims=True)) / jnp.where(equal, 1.0, std))


def _rloo(reward):
    """R - the mean of the others = (R - mean) K / (K - 1) (RLOO, arXiv 2402.14740)."""
    group_size = reward.shape[-1]
    return _centred(reward) * (group_size / (group_size - 1))


def _batch(reward):
    """(R - mean) / std over the whole batch, groups playing no part (REINFORCE++, arXiv 2501.03262)."""
    centred = jnp.where(_equal(reward, None), 0.0, reward - jnp.mean(reward))
    return _divided(centred)


def _batch_std(reward):
    """R - the group's mean, divided by the whole batch's std of that (REINFORCE++-baseline)."""
    return _divided(_centred(reward))


def _jepo(log_p):
    """L - L_without_i, L = log(1/K sum_j p_j), divided by its std over the group, in [-1, 1] (JEPO, arXiv 2503.19618).

    The rewards are log p_j, the log-probabilities of the whole answer.
    """
    group_size = log_p.shape[-1]
    others = jnp.where(jnp.eye(group_size, dtype=bool), -jnp.inf, log_p[..., None, :])
    bound = jax.nn.logsumexp(log_p, -1, keepdims=True) - jnp.log(group_size)
    gain = bound - (jax.nn.logsumexp(others, -1) - jnp.log(group_size - 1))
    return jnp.clip(_divided(jnp.where(_equal(log_p, -1), 0.0, gain), -1), -1.0, 1.0)


#: From rewards [..., K], after the baseline, to advantages. Those of `batch` and `batch_std` want the whole batch.
SCALES = {
    "std": _std,
    "none": _centred,
    "rloo": _rloo,
    "batch": _batch,
    "batch_std": _batch_std,
    "jepo": _jepo,
}


def group_advantage(
    reward: jax.Array, baseline: jax.Array | None = None, *, clip: str = "none", scale: str = "std"
) -> jax.Array:
    """A_k of the K traces of each prompt, by default (R'_k - mean) / std; zero where all K rewards are equal.

    R' = R, R - R_base or max(0, R - R_base) (NRT, arXiv 2602.11549, section 3). Standard deviations are the
    unbiased ones (K - 1) with no epsilon, as in the release.

    Args:
        reward: [..., K] float.
        baseline: [...] float, R_base = f on the empty trace; not needed for clip="none".
        clip: One of `BASELINES`.
        scale: One of `SCALES`.

    Raises:
        UserError: `clip` or `scale` is not known.
        ValueError: The baseline is missing.
    """
    if clip not in BASELINES:
        raise unknown_name("advantage.clip", clip, BASELINES)
    if scale not in SCALES:
        raise unknown_name("advantage.scale", scale, SCALES)
    if baseline is None and clip != "none":
        raise ValueError(f"clip={clip!r} needs the empty trace's reward as baseline, which is None")
    return jax.lax.stop_gradient(SCALES[scale](BASELINES[clip](reward, baseline)))


def drop_low_std(
    advantage: jax.Array, reward: jax.Array, average: jax.Array, *, min_std: float, decay: float
) -> tuple[jax.Array, jax.Array]:
    """RLPR's filter: prompts that the policy finds too easy or too hard, whose rewards hardly differ, teach nothing.

    Args:
        advantage: [P, K].
        reward: [P, K], after the baseline.
        average: [] float32, the moving average before this step; NaN before the first.
        min_std: Least share of the average that a prompt's standard deviation must have.
        decay: Of the average.

    Returns:
        The advantages, zero for dropped prompts, and the new average. Before the first step nothing is dropped.
    """
    std = jnp.std(reward, -1, ddof=1, keepdims=True)
    low = std < min_std * average  # Nothing is below NaN.
    mean = jnp.mean(std)
    average = jnp.where(jnp.isnan(average), mean, decay * average + (1 - decay) * mean)
    return jnp.where(low, 0.0, advantage), average
