"""Which examples a step takes: a seeded shuffle that is a pure function of the step, so that resuming is exact."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from nrt_jax.errors import UserError

T = TypeVar("T")

#: More rows than a run uses. Grain's own endless number does not survive its division by the batch size.
_ENDLESS = 2**50


def shuffled(rows: Sequence[T] | grain.MapDataset[T], seed: int | Sequence[int]) -> grain.MapDataset[T]:
    """Endless epochs of `rows`, each in another order: index i gives the i-th row to be used."""
    # Epoch e of seed s shuffles with s + e: without hashing, epoch 1 of seed 0 would be epoch 0 of seed 1.
    hashed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    dataset = rows if isinstance(rows, grain.MapDataset) else grain.MapDataset.source(rows)
    return dataset.shuffle(seed=hashed).repeat()


def mixture(parts: Sequence[Sequence[T]], weights: Sequence[float], seed: int) -> grain.MapDataset[T]:
    """Rows of several sources in one endless order.

    Args:
        parts: Rows of each source.
        weights: How often each source is drawn from, in any unit; each then has epochs of its own. Empty for all rows
            shuffled as those of one source.
        seed: Of all shuffles.
    """
    if not weights or len(parts) == 1:
        return shuffled(grain.MapDataset.concatenate([grain.MapDataset.source(part) for part in parts]), seed)
    return grain.MapDataset.mix([shuffled(part, [seed, i]) for i, part in enumerate(parts)], weights)


class Batches(Generic[T]):
    """The rows of step after step, and a state from which any step goes on.

    Batches follow one another without gap or repeat, across epochs too. Process p of n takes rows p B/n to (p+1) B/n of
    each batch of B rows: all processes together take what one alone would.
    """

    def __init__(
        self,
        rows: grain.MapDataset[Any],
        batch_size: int,
        *,
        transform: Callable[[list], T] = list,
        workers: int = 0,
        shard_index: int = 0,
        num_shards: int = 1,
        identity: Any = None,
    ):
        """Makes an iterator that stands at step 0.

        Args:
            rows: Rows in the order of their use, endless.
            batch_size: B, over all processes; `num_shards` divides it.
            transform: What a batch's list of rows becomes, such as `Encoder.encode_many`.
            workers: Processes that read ahead; 0 reads when asked. Their number changes no batch.
            shard_index: p.
            num_shards: n.
            identity: JSON value that says what the rows are, such as their fingerprints; a state of others is refused.
        """
        if batch_size % num_shards:
            raise UserError(
                f"rollout.prompts: {batch_size} cannot be divided among {num_shards} processes; expected a multiple"
            )
        rows = rows.slice(slice(0, _ENDLESS))
        parts = rows.batch(batch_size // num_shards, batch_fn=list)
        self._batches = parts.slice(slice(shard_index, None, num_shards)).map(transform)
        self._workers, self._identity = workers, identity
        self._step, self._iterator = 0, None

    def __iter__(self) -> "Batches[T]":
        return self

    def __next__(self) -> T:
        if self._iterator is None:
            self._iterator = iter(self._from(self._step))
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands, as JSON values."""
        return {"step": self._step, "identity": self._identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, with any number of workers.

        Raises:
            UserError: The state belongs to other rows.
        """
        if state["identity"] != self._identity:
            raise UserError(
                f"data: the rows are {self._identity}, but were {state['identity']} when the checkpoint was written; "
                "expected the same files, to go on where it stopped"
            )
        self.close()
        self._step = state["step"]

    def close(self) -> None:
        """Ends the workers."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _from(self, step: int) -> grain.IterDataset[T]:
        # No threads: a tokenizer is not to be used by two at once.
        now = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        dataset = self._batches.slice(slice(step, None)).to_iter_dataset(now)
        if not self._workers:
            return dataset
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's worker processes read flags, of which this program has none.
            flags.FLAGS.mark_as_parsed()
        return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
