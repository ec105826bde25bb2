"""Which questions an evaluation asks: all rows of files, the held-out split of tasks."""

from collections.abc import Mapping, Sequence

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
        UserError: A name is no source, there are more of them than questions, or `dataset.held_out` is given.
    """
    if len(names) > most:
        raise UserError(f"questions: {most} of {len(names)} sources cannot work; expected one of each or more")
    if config.held_out:
        raise UserError(f"dataset.held_out: {config.held_out!r} has no meaning here; give that source as --data")
    return [
        open_task(name, config, "heldout", most, seed) if tasks.is_task(name) else open_rows(name, config)
        for name in dict.fromkeys(names)
    ]


def take(
    sources: Sequence[Source], encoder: Encoder, config: DataConfig, most: int, max_length: int
) -> dict[str, list[Encoded]]:
    """The first good rows of each source, by its name, `most` together.

    Raises:
        UserError: A source has none.
    """
    good = {source.name: scan(source, encoder, config, max_length=max_length).rows for source in sources}
    counts = shares({name: len(rows) for name, rows in good.items()}, most)
    return {name: encoder.encode_many(list(rows.take(0, counts[name]))) for name, rows in good.items()}


def shares(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """How many of `most` questions each source is asked: equally many, or all that it has where others have more."""
    found = {}
    for i, name in enumerate(sorted(sizes, key=sizes.get)):
        found[name] = min(sizes[name], (most - sum(found.values())) // (len(sizes) - i))
    return found
