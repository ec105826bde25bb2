"""Rows of many lengths in batches of one size, so that few programs are compiled."""

from collections.abc import Iterator, Sequence
from typing import Any


def batches(keys: Sequence[Any], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows with alike keys, the largest first: what does not fit into memory fails at once.

    Args:
        keys: One a row; how much room it takes.
        batch_size: Rows of a batch; all rows, if they are fewer.

    Yields:
        Lists of one length. The last one is filled up by repeating its last index.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
    size = min(batch_size, len(order))
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield part + part[-1:] * (size - len(part))
