"""What sampling leaves behind, and how a rollout is cut to what fits or to what is asked for."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.models import KVCache


@flax.struct.dataclass(kw_only=True)
class Rollout:
    """K sampled rows for each of P prompts, with the caches that they left.

        tokens      z_1  z_2  z_3  </s>  0  0        the stop token belongs to the row ...
        mask         1    1    1    1    0  0
        trace_mask   1    1    1    0    0  0        ... but not to the trace

    Attributes:
        tokens: [P, K, Z] int32, zero after the row's end.
        mask: [P, K, Z] bool, True on sampled tokens, the stop token included.
        log_probs: [P, K, Z] float32, log-probability of each sampled token under softmax(logits / temperature), or
            under softmax(logits) if greedy, in nats; zero after the row's end.
        entropy: [P, K, Z] float32, entropy of the same distribution, in nats; zero after the row's end.
        delimiter_log_probs: [P, K, Z + 1] float32, log p(delimiter | x, z_1..z_t) at index t; valid up to the
            trace's length.
        finished: [P, K] bool, the row ended with a stop token, not at the limit.
        prompt_length: [P] int32, tokens of the prompt.
        prompt_cache: Cache of the prompts, K = 1.
        trace_cache: Cache of z; the stop token's slot and unused ones are empty.
    """

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    entropy: jax.Array
    delimiter_log_probs: jax.Array
    finished: jax.Array
    prompt_length: jax.Array
    prompt_cache: KVCache
    trace_cache: KVCache

    @property
    def trace_mask(self) -> jax.Array:
        """[P, K, Z] bool, True on z: the sampled tokens without the stop token."""
        return jnp.arange(self.tokens.shape[-1]) < self.trace_length[..., None]

    @property
    def trace_length(self) -> jax.Array:
        """[P, K] int32, tokens of z."""
        return jnp.sum(self.mask, -1, dtype=jnp.int32) - self.finished

    def without_caches(self) -> "Rollout":
        """What is left of it when whatever reads the caches has done so."""
        return self.replace(prompt_cache=None, trace_cache=None)

    def map_prompts(self, fn: Callable[..., jax.Array], *others: "Rollout") -> "Rollout":
        """Applies fn(array, its axis of prompts, arrays of the others..) to every array."""
        arrays, *more = (rollout.without_caches() for rollout in (self, *others))
        caches = {
            name: getattr(self, name).map_prompts(fn, *(getattr(other, name) for other in others))
            for name in ("prompt_cache", "trace_cache")
        }
        return jax.tree.map(lambda x, *y: fn(x, 0, *y), arrays, *more).replace(**caches)

    def matched(self, delimiter: jax.Array) -> jax.Array:
        """[P, K] bool: the policy itself ended the trace with this delimiter."""
        last = jnp.take_along_axis(self.tokens, jnp.maximum(jnp.sum(self.mask, -1) - 1, 0)[..., None], -1)[..., 0]
        return self.finished & (last == delimiter)


def cut_traces(rollout: Rollout, max_length: jax.Array) -> Rollout:
    """Cuts the tail of traces longer than max_length [P]; a cut trace has lost its stop token (it is unmatched).

    This is how an overlong sample is made to fit: the trace gives way, never the answer.
    """
    too_long = rollout.trace_length > max_length[:, None]
    keep = ~too_long[..., None] | (jnp.arange(rollout.tokens.shape[-1]) < max_length[:, None, None])
    return _keep_tokens(rollout, keep, finished=rollout.finished & ~too_long)


def until_delimiter(rollout: Rollout, delimiter: jax.Array) -> Rollout:
    """The rollout that would have ended each row at its first delimiter, given one that went on to sample answers.

        tokens      z_1  z_2  </think>  a_1  a_2  EOS        becomes        z_1  z_2  </think>  0  0  0

    A row without a delimiter stays as it is; it is unmatched.
    """
    is_delimiter = (rollout.tokens == delimiter) & rollout.mask
    has_one = jnp.any(is_delimiter, -1)
    keep = ~has_one[..., None] | (jnp.arange(rollout.tokens.shape[-1]) <= jnp.argmax(is_delimiter, -1)[..., None])
    return _keep_tokens(rollout, keep, finished=rollout.finished | has_one)


def _keep_tokens(rollout: Rollout, keep: jax.Array, finished: jax.Array) -> Rollout:
    """Without the tokens where `keep` [P, K, Z] is False, which are a row's last ones."""
    kept = rollout.replace(
        tokens=jnp.where(keep, rollout.tokens, 0),
        mask=rollout.mask & keep,
        log_probs=jnp.where(keep, rollout.log_probs, 0.0),
        entropy=jnp.where(keep, rollout.entropy, 0.0),
        finished=finished,
    )
    cache = rollout.trace_cache
    return kept.replace(trace_cache=cache.replace(positions=jnp.where(kept.trace_mask, cache.positions, -1)))
