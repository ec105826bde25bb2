"""Group-relative advantages: a trace against its siblings, and against no trace at all."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from nrt_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages.

    Attributes:
        clip: What the empty trace's reward does: `clip` max(0, R - R_base) (the paper), `subtract` R - R_base, or
            `none` (the release).
        scale: `std` divides by the group's unbiased standard deviation, `none` does not.
    """

    clip: Literal["clip", "subtract", "none"] = "clip"
    scale: Literal["std", "none"] = "std"


BASELINES = {
    "none": lambda reward, baseline: reward,
    "subtract": lambda reward, baseline: reward - baseline[..., None],
    "clip": lambda reward, baseline: jnp.maximum(0.0, reward - baseline[..., None]),
}


def group_advantage(
    reward: jax.Array, baseline: jax.Array | None = None, *, clip: str = "none", scale: str = "std"
) -> jax.Array:
    """A_k = (R'_k - mean) / std over the K traces of one prompt; zero where all K rewards are equal.

    R' = R, R - R_base or max(0, R - R_base) (NRT, arXiv 2602.11549, section 3). The standard deviation is the
    unbiased one (K - 1) with no epsilon, as in the release.

    Args:
        reward: [..., K] float.
        baseline: [...] float, R_base = f on the empty trace; not needed for clip="none".
        clip: One of `BASELINES`.
        scale: "std" or "none" (centred only).

    Raises:
        UserError: `clip` or `scale` is not known.
        ValueError: The baseline is missing.
    """
    if clip not in BASELINES:
        raise unknown_name("advantage.clip", clip, BASELINES)
    if scale not in ("std", "none"):
        raise unknown_name("advantage.scale", scale, ("std", "none"))
    if baseline is None and clip != "none":
        raise ValueError(f"clip={clip!r} needs the empty trace's reward as baseline, which is None")
    reward = BASELINES[clip](reward, baseline)
    centred = reward - jnp.mean(reward, -1, keepdims=True)
    if scale == "std":
        # Compared exactly: the mean of equal numbers may be off by one ulp, which dividing by std would blow up to 1.
        equal = jnp.max(reward, -1, keepdims=True) == jnp.min(reward, -1, keepdims=True)
        std = jnp.std(reward, -1, ddof=1, keepdims=True)
        centred = jnp.where(equal, 0.0, centred / jnp.where(equal, 1.0, std))
    return jax.lax.stop_gradient(centred)
