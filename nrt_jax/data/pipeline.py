"""Which examples a step takes: a seeded shuffle that is a pure function of the step, so that resuming is exact."""

from collections.abc import Sequence
from typing import TypeVar

import grain

T = TypeVar("T")


def shuffled(rows: Sequence[T], seed: int) -> grain.MapDataset[T]:
    """Endless epochs of `rows`, each in another order: index i gives the i-th row to be used."""
    return grain.MapDataset.source(rows).shuffle(seed=seed).repeat()


def rows_of_step(rows: grain.MapDataset[T], step: int, batch_size: int) -> list[T]:
    """The rows of one step: batches follow one another without gap or repeat, across epochs too."""
    return [rows[i] for i in range(step * batch_size, (step + 1) * batch_size)]
