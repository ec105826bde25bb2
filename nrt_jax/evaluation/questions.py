"""Which questions an evaluation asks: all rows of files, the held-out split of tasks."""

from collections.abc import Sequence

from nrt_jax import tasks
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.rows import DataConfig
from nrt_jax.data.scan import scan
from nrt_jax.data.sources import Source, open_rows, open_task
from nrt_jax.errors import UserError


def open_questions(names: Sequence[str], config: DataConfig, most: int, seed: int) -> list[Source]:
    """The sources: all rows of files, the held-out split of tasks.

    Args:
        names: As `--data` takes them.
        config: Columns, level.
        most: Questions that a task makes.
        seed: Of a task's questions.

    Raises:
        UserError: A name is no source, or `dataset.held_out` is given.
    """
    if config.held_out:
        raise UserError(f"dataset.held_out: {config.held_out!r} has no meaning here; give that source as --data")
    return [
        open_task(name, config, "heldout", most, seed) if tasks.is_task(name) else open_rows(name, config)
        for name in names
    ]


def take(sources: Sequence[Source], encoder: Encoder, config: DataConfig, most: int, max_length: int) -> list[Encoded]:
    """The first `most` good rows of the sources, one source after the other.

    Raises:
        UserError: A source has none.
    """
    found: list[Encoded] = []
    for source in sources:
        rows = scan(source, encoder, config, max_length=max_length).rows
        found += encoder.encode_many(list(rows.take(0, most - len(found))))
    return found
