"""Sampling K traces for each of P prompts: one prefill a prompt, then lock-step decoding until all rows stop.

The prompt's cache [P, X] is shared by its K traces; each row has a cache of its own whose capacity doubles:

    step t reads      prompt cache [P, 1, X]  +  row cache [N, S], S >= t + 1
    step t writes     one slot of every row's cache

A row may start at any step. All rows then write to the same slot, and each reads from its own `first` one on:

    slot      0    1    2    3    4
    row 0     z_1  z_2  z_3  z_4  z_5      first 0
    row 1     .    .    .    z_1  z_2      first 3: took the seat of a row that had finished

Token t of row (p, k) is drawn with `fold_in(key[p, k], t)`: what a row samples depends on its own key and context
alone, not on the rows around it. `sample` is one program, for use inside others; `engine` gives the same rollout from
the host, where finished rows leave and waiting ones enter.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from nrt_jax.data.batch import Prompts
from nrt_jax.models import KVCache, Model, Params, Remat, empty_cache, token_log_probs
from nrt_jax.models.attention import quantize_cache
from nrt_jax.rollout import decoder
from nrt_jax.rollout.decoder import PromptCache, Segment, Weights
from nrt_jax.rollout.draw import Draw, Truncation, draw
from nrt_jax.rollout.rollout import Rollout


@flax.struct.dataclass(kw_only=True)
class SamplingConfig:
    """How to sample. Arrays may change without a new compilation; the rest is static.

    What is recorded of a token is its log-probability before truncation, under softmax(logits / temperature): the
    learner recomputes that, and compares.

    Attributes:
        stop_ids: [S] int32, tokens that end a row.
        delimiter: [] int32, the token whose log-probability is recorded at every step whether or not it is sampled;
            None for the first of `stop_ids`.
        temperature: [] float32, divides the logits; 0 is greedy.
        truncation: Which tokens may be drawn.
        max_new_tokens: Z, the most tokens a row may sample.
        group_size: K, rows for each prompt.
        chunk_size: Least slots of a row's cache, and steps between two looks of the engine at which rows are done.
        cache_dtype: Of keys and values, `int8` included; None for the model's compute dtype. A narrower one saves
            memory and bandwidth, and the rollout then differs from the training forward by its rounding.
        max_rows: Rows that the engine decodes at once, while others wait; None for all.
    """

    stop_ids: jax.Array
    temperature: jax.Array
    delimiter: jax.Array | None = None
    truncation: Truncation = Truncation()
    max_new_tokens: int = flax.struct.field(pytree_node=False)
    group_size: int = flax.struct.field(pytree_node=False, default=1)
    chunk_size: int = flax.struct.field(pytree_node=False, default=128)
    cache_dtype: str | None = flax.struct.field(pytree_node=False, default=None)
    max_rows: int | None = flax.struct.field(pytree_node=False, default=None)

    def capacity(self, num_slots: int) -> int:
        """Slots of a cache that is to hold so many: `chunk_size`, doubled as often as needed, but enough for Z."""
        most = -(-self.max_new_tokens // self.chunk_size)
        chunks = -(-num_slots // self.chunk_size)
        return min(most, 1 << (chunks - 1).bit_length()) * self.chunk_size


def cache_dtype(name: str) -> str | None:
    """The dtype that a config means: `auto` is bfloat16 on accelerators, and the compute dtype (None) on a CPU."""
    if name != "auto":
        return name
    return None if jax.default_backend() == "cpu" else "bfloat16"


@flax.struct.dataclass(kw_only=True)
class Groups:
    """P prompts that have run, and what their rows have left.

    Attributes:
        hidden: [P, D], predicts each row's first token.
        rollout: Of the P prompts; empty where rows have not left yet.
    """

    hidden: jax.Array
    rollout: Rollout

    def map_prompts(self, fn: Callable[..., jax.Array], *others: "Groups") -> "Groups":
        """Like `Rollout.map_prompts`."""
        return Groups(
            hidden=fn(self.hidden, 0, *(other.hidden for other in others)),
            rollout=self.rollout.map_prompts(fn, *(other.rollout for other in others)),
        )


@flax.struct.dataclass(kw_only=True)
class Rows:
    """N rows on their way.

    Attributes:
        key: [N] keys.
        prompt_length: [N] int32.
        first: [N] int32, the slot of the row's first token.
        length: [N] int32, tokens that it has sampled.
        finished: [N] bool, the last of them is a stop token.
        done: [N] bool, finished, or at the limit, or not a row but padding.
        hidden: [N, D], predicts its next token.
        layers: For each layer, the cache of its tokens.
        record: Per slot and row [S, N]: its token, int32, and the statistics of `Rollout`, float32.
    """

    key: jax.Array
    prompt_length: jax.Array
    first: jax.Array
    length: jax.Array
    finished: jax.Array
    done: jax.Array
    hidden: jax.Array
    layers: tuple[Segment, ...]
    record: Draw

    @property
    def num_slots(self) -> int:
        """S."""
        return self.record.token.shape[0]

    def take(self, index: jax.Array) -> "Rows":
        """The rows of these indices."""
        record, rest = jax.tree.map(lambda x: x[:, index], self.record), self.replace(record=None)
        return jax.tree.map(lambda x: x[index], rest).replace(record=record)


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
    weights, groups = decoder.prepare(model, params), begin(model, params, prompts, config)
    order = jnp.arange(keys.size)
    grid = order.reshape(num_prompts, group_size)
    shared = decoder.share_prompts(groups.rollout.prompt_cache, jnp.arange(num_prompts), grid, order)
    rows, start = start_rows(groups, keys.reshape(-1), order // group_size, 0, config.capacity(1)), 0
    while start < config.max_new_tokens:
        end = config.capacity(start + 1)
        rows = advance(model, weights, shared, resize(rows, 0, end), start, end - start, config)
        start = end
    return store(model, weights, groups, rows, order, order, order.size, config).rollout


@functools.partial(jax.jit, static_argnums=0)
def force(
    model: Model, params: Params, prompts: Prompts, tokens: jax.Array, finished: jax.Array, config: SamplingConfig
) -> Rollout:
    """The rollout that would have sampled the given rows: one teacher-forced pass in place of decoding.

    Args:
        model: The policy.
        params: Its parameters.
        prompts: P prompts.
        tokens: [P, K, Z] int32, -1 after the row's end.
        finished: [P, K] bool, the row's last token is a stop token.
        config: How it would have sampled; which tokens could have been drawn does not matter.
    """
    groups = begin(model, params, prompts, config.replace(group_size=tokens.shape[1], max_new_tokens=tokens.shape[2]))
    mask, tokens = tokens >= 0, jnp.maximum(tokens, 0)
    rollout = groups.rollout.replace(tokens=tokens, mask=mask, finished=finished)
    start, context = rollout.prompt_length[:, None, None], (rollout.prompt_cache,)
    positions = jnp.where(rollout.trace_mask, start + jnp.arange(tokens.shape[-1]), -1)
    hidden, cache = model.apply(params, tokens, positions, context)
    first = jnp.broadcast_to(groups.hidden[:, None, None], (*tokens.shape[:2], 1, hidden.shape[-1]))
    hidden = jnp.concatenate([first, hidden], axis=2)
    # Of a finished row, the stop token's own hidden state would predict nothing that is asked for.
    of = functools.partial(token_log_probs, head=model.head(params), temperature=config.temperature)
    log_probs, entropy = of(hidden[..., :-1, :], targets=tokens)
    delimiter = jnp.broadcast_to(_watched(config), hidden.shape[:-1])
    return rollout.replace(
        log_probs=jnp.where(mask, log_probs, 0.0),
        entropy=jnp.where(mask, entropy, 0.0),
        delimiter_log_probs=of(hidden, targets=delimiter)[0],
        trace_cache=quantize_cache(cache, config.cache_dtype) if config.cache_dtype else cache,
    )


def begin(model: Model, params: Params, prompts: Prompts, config: SamplingConfig) -> Groups:
    """Runs the prompts; no row has sampled anything."""
    grid = (prompts.tokens.shape[0], config.group_size)
    length = jnp.sum(prompts.mask, -1, dtype=jnp.int32)
    hidden, cache = prefill(model, params, prompts)
    if config.cache_dtype:
        cache = quantize_cache(cache, config.cache_dtype)
    per_token = functools.partial(jnp.zeros, (*grid, config.max_new_tokens))
    rollout = Rollout(
        tokens=per_token(jnp.int32),
        mask=per_token(bool),
        log_probs=per_token(jnp.float32),
        entropy=per_token(jnp.float32),
        delimiter_log_probs=jnp.zeros((*grid, config.max_new_tokens + 1), jnp.float32),
        finished=jnp.zeros(grid, bool),
        prompt_length=length,
        prompt_cache=cache,
        trace_cache=empty_cache(cache, config.group_size, config.max_new_tokens),
    )
    last = jnp.take_along_axis(hidden, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    return Groups(hidden=last, rollout=rollout)


def start_rows(groups: Groups, key: jax.Array, prompt: jax.Array, slot: int | jax.Array, num_slots: int) -> Rows:
    """N rows before their first token.

    Args:
        groups: The prompts at hand.
        key: [N] keys.
        prompt: [N] int32, the index of each row's prompt in `groups`.
        slot: Where the first tokens will go.
        num_slots: Slots of their caches.
    """
    num_rows = prompt.shape[0]
    per_slot = functools.partial(jnp.zeros, (num_slots, num_rows))
    return Rows(
        key=key,
        prompt_length=groups.rollout.prompt_length[prompt],
        first=jnp.full(num_rows, slot, jnp.int32),
        length=jnp.zeros(num_rows, jnp.int32),
        finished=jnp.zeros(num_rows, bool),
        done=jnp.zeros(num_rows, bool),
        hidden=groups.hidden[prompt],
        layers=decoder.empty_segments(groups.rollout.prompt_cache, num_rows, num_slots),
        record=Draw(per_slot(jnp.int32), *(per_slot(jnp.float32) for _ in range(3))),
    )


def resize(rows: Rows, drop: int | jax.Array, num_slots: int) -> Rows:
    """Rows without their first `drop` slots, which none of them uses, and with `num_slots` in all."""

    def fit(x, axis):
        x = jnp.pad(x, [(0, num_slots if i == axis else 0) for i in range(x.ndim)])
        return jax.lax.dynamic_slice_in_dim(x, drop, num_slots, axis)

    return rows.replace(
        first=rows.first - drop,
        layers=tuple(layer.map_slots(fit) for layer in rows.layers),
        record=jax.tree.map(lambda x: fit(x, 0), rows.record),
    )


def advance(
    model: Model,
    weights: Weights,
    prompts: PromptCache,
    rows: Rows,
    slot: int | jax.Array,
    num_steps: int,
    config: SamplingConfig,
) -> Rows:
    """Lets every row sample `num_steps` tokens, or fewer if all are done before.

    Args:
        model: The policy.
        weights: Laid out for decoding.
        prompts: What the rows share.
        rows: With room for these tokens.
        slot: Where the first of them goes.
        num_steps: C.
        config: How to sample.
    """
    uniform = _uniform(rows.key, rows.length, num_steps)

    def running(carry):
        i, rows = carry
        return (i < num_steps) & ~jnp.all(rows.done)

    def step(carry):
        i, rows = carry
        return i + 1, _decode_step(model, weights, prompts, rows, slot + i, uniform[i], config)

    # Decoding wants [D, N], which is transposed here once a chunk.
    rows = rows.replace(hidden=rows.hidden.T)
    rows = jax.lax.while_loop(running, step, (jnp.int32(0), rows))[1]
    return rows.replace(hidden=rows.hidden.T)


def _decode_step(model, weights, prompts, rows, slot, uniform, config):
    """Draws the next token of every row, then feeds it to get the hidden state that predicts the one after it."""
    drawn = _draw(model, weights, rows.hidden, uniform, config)

    def put(record, values):
        return jax.lax.dynamic_update_index_in_dim(record, values, slot, axis=0)

    position = rows.prompt_length + rows.length
    hidden, layers = decoder.feed(model, weights, prompts, rows.layers, drawn.token, position, rows.first, slot)
    finished = ~rows.done & jnp.isin(drawn.token, config.stop_ids)
    length = rows.length + ~rows.done
    return rows.replace(
        length=length,
        finished=rows.finished | finished,
        done=rows.done | finished | (length >= config.max_new_tokens),
        hidden=jnp.where(rows.done, rows.hidden, hidden),  # Of a row at its limit, it predicts the forced delimiter.
        layers=layers,
        record=jax.tree.map(put, rows.record, drawn),
    )


def store(
    model: Model,
    weights: Weights,
    groups: Groups,
    rows: Rows,
    leaving: jax.Array,
    place: jax.Array,
    count: int | jax.Array,
    config: SamplingConfig,
) -> Groups:
    """Writes what rows have sampled, and their caches, to the rollout.

    Args:
        model: The policy.
        weights: Laid out for decoding.
        groups: With the rollout to write to.
        rows: Some of which leave.
        leaving: [N] int32, indices of the rows that leave, at the first `count` places.
        place: [N] int32, for each of these, its index p K + k in the rollout.
        count: [] int32.
        config: How to sample.
    """
    limit = config.max_new_tokens
    following = _draw(model, weights, rows.hidden.T, jnp.zeros((len(leaving), 2)), config).watched_log_prob

    def put(i, rollout):
        row = leaving[i]
        p, k = jnp.divmod(place[i], config.group_size)
        length, first = rows.length[row], rows.first[row]
        is_sampled = jnp.arange(limit) < length

        def own(x, axis):
            """The Z slots from the row's first on, of its part of x."""
            x = jnp.roll(x, -first, axis)
            x = jax.lax.slice_in_dim(x, 0, min(limit, x.shape[axis]), axis=axis)
            return jnp.pad(x, [(0, limit - n if i == axis else 0) for i, n in enumerate(x.shape)])

        record = jax.tree.map(lambda x: jnp.where(is_sampled, own(x[:, row], 0), 0), rows.record)
        at_limit = jnp.where(rows.finished[row], 0.0, following[row])
        delimiter = jnp.append(record.watched_log_prob, 0.0).at[length].set(at_limit)
        layers = [jax.tree.map(lambda x: x[row][None], layer).map_slots(own) for layer in rows.layers]
        own_cache = jax.tree.map(lambda *x: jnp.stack(x)[:, 0], *layers)  # [L, G, ...]
        cache = rollout.trace_cache
        cache = cache.replace(
            k=cache.k.at[:, p, :, k].set(jnp.swapaxes(own_cache.k, -1, -2)),
            v=cache.v.at[:, p, :, k].set(own_cache.v),
        )
        if cache.k_scale is not None:
            cache = cache.replace(
                k_scale=cache.k_scale.at[:, p, :, k].set(own_cache.k_scale),
                v_scale=cache.v_scale.at[:, p, :, k].set(own_cache.v_scale),
            )
        return rollout.replace(
            tokens=rollout.tokens.at[p, k].set(record.token),
            mask=rollout.mask.at[p, k].set(is_sampled),
            log_probs=rollout.log_probs.at[p, k].set(record.log_prob),
            entropy=rollout.entropy.at[p, k].set(record.entropy),
            delimiter_log_probs=rollout.delimiter_log_probs.at[p, k].set(delimiter),
            finished=rollout.finished.at[p, k].set(rows.finished[row]),
            trace_cache=cache,
        )

    rollout = jax.lax.fori_loop(0, count, put, groups.rollout)
    positions = jnp.where(rollout.trace_mask, rollout.prompt_length[:, None, None] + jnp.arange(limit), -1)
    cache = rollout.trace_cache.replace(positions=positions)
    return groups.replace(rollout=rollout.replace(trace_cache=cache))


def prefill(model: Model, params: Params, prompts: Prompts, *, remat: Remat = "none") -> tuple[jax.Array, KVCache]:
    """Runs each prompt once: hidden [P, X, D] and its cache with K = 1."""
    positions = jnp.where(prompts.mask, jnp.arange(prompts.tokens.shape[1]), -1)
    hidden, cache = model.apply(params, prompts.tokens[:, None], positions[:, None], remat=remat)
    return hidden[:, 0], cache


def _uniform(keys, start, num_steps):
    """[C, N, 2] uniform numbers, two for each step, counted from `start` [N], and row."""
    of_row = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (2,)))
    return jax.vmap(of_row, (None, 0))(keys, start + jnp.arange(num_steps)[:, None])


def _draw(model, weights, hidden, uniform, config):
    """Of hidden [D, N]."""
    logits = decoder.logits(model, weights, hidden)
    return draw(logits, uniform, config.temperature, _watched(config), config.truncation)


def _watched(config):
    return config.stop_ids[0] if config.delimiter is None else config.delimiter
