"""What is added to a trace's reward whatever it is for: punishments for length and for repetition."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ShapingConfig:
    """Punishments; all off.

    Attributes:
        require_delimiter: The intrinsic reward is 0, and so is its token signal, where the policy did not write the
            delimiter itself (VeriFree: truncated, or without an answer).
        overlong_max: L_max, sampled tokens from which on a trace is punished by -1 (DAPO); 0 is off, -1 stands for the
            most that the run samples (`TrainConfig.resolve`).
        overlong_cache: L_cache: from L_max - L_cache on the punishment grows from 0 to that; -1 for a fifth of L_max,
            as in DAPO.
        ngram_count: A trace in which any n-gram is seen so often is punished by -1 (RLPR: 10); 0 is off.
        ngram_size: n.
    """

    require_delimiter: bool = False
    overlong_max: int = 0
    overlong_cache: int = 0
    ngram_count: int = 0
    ngram_size: int = 10


def punishment(tokens: jax.Array, mask: jax.Array, config: ShapingConfig) -> jax.Array:
    """What is added to each trace's reward, [...] float32, 0 or less.

    Args:
        tokens: [..., Z] int32, sampled.
        mask: [..., Z] bool, True on them, from the first on.
        config: Which punishments.

    Raises:
        ValueError: A number still stands for another.
    """
    if min(config.overlong_max, config.overlong_cache) < 0:
        raise ValueError("overlong_max and overlong_cache: -1 stands for a number; expected TrainConfig.resolve")
    total = jnp.zeros(tokens.shape[:-1])
    if config.overlong_max:
        total += soft_overlong(jnp.sum(mask, -1), config.overlong_max, config.overlong_cache)
    if config.ngram_count:
        total -= repeats(tokens, mask, config.ngram_size, config.ngram_count)
    return total


def soft_overlong(length: jax.Array, longest: int, cache: int) -> jax.Array:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

        0                                     length <= L_max - L_cache
        ((L_max - L_cache) - length) / L_cache    in between
        -1                                    L_max < length

    Args:
        length: [...] int, sampled tokens.
        longest: L_max.
        cache: L_cache; 0 for a hard limit.
    """
    beyond = (longest - cache) - length.astype(jnp.float32)
    return jnp.where(length > longest, -1.0, jnp.clip(beyond / max(cache, 1), -1.0, 0.0))


def repeats(tokens: jax.Array, mask: jax.Array, size: int, count: int) -> jax.Array:
    """Whether any n-gram of a row is seen at least `count` times, overlaps included: [...] bool, exactly.

    N-grams are sorted, each by all its tokens; then equal ones lie side by side.

    Args:
        tokens: [..., Z] int32.
        mask: [..., Z] bool, True on the row's tokens, from the first on.
        size: n.
        count: How often.
    """
    num = tokens.shape[-1] - size + 1
    if num < count:
        return jnp.zeros(tokens.shape[:-1], bool)
    alone = -1 - jnp.arange(num)  # An n-gram that is not all there equals no other.
    ngrams = [tokens[..., i : i + num] for i in range(size)]
    ngrams[0] = jnp.where(mask[..., size - 1 :], ngrams[0], alone)
    ordered = jax.lax.sort(ngrams, dimension=-1, num_keys=size)
    last = num - count + 1
    equal = [part[..., :last] == part[..., count - 1 :] for part in ordered]
    return jnp.any(jnp.stack(equal).all(0), -1)
