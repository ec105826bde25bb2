"""Sampling from the host: finished rows leave, and those that wait take their seats (continuous batching).

Between two chunks of steps the host reads which rows are done:

    seats in chunk 1     r0  r1  r2  r3      r1 and r3 finish, and r4, r5, .. wait
    seats in chunk 2     r0  r4  r2  r5      rows may start at any slot, so that nothing is recompiled
    ...
    seats in chunk 9     r6  r8              nobody waits any more, and half the seats are enough

Where the rows are more than `max_rows`, prompts wait too: caches exist for some of them at a time, and a group whose
rows have all left is handed out, so that whoever scores it can free them.

Shapes are few: the seats are `max_rows` or that halved a few times, a row's cache is a chunk or that doubled a few
times, and each pair of the two that occurs is one program.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from nrt_jax import parallel
from nrt_jax.data.batch import Prompts
from nrt_jax.models import Model, Params
from nrt_jax.rollout import decoder, sampler
from nrt_jax.rollout.decoder import PromptCache, Weights
from nrt_jax.rollout.rollout import Rollout
from nrt_jax.rollout.sampler import Groups, Rows, SamplingConfig, row_keys

HALVINGS = 3  # Of the number of seats, at most: few rows take little less time than fewer, and each is a program.


@flax.struct.dataclass
class Part:
    """Groups whose rows are all done.

    Attributes:
        prompts: Indices of their prompts.
        rollout: Theirs. All parts have one shape: where there are fewer prompts than groups, the last are padding.
        params: The copy of the policy's parameters beside the rollout.
    """

    prompts: np.ndarray
    rollout: Rollout
    params: Params


def sample(
    model: Model, params: Params | Sequence[Params], prompts: Prompts, rng: jax.Array, config: SamplingConfig
) -> Rollout:
    """`sampler.sample`, with the same result, for the host alone: it cannot stand inside jit.

    Args:
        model: The policy.
        params: Its parameters, or copies of them; see `stream`.
        prompts: P prompts.
        rng: One key, from which rows derive theirs (`row_keys`), or [P, K] keys.
        config: How to sample.
    """
    parts = list(stream(model, params, prompts, rng, config))
    if len(parts) == 1:
        return parts[0].rollout
    ids = np.concatenate([part.prompts for part in parts])
    is_real = np.concatenate([np.arange(len(part.rollout.finished)) < len(part.prompts) for part in parts])
    order = np.flatnonzero(is_real)[np.argsort(ids)]
    home = parallel.beside(parts[0].params)
    first, *others = (jax.device_put(part.rollout, home) for part in parts)
    return first.map_prompts(lambda x, axis, *more: jnp.take(jnp.concatenate([x, *more], axis), order, axis), *others)


def stream(
    model: Model,
    params: Params | Sequence[Params],
    prompts: Prompts,
    rng: jax.Array,
    config: SamplingConfig,
    is_over: Callable[[np.ndarray], bool] | None = None,
) -> Iterator[Part]:
    """Samples like `sample`, and hands out groups when all of their rows are done, in any order.

    Args:
        model: The policy.
        params: Its parameters, or copies of them: each is a replica, a device or a mesh of some
            (`parallel.Layout.copies`), and all of them sample.
        prompts: P prompts.
        rng: One key, from which rows derive theirs (`row_keys`), or [P, K] keys.
        config: How to sample; `max_rows` counts on each replica.
        is_over: Asked after each chunk of a row that goes on, with the tokens [T] that it has so far: one that is over
            ends there, as if it were at its limit.
    """
    queue = collections.deque(range(len(prompts.tokens)))
    copies = [params] if isinstance(params, Mapping) else params
    share = -(-len(queue) // len(copies))  # Prompts of a replica that takes no more than its part.
    runs = [_Run(model, copy, prompts, rng, config, queue, share) for copy in copies]
    for run in runs:
        run.is_over = is_over
    while runs:
        # The first whose chunk is over, or else the one that has been at it for longest: no replica waits for another.
        run = next((run for run in runs if run.is_ready()), runs[0])
        runs.remove(run)
        run.leave()
        yield from run.hand_out()
        if run.take_seats():
            run.advance()
            runs.append(run)


def room(config: SamplingConfig, num_prompts: int) -> tuple[int, int, int]:
    """How much a replica that is to take so many prompts holds at once: seats, places and batch, as in `_Run`."""
    num_seats = num_prompts * config.group_size
    if config.max_rows is None or config.max_rows >= num_seats:
        return num_seats, num_prompts, num_prompts
    num_places = min(num_prompts, 2 * -(-config.max_rows // config.group_size))
    return config.max_rows, num_places, -(-num_places // 4)


def _on_replica(method):
    """A method that calls programs, in whose block the replica's mesh is in use."""

    @functools.wraps(method)
    def call(run: "_Run", *args):
        with parallel.on(run.params):
            return method(run, *args)

    return call


class _Run:
    """One replica's rollout on its way. A row is numbered place x K + k, by the place of its group in `groups`.

    Attributes:
        num_seats: Rows decoded at once, at most.
        num_places: Groups in memory at once. Twice what the seats need: a group keeps its place until all of its rows
            have left, and meanwhile others use their seats.
        batch: Prompts that are run, and groups that are handed out, at once.
        queue: Prompts that have no place yet; all replicas take from it.
        prompt: [places] the prompt at each place, or -1.
        missing: [places] how many of its rows have not left.
        waiting: Rows that have no seat yet.
        seated: [N] the row of each seat, or -1.
        first: [N] the slot of each seat's first token.
        slot: Where the next tokens go.
        groups: What is in memory.
        rows: Those that are seated.
        shared: What they share.
        is_over: As in `stream`.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        prompts: Prompts,
        rng: jax.Array,
        config: SamplingConfig,
        queue: collections.deque[int],
        num_prompts: int,
    ):
        """Seats nobody yet; of the prompts in the queue, which others may share, it is to take `num_prompts`."""
        keys = row_keys(rng, len(prompts.tokens), config.group_size) if rng.ndim == 0 else rng
        # On the host, where picking some of them compiles nothing.
        self.prompts, key_data = jax.device_get((prompts, jax.random.key_data(keys)))
        self.keys, self.key_impl = key_data.reshape(keys.size, -1), jax.random.key_impl(keys)
        self.model, self.params, self.config, self.queue = model, params, config, queue
        self.weights = self._prepare()
        self.num_seats, self.num_places, self.batch = room(config, num_prompts)
        self.waiting = collections.deque()
        self.prompt, self.missing = np.full(self.num_places, -1), np.zeros(self.num_places, int)
        self.seated, self.first, self.slot = np.zeros(0, int), np.zeros(0, int), 0
        self.groups = self.rows = self.shared = self.is_over = None

    @_on_replica
    def _prepare(self) -> Weights:
        return _prepare(self.model, self.params)

    def is_ready(self) -> bool:
        """Its last chunk is over."""
        return self.rows is None or self.rows.done.is_ready()

    @_on_replica
    def leave(self) -> None:
        """Stores the rows that are done, if others can move then."""
        if self.rows is None:
            return
        if self.is_over is not None:
            self._end()
        done = np.asarray(self.rows.done)
        leaving = np.flatnonzero(done & (self.seated >= 0))
        num_running = done.size - np.count_nonzero(done)
        is_gain = self.queue or self.waiting or self._is_full() or self._num_seats(num_running) < done.size
        if not leaving.size or (num_running and not is_gain):
            return
        rows = self.seated[leaving]
        padded = [np.pad(x, (0, done.size - x.size)).astype(np.int32) for x in (leaving, rows)]
        count = np.int32(leaving.size)
        self.groups = _store(self.model, self.weights, self.groups, self.rows, *padded, count, self.config)
        np.subtract.at(self.missing, rows // self.config.group_size, 1)
        self.seated[leaving] = -1

    def _end(self) -> None:
        """Ends the rows that `is_over` finds over."""
        rows = self.rows
        tokens, first, length, done = map(np.array, (rows.record.token, rows.first, rows.length, rows.done))
        for seat in np.flatnonzero(~done & (self.seated >= 0)):
            done[seat] = self.is_over(tokens[first[seat] : first[seat] + length[seat], seat])
        self.rows = rows.replace(done=jnp.asarray(done))

    def hand_out(self) -> Iterator[Part]:
        """Hands out complete groups and lets prompts take their places; in full batches, unless seats stay empty."""
        while True:
            complete = np.flatnonzero((self.prompt >= 0) & (self.missing == 0))[: self.batch]
            is_end = not self.queue and not self.missing.any()
            if complete.size == self.batch or (complete.size and (is_end or self._is_starving())):
                yield Part(self.prompt[complete], self._rollout_of(complete), self.params)
                self.prompt[complete] = -1
            elif not self._admit():
                return

    def _is_starving(self) -> bool:
        """Prompts wait for places, and seats for rows."""
        return bool(self.queue) and np.count_nonzero(self.seated >= 0) + len(self.waiting) < self.num_seats

    @_on_replica
    def _admit(self) -> bool:
        """Runs a batch of prompts, if there are places for them; returns whether it did."""
        size = min(self.batch, len(self.queue))
        places = np.flatnonzero(self.prompt < 0)[:size]
        if not places.size or (places.size < size and not self._is_starving()):
            return False
        self.prompt[places] = [self.queue.popleft() for _ in places]
        self.missing[places] = self.config.group_size
        self.waiting.extend((places[:, None] * self.config.group_size + np.arange(self.config.group_size)).reshape(-1))
        ids = _padded(self.prompt[places], self.batch)
        prompts = jax.device_put(jax.tree.map(lambda x: x[ids], self.prompts), parallel.beside(self.params))
        new = _begin(self.model, self.params, prompts, self.config)
        if self.batch == self.num_places:
            self.groups = new
        else:
            self.groups = _place(self.groups, new, _padded(places, self.batch), self.num_places)
        return True

    @_on_replica
    def _rollout_of(self, places: np.ndarray) -> Rollout:
        if self.batch == self.num_places:  # All at once: no copy.
            return self.groups.rollout
        return _take(self.groups.rollout, _padded(places, self.batch))

    @_on_replica
    def take_seats(self) -> bool:
        """Seats rows that wait and makes room for the next tokens; returns whether anyone decodes."""
        kept = np.flatnonzero(self.seated >= 0)
        entering = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.num_seats - kept.size))]
        if not kept.size and not entering:
            return False
        size = self._num_seats(kept.size + len(entering))
        drop = int(self.first[kept].min()) if kept.size else self.slot
        num_slots = self.config.capacity(self.slot - drop + self.config.chunk_size)
        if entering or size < self.seated.size:
            seated = np.concatenate([self.seated[kept], np.array(entering, int)])
            seats = self._seats(kept, seated, size)
            self.slot, self.first = (
                self.slot - drop,
                np.append(self.first[kept], np.full(len(entering), self.slot)) - drop,
            )
            old = self.rows if kept.size else None
            arrays = (np.int32(drop), np.int32(self.slot))
            self.rows, self.shared = _seat(self.groups, old, seats, *arrays, num_slots, self.key_impl)
            self.seated = np.pad(seated, (0, size - seated.size), constant_values=-1)
            self.first = np.pad(self.first, (0, size - seated.size))
        elif self._is_full():
            self.rows = _resize(self.rows, np.int32(drop), num_slots)
            self.slot, self.first = self.slot - drop, self.first - drop
        return True

    def _is_full(self) -> bool:
        return self.slot + self.config.chunk_size > self.rows.num_slots

    def _num_seats(self, count: int) -> int:
        """The least number of seats of a program that holds so many rows."""
        return min(n for i in range(HALVINGS + 1) if (n := -(-self.num_seats // 2**i)) >= count)

    def _seats(self, kept: np.ndarray, seated: np.ndarray, size: int) -> "Seats":
        """Where `seated` rows sit, of which the first were at the seats `kept`, among `size`."""
        group_size = self.config.group_size
        place, member = np.divmod(seated, group_size)
        prompts, seat = np.unique(place, return_inverse=True)
        cell = seat * group_size + member
        grid = np.zeros(min(self.num_places, size) * group_size, np.int32)
        grid[cell] = np.arange(seated.size)
        return Seats(
            source=_padded(kept, size),
            is_kept=np.arange(size) < kept.size,
            is_row=np.arange(size) < seated.size,
            place=_padded(place, size),
            key=self.keys[_padded(self.prompt[place] * group_size + member, size)],
            prompts=_padded(prompts, min(self.num_places, size)),
            grid=grid.reshape(-1, group_size),
            cell=_padded(cell, size),
        )

    @_on_replica
    def advance(self) -> None:
        """Decodes a chunk."""
        slot, num_steps = np.int32(self.slot), self.config.chunk_size
        self.rows = _advance(self.model, self.weights, self.shared, self.rows, slot, num_steps, self.config)
        self.slot += num_steps


@flax.struct.dataclass(kw_only=True)
class Seats:
    """Who decodes, and where; padding repeats the first, or index 0.

    Attributes:
        source: [N] int32, where a row sat before.
        is_kept: [N] bool, it sat somewhere.
        is_row: [N] bool, False on padding.
        place: [N] int32, of its group.
        key: [N, ..] uint32, data of its key.
        prompts: [P] int32, places of the groups that decode.
        grid: [P, K] int32, as in `PromptCache`.
        cell: [N] int32, as in `PromptCache`.
    """

    source: np.ndarray
    is_kept: np.ndarray
    is_row: np.ndarray
    place: np.ndarray
    key: np.ndarray
    prompts: np.ndarray
    grid: np.ndarray
    cell: np.ndarray


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    """Of that length, by repeating the first."""
    fill = x[0] if x.size else 0
    return np.pad(x, (0, length - x.size), constant_values=fill).astype(np.int32)


_prepare = jax.jit(decoder.prepare, static_argnums=0)
_begin = jax.jit(sampler.begin, static_argnums=0)
_advance = jax.jit(sampler.advance, static_argnames=("model", "num_steps"), donate_argnames="rows")
_store = jax.jit(sampler.store, static_argnames="model", donate_argnames="groups")
_resize = jax.jit(sampler.resize, static_argnames="num_slots")


@functools.partial(jax.jit, static_argnames="num_places", donate_argnums=0)
def _place(groups: Groups | None, new: Groups, places: jax.Array, num_places: int) -> Groups:
    """Puts new groups at their places."""

    def put(x, axis, old=None):
        if old is None:
            old = jnp.zeros((*x.shape[:axis], num_places, *x.shape[axis + 1 :]), x.dtype)
        return old.at[(slice(None),) * axis + (places,)].set(x)

    return new.map_prompts(put, *([] if groups is None else [groups]))


@jax.jit
def _take(rollout: Rollout, places: jax.Array) -> Rollout:
    return rollout.map_prompts(lambda x, axis: jnp.take(x, places, axis))


@functools.partial(jax.jit, static_argnames=("num_slots", "key_impl"))
def _seat(
    groups: Groups,
    rows: Rows | None,
    seats: Seats,
    drop: jax.Array,
    slot: jax.Array,
    num_slots: int,
    key_impl: str,
) -> tuple[Rows, PromptCache]:
    """Those who go on and those who begin."""
    key = jax.random.wrap_key_data(seats.key, impl=key_impl)
    new = sampler.start_rows(groups, key, seats.place, slot, num_slots)
    new = new.replace(done=~seats.is_row)
    if rows is not None:
        old = sampler.resize(rows.take(seats.source), drop, num_slots)
        names = ("first", "length", "finished", "done", "hidden")

        def pick(old, new):
            return jnp.where(seats.is_kept.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

        mixed = {name: pick(getattr(old, name), getattr(new, name)) for name in names}
        new = new.replace(layers=old.layers, record=old.record, **mixed)
    cache = groups.rollout.prompt_cache
    return new, decoder.share_prompts(cache, seats.prompts, seats.grid, seats.cell)
