"""Sampling K traces for each of P prompts: one prefill a prompt, then lock-step decoding until all rows stop.

The prompt's cache [P, X] is shared by its K traces; each trace has a cache of its own that grows in chunks:

    step t reads      prompt cache [P, 1, X]  +  trace cache [P, K, min(chunk * ceil((t+1) / chunk), Z)]
    step t writes     slot t of every row's trace cache

Row (p, k) draws token t with `fold_in(key[p, k], t)`: what a row samples depends on its own key and context alone, not
on the batch around it.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Prompts
from nrt_jax.models import KVCache, Model, Params, empty_cache, write_cache


@flax.struct.dataclass(kw_only=True)
class SamplingConfig:
    """How to sample. Arrays may change without a new compilation; the rest is static.

    Attributes:
        stop_ids: [S] int32, tokens that end a row. The first is the delimiter, whose log-probability is recorded at
            every step whether or not it is sampled.
        temperature: [] float32, divides the logits; 0 is greedy.
        max_new_tokens: Z, the most tokens a row may sample.
        group_size: K, rows for each prompt.
        chunk_size: Slots by which the trace caches grow.
    """

    stop_ids: jax.Array
    temperature: jax.Array
    max_new_tokens: int = flax.struct.field(pytree_node=False)
    group_size: int = flax.struct.field(pytree_node=False, default=1)
    chunk_size: int = flax.struct.field(pytree_node=False, default=128)


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

    def matched(self, delimiter: jax.Array) -> jax.Array:
        """[P, K] bool: the policy itself ended the trace with this delimiter."""
        last = jnp.take_along_axis(self.tokens, jnp.maximum(jnp.sum(self.mask, -1) - 1, 0)[..., None], -1)[..., 0]
        return self.finished & (last == delimiter)


def row_keys(rng: jax.Array, num_prompts: int, group_size: int) -> jax.Array:
    """[P, K] keys, one a row: fold_in(rng, p K + k)."""
    rows = jnp.arange(num_prompts * group_size)
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(rows).reshape(num_prompts, group_size)


@functools.partial(jax.jit, static_argnums=0)
def sample(model: Model, params: Params, prompts: Prompts, rng: jax.Array, config: SamplingConfig) -> Rollout:
    """Samples `config.group_size` rows for each prompt until each has stopped or reached the limit.

    Args:
        model: The policy.
        params: Its parameters.
        prompts: P prompts.
        rng: One key, from which rows derive theirs (`row_keys`), or [P, K] keys.
        config: How to sample.
    """
    num_prompts, group_size = prompts.tokens.shape[0], config.group_size
    keys = row_keys(rng, num_prompts, group_size) if rng.ndim == 0 else rng
    params = model.cast(params)  # Once, not at every token.
    prompt_length = jnp.sum(prompts.mask, -1, dtype=jnp.int32)
    hidden, prompt_cache = prefill(model, params, prompts)
    last = jnp.take_along_axis(hidden, jnp.maximum(prompt_length - 1, 0)[:, None, None], axis=1)
    state = _initial_state(last, prompt_cache, group_size, config.max_new_tokens)

    step = functools.partial(_decode_step, model, params, prompt_cache, prompt_length, keys, config)
    for start in range(0, config.max_new_tokens, config.chunk_size):
        end = min(start + config.chunk_size, config.max_new_tokens)
        state = state | {"cache": _grow(state["cache"], end)}
        state = jax.lax.while_loop(lambda s, end=end: (s["t"] < end) & ~jnp.all(s["done"]), step, state)
    final, _, _ = _next_distribution(model, params, state["hidden"], config)
    at_end = state["t"] == jnp.arange(config.max_new_tokens + 1)
    delimiter_log_probs = jnp.where(
        at_end & ~state["done"][..., None], final[..., config.stop_ids[0], None], state["delimiter_log_probs"]
    )
    return Rollout(
        tokens=state["tokens"],
        mask=state["mask"],
        log_probs=state["log_probs"],
        entropy=state["entropy"],
        delimiter_log_probs=delimiter_log_probs,
        finished=state["done"],
        prompt_length=prompt_length,
        prompt_cache=prompt_cache,
        trace_cache=state["cache"],
    )


def prefill(model: Model, params: Params, prompts: Prompts, *, remat: bool = False) -> tuple[jax.Array, KVCache]:
    """Runs each prompt once: hidden [P, X, D] and its cache with K = 1."""
    positions = jnp.where(prompts.mask, jnp.arange(prompts.tokens.shape[1]), -1)
    hidden, cache = model.apply(params, prompts.tokens[:, None], positions[:, None], remat=remat)
    return hidden[:, 0], cache


def cut_traces(rollout: Rollout, max_length: jax.Array) -> Rollout:
    """Cuts the tail of traces longer than max_length [P]; a cut trace has lost its stop token (it is unmatched).

    This is how an overlong sample is made to fit: the trace gives way, never the answer.
    """
    too_long = rollout.trace_length > max_length[:, None]
    keep = ~too_long[..., None] | (jnp.arange(rollout.tokens.shape[-1]) < max_length[:, None, None])
    cache = rollout.trace_cache
    return rollout.replace(
        tokens=jnp.where(keep, rollout.tokens, 0),
        mask=rollout.mask & keep,
        log_probs=jnp.where(keep, rollout.log_probs, 0.0),
        entropy=jnp.where(keep, rollout.entropy, 0.0),
        finished=rollout.finished & ~too_long,
        trace_cache=cache.replace(positions=jnp.where(keep, cache.positions, -1)),
    )


def _initial_state(last_hidden, prompt_cache, group_size, max_new_tokens):
    """The decode loop's carry; last_hidden [P, 1, D] predicts each row's first token."""
    num_prompts, _, width = last_hidden.shape
    rows = (num_prompts, group_size)
    per_token = functools.partial(jnp.zeros, (*rows, max_new_tokens))
    return {
        "t": jnp.int32(0),
        "hidden": jnp.broadcast_to(last_hidden, (*rows, width)),
        "done": jnp.zeros(rows, bool),
        "tokens": per_token(jnp.int32),
        "mask": per_token(bool),
        "log_probs": per_token(jnp.float32),
        "entropy": per_token(jnp.float32),
        "delimiter_log_probs": jnp.zeros((*rows, max_new_tokens + 1), jnp.float32),
        "cache": empty_cache(prompt_cache, group_size, 0),
    }


def _grow(cache: KVCache, num_slots: int) -> KVCache:
    more = num_slots - cache.num_slots
    slots = [(0, 0)] * 4 + [(0, more), (0, 0)]
    positions = jnp.pad(cache.positions, ((0, 0), (0, 0), (0, more)), constant_values=-1)
    return KVCache(k=jnp.pad(cache.k, slots), v=jnp.pad(cache.v, slots), positions=positions)


def _next_distribution(model, params, hidden, config):
    """Log-probabilities [P, K, V] of the next token, its entropy [P, K], and the logits behind both."""
    head = model.head(params).astype(hidden.dtype)
    logits = jnp.einsum("pkd,vd->pkv", hidden, head, preferred_element_type=jnp.float32)
    logits = logits / jnp.where(config.temperature > 0, config.temperature, 1.0)
    log_probs = jax.nn.log_softmax(logits)
    return log_probs, -jnp.sum(jnp.exp(log_probs) * log_probs, -1), logits


def _decode_step(model, params, prompt_cache, prompt_length, keys, config, state):
    """Draws token t of every row, then feeds it to get the hidden state that predicts token t + 1."""
    t, running = state["t"], ~state["done"]
    log_probs, entropy, logits = _next_distribution(model, params, state["hidden"], config)

    draw = jax.vmap(jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, t), row)))
    token = jnp.where(config.temperature > 0, draw(keys, logits), jnp.argmax(logits, -1)).astype(jnp.int32)
    token_log_prob = jnp.take_along_axis(log_probs, token[..., None], -1)[..., 0]
    stopped = running & jnp.isin(token, config.stop_ids)

    positions = jnp.where(running & ~stopped, prompt_length[:, None] + t, -1)[..., None]
    hidden, new = model.apply(params, token[..., None], positions, (prompt_cache, state["cache"]))

    def record(name, value):
        values = jnp.where(running, value, 0).astype(state[name].dtype)
        return jax.lax.dynamic_update_index_in_dim(state[name], values, t, axis=-1)

    return {
        "t": t + 1,
        "hidden": hidden[:, :, 0],
        "done": state["done"] | stopped,
        "tokens": record("tokens", token),
        "mask": record("mask", True),
        "log_probs": record("log_probs", token_log_prob),
        "entropy": record("entropy", entropy),
        "delimiter_log_probs": record("delimiter_log_probs", log_probs[..., config.stop_ids[0]]),
        "cache": write_cache(state["cache"], new, t),
    }
