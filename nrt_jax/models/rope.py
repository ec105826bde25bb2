"""Rotary position embedding, in the half-split layout that Hugging Face checkpoints use."""

import jax.numpy as jnp
import numpy as np

from nrt_jax.models.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Angle per position step of each pair of dimensions, [head_dim / 2] float32, in radians per token.

    `llama3` keeps short wavelengths, divides the frequency of long ones by `factor`, and interpolates between
    (Llama 3.1 model card; transformers' `_compute_llama3_parameters`).
    """
    frequency = 1.0 / config.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if config.type == "llama3":
        wavelength = 2 * np.pi / frequency
        smooth = (config.original_max_position_embeddings / wavelength - config.low_freq_factor) / (
            config.high_freq_factor - config.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        frequency = (1 - smooth) * frequency / config.factor + smooth * frequency
    return frequency.astype(np.float32)


def rotation(config: RopeConfig, head_dim: int, positions: jnp.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Cosine and sine of every angle: positions [...] int -> two arrays [..., head_dim / 2] float32."""
    angle = positions[..., None].astype(jnp.float32) * inverse_frequencies(config, head_dim)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jnp.ndarray, cos: jnp.ndarray, sin: jnp.ndarray) -> jnp.ndarray:
    """Rotates the pairs (x_i, x_{i + d/2}) of the last axis, in float32.

    Args:
        x: [..., d].
        cos: [..., d / 2], broadcast against x's leading axes.
        sin: [..., d / 2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
