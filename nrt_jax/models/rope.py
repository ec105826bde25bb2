"""Rotary position embedding, in the half-split layout that Hugging Face checkpoints use.

Frequencies are computed in float32 in the order of transformers' operations, not more exactly: half a unit in the last
place of a frequency is an angle of up to 5e-4 at position 8192, and checkpoints were trained with these roundings.
"""

import math

import jax.numpy as jnp
import numpy as np

from nrt_jax.models.config import RopeConfig


def inverse_frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
    """Angle per position step of each pair of dimensions, [head_dim / 2] float32, in radians per token.

    Equal to `inv_freq` of transformers 5 (`modeling_rope_utils`), except for about one frequency in a hundred, where
    torch's power is one unit in the last place off the nearest float32.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # Rounded once, from float64: numpy's float32 power differs between machines.
    power = (np.float64(np.float32(config.theta)) ** exponent.astype(np.float64)).astype(np.float32)
    if config.type == "linear":
        return 1 / power / np.float32(config.factor)
    if config.type == "llama3":
        return _llama3(config, 1 / power)
    if config.type == "yarn":
        return _yarn(config, head_dim, power)
    return 1 / power


def _llama3(config: RopeConfig, frequency: np.ndarray) -> np.ndarray:
    """Divides the frequency of long wavelengths by the factor, keeps short ones, and interpolates between."""
    low, high, original = config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings
    wavelength = (1 / frequency) * np.float32(2 * math.pi)
    smooth = ((1 / wavelength) * np.float32(original) - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * frequency / np.float32(config.factor) + smooth * frequency
    long, short = wavelength > np.float32(original / low), wavelength < np.float32(original / high)
    return np.where(long, frequency / np.float32(config.factor), np.where(short, frequency, between))


def _yarn(config: RopeConfig, head_dim: int, power: np.ndarray) -> np.ndarray:
    """YaRN's "NTK-by-parts": a ramp over the pairs, from frequencies that stay to frequencies divided by the factor."""

    def pair_with(turns: float) -> float:
        """The pair that makes so many turns within the original context, as a real number."""
        steps = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(steps) / (2 * math.log(config.theta))

    low, high = pair_with(config.beta_fast), pair_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    stay = 1 - np.clip(ramp, 0, 1)
    return 1 / (np.float32(config.factor) * power) * (1 - stay) + 1 / power * stay


def attention_factor(config: RopeConfig) -> float:
    """What rotated queries and keys are multiplied with; 1 for all types but yarn."""
    if config.type != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    return 0.1 * math.log(max(config.factor, 1.0)) + 1.0


def rotation(config: RopeConfig, head_dim: int, positions: jnp.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Cosine and sine of every angle, times `attention_factor`: positions [...] int -> two [..., d / 2] float32."""
    angle = positions[..., None].astype(jnp.float32) * inverse_frequencies(config, head_dim)
    factor = attention_factor(config)
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x: jnp.ndarray, cos: jnp.ndarray, sin: jnp.ndarray) -> jnp.ndarray:
    """Rotates the pairs (x_i, x_{i + d/2}) of the last axis, in float32.

    Args:
        x: [..., d].
        cos: [..., d / 2], broadcast against x's leading axes.
        sin: [..., d / 2].
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
