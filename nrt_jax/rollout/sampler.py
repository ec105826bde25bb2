"""Sampling K traces for each of P prompts: one prefill a prompt, then lock-step decoding until all rows stop.

The prompt's cache [P, X] is shared by its K traces; each trace has a cache of its own that grows in chunks:

    step t reads      prompt cache [P, 1, X]  +  trace cache [P, K, min(chunk * ceil((t+1) / chunk), Z)]
    step t writes     slot t of every row's trace cache

Row (p, k) draws token t with `fold_in(key[p, k], t)`: what a row samples depends on its own key and context alone, not
on the batch around it. `sample` is one program, for use inside others; `engine.sample` gives the same rollout, chunk by
chunk from the host, and lets finished rows leave.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Prompts
from nrt_jax.models import KVCache, Model, Params, Remat, empty_cache
from nrt_jax.rollout import decoder
from nrt_jax.rollout.decoder import PromptCache, RowCache, Weights
from nrt_jax.rollout.draw import Truncation, draw


@flax.struct.dataclass(kw_only=True)
class SamplingConfig:
    """How to sample. Arrays may change without a new compilation; the rest is static.

    What is recorded of a token is its log-probability before truncation, under softmax(logits / temperature): the
    learner recomputes that, and compares.

    Attributes:
        stop_ids: [S] int32, tokens that end a row. The first is the delimiter, whose log-probability is recorded at
            every step whether or not it is sampled.
        temperature: [] float32, divides the logits; 0 is greedy.
        top_k: [] int32, only the k likeliest tokens may be drawn; None is off.
        top_p: [] float32, of those only the fewest whose mass is at least top_p of theirs; None is off.
        min_p: [] float32, only tokens at least min_p as likely as the likeliest; None is off.
        max_new_tokens: Z, the most tokens a row may sample.
        group_size: K, rows for each prompt.
        chunk_size: Slots by which the trace caches grow.
        cache_dtype: Of keys and values; None for the model's compute dtype. A narrower one saves memory and bandwidth,
            and the rollout then differs from the training forward by its rounding.
    """

    stop_ids: jax.Array
    temperature: jax.Array
    top_k: jax.Array | None = None
    top_p: jax.Array | None = None
    min_p: jax.Array | None = None
    max_new_tokens: int = flax.struct.field(pytree_node=False)
    group_size: int = flax.struct.field(pytree_node=False, default=1)
    chunk_size: int = flax.struct.field(pytree_node=False, default=128)
    cache_dtype: str | None = flax.struct.field(pytree_node=False, default=None)


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


@flax.struct.dataclass(kw_only=True)
class Rows:
    """N rows on their way.

    Attributes:
        key: [N] keys.
        prompt_length: [N] int32.
        done: [N] bool, the row has sampled a stop token.
        hidden: [D, N], predicts each row's next token.
        cache: Of the tokens that they sampled.
    """

    key: jax.Array
    prompt_length: jax.Array
    done: jax.Array
    hidden: jax.Array
    cache: RowCache


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
    weights, shared, rows, rollout = begin(model, params, prompts, rng, config)
    for start, end in chunk_bounds(config):
        rows, rollout = advance(model, weights, shared, rows, rollout, shared.cell, start, end - start, config)
    return rollout


def chunk_bounds(config: SamplingConfig) -> list[tuple[int, int]]:
    """First slot and end of every chunk."""
    limit, size = config.max_new_tokens, config.chunk_size
    return [(start, min(start + size, limit)) for start in range(0, limit, size)]


def begin(
    model: Model, params: Params, prompts: Prompts, rng: jax.Array, config: SamplingConfig
) -> tuple[Weights, PromptCache, Rows, Rollout]:
    """Runs the prompts: all that decoding needs, with P x K rows in order, and the rollout with nothing sampled."""
    num_prompts, group_size, limit = prompts.tokens.shape[0], config.group_size, config.max_new_tokens
    keys = row_keys(rng, num_prompts, group_size) if rng.ndim == 0 else rng
    length = jnp.sum(prompts.mask, -1, dtype=jnp.int32)
    hidden, cache = prefill(model, params, prompts)
    last = jnp.take_along_axis(hidden, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    if config.cache_dtype:
        cache = cache.replace(k=cache.k.astype(config.cache_dtype), v=cache.v.astype(config.cache_dtype))
    num_layers, _, num_kv_heads, _, _, head_dim = cache.k.shape
    empty = functools.partial(jnp.zeros, dtype=cache.k.dtype)
    rows = Rows(
        key=keys.reshape(-1),
        prompt_length=jnp.repeat(length, group_size),
        done=jnp.zeros(keys.size, bool),
        hidden=jnp.repeat(last, group_size, axis=0).T,
        cache=RowCache(
            k=(empty((keys.size, num_kv_heads, head_dim, 0)),) * num_layers,
            v=(empty((keys.size, num_kv_heads, 0, head_dim)),) * num_layers,
        ),
    )
    per_token = functools.partial(jnp.zeros, (num_prompts, group_size, limit))
    rollout = Rollout(
        tokens=per_token(jnp.int32),
        mask=per_token(bool),
        log_probs=per_token(jnp.float32),
        entropy=per_token(jnp.float32),
        delimiter_log_probs=jnp.zeros((num_prompts, group_size, limit + 1), jnp.float32),
        finished=jnp.zeros((num_prompts, group_size), bool),
        prompt_length=length,
        prompt_cache=cache,
        trace_cache=empty_cache(cache, group_size, limit),
    )
    return decoder.prepare(model, params), decoder.share_prompts(cache, group_size), rows, rollout


def advance(
    model: Model,
    weights: Weights,
    prompts: PromptCache,
    rows: Rows,
    rollout: Rollout,
    row_of: jax.Array,
    start: int | jax.Array,
    num_steps: int,
    config: SamplingConfig,
) -> tuple[Rows, Rollout]:
    """Lets every row sample tokens `start` to below `start + num_steps`, or fewer if all are done before.

    Args:
        model: The policy.
        weights: Laid out for decoding.
        prompts: What the rows share.
        rows: N of the rollout's P x K, each with a cache of `start` slots; `num_steps` are added.
        rollout: To write to.
        row_of: [P x K] int32, which of the N rows each of the rollout's is; N for one that has left.
        start: Tokens that the rows have.
        num_steps: C.
        config: How to sample.
    """
    num_rows = rows.done.shape[0]
    per_step = functools.partial(jnp.zeros, (num_steps, num_rows))
    record = {
        "tokens": per_step(jnp.int32),
        "mask": per_step(bool),
        "log_probs": per_step(jnp.float32),
        "entropy": per_step(jnp.float32),
        "delimiter_log_probs": jnp.zeros((num_steps + 1, num_rows), jnp.float32),
    }
    grown = RowCache(
        k=tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, num_steps))) for k in rows.cache.k),
        v=tuple(jnp.pad(v, ((0, 0), (0, 0), (0, num_steps), (0, 0))) for v in rows.cache.v),
    )
    start = jnp.asarray(start, jnp.int32)
    uniform = _uniform(rows.key, start + jnp.arange(num_steps))

    def running(carry):
        t, rows, _ = carry
        return (t < start + num_steps) & ~jnp.all(rows.done)

    step = functools.partial(_decode_step, model, weights, prompts, config, start, uniform)
    t, rows, record = jax.lax.while_loop(running, step, (start, rows.replace(cache=grown), record))
    following = _draw(model, weights, config, rows, uniform[0]).watched_log_prob
    record["delimiter_log_probs"] = _put(record["delimiter_log_probs"], rows.done, t - start, following)
    return rows, _store(rollout, rows, record, row_of, start, num_steps)


def _store(rollout: Rollout, rows: Rows, record: dict, row_of: jax.Array, start: jax.Array, num_steps: int) -> Rollout:
    """Writes what `num_steps` steps recorded, each [C, N], and the slots that they filled."""
    grid = rollout.finished.shape

    def by_place(x):
        """[N, ...] -> [P, K, ...], 0 for rows that have left."""
        return jnp.take(x, row_of, axis=0, mode="fill", fill_value=0).reshape(*grid, *x.shape[1:])

    def put(name):
        return jax.lax.dynamic_update_slice_in_dim(getattr(rollout, name), by_place(record[name].T), start, axis=2)

    def put_cache(cache, layers, axis):
        """[L, P, G, K, Z, d] and each layer's [N, G, ...] with slots at `axis`."""
        new = [jax.lax.dynamic_slice_in_dim(layer, start, num_steps, axis) for layer in layers]
        new = [by_place(jnp.moveaxis(x, axis, 2)) for x in new]
        return jax.lax.dynamic_update_slice_in_dim(cache, jnp.swapaxes(jnp.stack(new), 2, 3), start, axis=4)

    rollout = rollout.replace(**{name: put(name) for name in record}, finished=rollout.finished | by_place(rows.done))
    slots = jnp.arange(rollout.mask.shape[-1])
    cache = KVCache(
        k=put_cache(rollout.trace_cache.k, rows.cache.k, 3),
        v=put_cache(rollout.trace_cache.v, rows.cache.v, 2),
        positions=jnp.where(rollout.trace_mask, rollout.prompt_length[:, None, None] + slots, -1),
    )
    return rollout.replace(trace_cache=cache)


def prefill(model: Model, params: Params, prompts: Prompts, *, remat: Remat = "none") -> tuple[jax.Array, KVCache]:
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


def _uniform(keys, steps):
    """[C, N, 2] uniform numbers, two for each row and step."""
    of_row = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (2,)), (0, None))
    return jax.vmap(of_row, (None, 0))(keys, steps)


def _draw(model, weights, config, rows, uniform):
    logits = decoder.logits(model, weights, rows.hidden)
    truncation = Truncation(config.top_k, config.top_p, config.min_p)
    return draw(logits, uniform, config.temperature, config.stop_ids[0], truncation)


def _put(record, done, step, values):
    """Writes values [N] of the rows that are not done into record [C, N]."""
    values = jnp.where(done, 0, values).astype(record.dtype)
    return jax.lax.dynamic_update_index_in_dim(record, values, step, axis=0)


def _decode_step(model, weights, prompts, config, start, uniform, carry):
    """Draws token t of every row, then feeds it to get the hidden state that predicts token t + 1."""
    t, rows, record = carry
    drawn = _draw(model, weights, config, rows, uniform[t - start])
    values = {
        "tokens": drawn.token,
        "mask": True,
        "log_probs": drawn.log_prob,
        "entropy": drawn.entropy,
        "delimiter_log_probs": drawn.watched_log_prob,
    }
    record = {name: _put(record[name], rows.done, t - start, value) for name, value in values.items()}
    hidden, cache = decoder.feed(model, weights, prompts, rows.cache, drawn.token, rows.prompt_length + t, t)
    done = rows.done | jnp.isin(drawn.token, config.stop_ids)
    return t + 1, rows.replace(done=done, hidden=hidden, cache=cache), record
