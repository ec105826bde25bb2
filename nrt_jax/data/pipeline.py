"""Which examples a step takes: a seeded shuffle that is a pure function of the step, so that resuming is exact."""

from collections.abc import Sequence
from typing import TypeVar

import grain
import numpy as np

T = TypeVar("T")


def shuffled(rows: Sequence[T], seed: int) -> grain.MapDataset[T]:
    """Endless epochs of `rows`, each in another order: index i gives the i-th row to be used."""
    # Epoch e of seed s shuffles with s + e: without hashing, epoch 1 of seed 0 would be epoch 0 of seed 1.
    hashed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.source(rows).shuffle(seed=hashed).repeat()


def rows_of_step(rows: grain.MapDataset[T], step: int, batch_size: int) -> list[T]:
    """The rows of one step: batches follow one another without gap or repeat, across epochs too."""
    return [rows[i] for i in range(step * batch_size, (step + 1) * batch_size)]
