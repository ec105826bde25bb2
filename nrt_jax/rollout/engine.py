"""Sampling chunk by chunk from the host, so that finished rows leave.

Between two chunks the host reads which rows are done, and the others move together:

    rows            r0  r1  r2  r3  r4  r5  r6  r7      8 rows of 2 prompts; r1, r4 and r6 go on
    after chunk 1   r1  r4  r6  --                      4 rows, one of them padding; a prompt without rows leaves too

The number of rows is P x K or that halved a few times, and every chunk has its number of slots: each pair of the two
that occurs is one program, compiled once.
"""

import flax.struct
import jax
import numpy as np

from nrt_jax.data.batch import Prompts
from nrt_jax.models import Model, Params
from nrt_jax.rollout import sampler
from nrt_jax.rollout.decoder import PromptCache
from nrt_jax.rollout.sampler import Rollout, Rows, SamplingConfig

HALVINGS = 3  # Of the number of rows, at most: few rows take little less time than fewer, and each is a program.


def sample(model: Model, params: Params, prompts: Prompts, rng: jax.Array, config: SamplingConfig) -> Rollout:
    """`sampler.sample`, with the same result, for the host alone: it cannot stand inside jit.

    Args:
        model: The policy.
        params: Its parameters.
        prompts: P prompts.
        rng: One key, from which rows derive theirs (`row_keys`), or [P, K] keys.
        config: How to sample.
    """
    weights, shared, rows, rollout = _begin(model, params, prompts, rng, config)
    num_rows = rollout.finished.size
    place = np.arange(num_rows)  # Of each row, in the rollout.
    prompt_ids = np.arange(rollout.finished.shape[0])  # Of the prompts that the rows share.
    for start, end in sampler.chunk_bounds(config):
        running = np.flatnonzero(~np.asarray(rows.done))
        if not running.size:
            break
        size = _bucket(running.size, num_rows)
        if size < rows.done.size:
            place = place[running]
            seats, prompt_ids = _seat(running, place // config.group_size, prompt_ids, size, config.group_size)
            rows, shared = _move(rows, shared, seats)
        row_of = np.full(num_rows, rows.done.size, np.int32)
        row_of[place] = np.arange(place.size)
        rows, rollout = _advance(model, weights, shared, rows, rollout, row_of, np.int32(start), end - start, config)
    return rollout


@flax.struct.dataclass(kw_only=True)
class Seats:
    """Who goes on, and where; padding repeats index 0.

    Attributes:
        rows: [N] int32, indices of rows.
        is_row: [N] bool, False on padding.
        prompts: [P] int32, indices of prompts.
        grid: [P, K] int32, as in `PromptCache`.
        cell: [N] int32, as in `PromptCache`.
    """

    rows: np.ndarray
    is_row: np.ndarray
    prompts: np.ndarray
    grid: np.ndarray
    cell: np.ndarray


def _bucket(count: int, num_rows: int) -> int:
    """The least number of rows of a program that holds so many."""
    return min(size for i in range(HALVINGS + 1) if (size := -(-num_rows // 2**i)) >= count)


def _seat(
    running: np.ndarray, prompt_of_row: np.ndarray, prompt_ids: np.ndarray, size: int, group_size: int
) -> tuple[Seats, np.ndarray]:
    """Seats `running` rows, whose prompts' ids are given in rising order, in a batch of `size`."""
    kept, seat = np.unique(prompt_of_row, return_inverse=True)
    among = np.arange(running.size) - np.searchsorted(prompt_of_row, prompt_of_row)  # Of its prompt's rows, the i-th.
    where = {prompt: i for i, prompt in reversed(list(enumerate(prompt_ids)))}  # Padding is behind what it repeats.
    num_prompts = min(prompt_ids.size, size)
    grid = np.zeros((num_prompts, group_size), np.int32)
    grid[seat, among] = np.arange(running.size)

    def padded(x, length):
        return np.pad(x, (0, length - x.size)).astype(np.int32)

    seats = Seats(
        rows=padded(running, size),
        is_row=np.arange(size) < running.size,
        prompts=padded(np.array([where[i] for i in kept]), num_prompts),
        grid=grid,
        cell=padded(seat * group_size + among, size),
    )
    return seats, padded(kept, num_prompts)


_begin = jax.jit(sampler.begin, static_argnums=0)
_advance = jax.jit(sampler.advance, static_argnames=("model", "num_steps"), donate_argnames="rollout")


@jax.jit
def _move(rows: Rows, shared: PromptCache, seats: Seats) -> tuple[Rows, PromptCache]:
    """The rows and prompts that go on."""
    k, v = jax.tree.map(lambda x: x[seats.prompts], (shared.k, shared.v))
    moved = jax.tree.map(lambda x: x[seats.rows], rows.replace(hidden=rows.hidden.T))
    moved = moved.replace(hidden=moved.hidden.T, done=moved.done | ~seats.is_row)
    positions = shared.positions[seats.prompts]
    return moved, PromptCache(k=k, v=v, positions=positions, grid=seats.grid, cell=seats.cell)
