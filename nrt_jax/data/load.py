"""A run's data: its sources opened, checked and divided into training and held-out questions."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from nrt_jax import tasks
from nrt_jax.data import pipeline
from nrt_jax.data.encode import Encoded, Encoder
from nrt_jax.data.rows import DataConfig
from nrt_jax.data.scan import Check, Rows, Scan, scan
from nrt_jax.data.sources import Source, open_rows, open_task
from nrt_jax.errors import UserError

#: A held-out part of a file is this share of its rows, if the user gives no file of their own.
HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Opened:
    """Sources that exist and can be read; nothing of their rows is checked yet.

    Attributes:
        train: Sources of training rows.
        own: For each of them, its own held-out split, or None.
        held_out: `dataset.held_out`, or None.
    """

    train: tuple[Source, ...]
    own: tuple[Source | None, ...]
    held_out: Source | None


@dataclasses.dataclass(frozen=True, eq=False)
class Data(Sequence[Encoded]):
    """Training rows, which are read and tokenized when they are asked for, and what belongs to them.

    Attributes:
        parts: Good rows of each source.
        encoder: Text to ids.
        config: Weights, workers.
        held_out: Evaluation rows.
        held_out_sources: The name of the source of each.
        scans: What the pass over each source found; those of training rows come first.
        longest_answer: Tokens of the longest y* of all rows, held-out ones included.
        has_traces: Whether training rows have demonstrations.
    """

    parts: tuple[Rows, ...]
    encoder: Encoder
    config: DataConfig
    held_out: list[Encoded]
    held_out_sources: list[str]
    scans: tuple[Scan, ...]
    longest_answer: int
    has_traces: bool

    @property
    def num_without_trace(self) -> int:
        """Rows of the training sources that lack a demonstration."""
        return sum(len(found.rows) - found.num_traces for found in self.scans[: len(self.parts)])

    @property
    def num_without_pair(self) -> int:
        """Rows of the training sources that lack a chosen and a rejected completion."""
        return sum(len(found.rows) - found.num_pairs for found in self.scans[: len(self.parts)])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for part in self.parts:
            if index < len(part):
                return self.encoder.encode(part[index])
            index -= len(part)
        raise IndexError(index)

    def report(self, *, with_trace: bool) -> list[str]:
        """Lines on the sources some of whose rows are not used as one may think.

        Args:
            with_trace: Whether traces are learned from: training rows that lack one are then counted.
        """
        lines = []
        for i, found in enumerate(self.scans):
            lacking = len(found.rows) - found.num_traces if with_trace and i < len(self.parts) else 0
            if found.left_out or lacking:
                lines.append(f"{found}; {lacking} without a trace, trained on an empty one" if lacking else str(found))
        return lines

    def batches(self, batch_size: int, seed: int, **shard: int) -> pipeline.Batches[list[Encoded]]:
        """Batches of training rows; `shard` as in `pipeline.Batches`."""
        return pipeline.Batches(
            pipeline.mixture(self.parts, self.config.weights, seed),
            batch_size,
            transform=self.encoder.encode_many,
            workers=self.config.workers,
            identity=[part.fingerprint() for part in self.parts],
            **shard,
        )

    def where(self, step: int, batch_size: int, seed: int) -> list[str]:
        """How a person finds the rows of batch `step`, from 0, of all processes: `batches` draws by index alone."""
        places = [_Places(part) for part in self.parts]
        batches = pipeline.Batches(pipeline.mixture(places, self.config.weights, seed), batch_size)
        batches.set_state({"step": step, "identity": None})
        with batches:
            return next(batches)


@dataclasses.dataclass(frozen=True, eq=False)
class _Places(Sequence[str]):
    """Where each of some rows is found; nothing of the rows is read."""

    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return self.rows.where(index)


def open_sources(names: Sequence[str], config: DataConfig, *, num_held_out: int, seed: int) -> Opened:
    """Finds the sources of a run.

    Args:
        names: Tasks, files, folders or TFDS data sets (`sources.open_rows`).
        config: The rest of what says where the questions come from.
        num_held_out: Most held-out questions.
        seed: Of a task's generator.

    Raises:
        UserError: A name is none of these, or the config does not fit the names.
    """
    if not names:
        raise UserError("data: is empty; expected the name of a task, or a file")
    usable = all(weight > 0 and math.isfinite(weight) for weight in config.weights)
    if config.weights and (len(config.weights) != len(names) or not usable):
        raise UserError(
            f"dataset.weights: {', '.join(map(str, config.weights))} for {len(names)} sources; "
            "expected one finite number above 0 for each"
        )
    if config.held_out and all(tasks.is_task(name) for name in names):
        raise UserError(f"dataset.held_out: {config.held_out!r} given with task {names[0]!r}, which has its own split")
    train, own = [], []
    for name in names:
        is_task = tasks.is_task(name)
        train.append(open_task(name, config, "train", config.size, seed) if is_task else open_rows(name, config))
        own.append(open_task(name, config, "heldout", num_held_out, seed) if is_task else None)
    return Opened(tuple(train), tuple(own), open_rows(config.held_out, config) if config.held_out else None)


def load(
    opened: Opened,
    encoder: Encoder,
    config: DataConfig,
    *,
    num_held_out: int,
    max_length: int | None = None,
    check: Check | None = None,
) -> Data:
    """Passes over all sources once, and holds questions out for evaluation.

    Args:
        opened: Of `open_sources`.
        encoder: Text to ids; its limits hold.
        config: As for `open_sources`.
        num_held_out: Most held-out questions.
        max_length: Most tokens of prompt, delimiter and answer together.
        check: As for `scan`, of all rows.

    Raises:
        UserError: A source has no good row, too few to hold one out or, with `bad_rows` "stop", a bad one.
    """
    how = {"max_length": max_length, "check": check}
    scans = [scan(source, encoder, config, **how) for source in opened.train]
    parts, held_out = [found.rows for found in scans], []
    if opened.held_out is not None:
        scans.append(scan(opened.held_out, encoder, config, **how))
        held_out = [scans[-1].rows.take(0, num_held_out)]
    else:
        weights = config.weights or [len(rows) for rows in parts]
        for i, (rows, own) in enumerate(zip(tuple(parts), opened.own, strict=True)):
            most = max(1, int(num_held_out * (weights[i] / sum(weights))))
            if own is not None:
                scans.append(scan(own, encoder, config, **how))
                held_out.append(scans[-1].rows.take(0, most))
                continue
            count = min(most, max(1, int(HELD_OUT_SHARE * len(rows))))
            if len(rows) <= count:
                raise UserError(
                    f"data: {rows.source.name!r} has {len(rows)} row; expected at least 2, to hold one out for "
                    f"evaluation ({scans[i]})"
                )
            parts[i], last = rows.take(0, len(rows) - count), rows.take(len(rows) - count, len(rows))
            held_out.append(last)
    evaluated = encoder.encode_many([example for rows in held_out for example in rows][:num_held_out])
    return Data(
        parts=tuple(parts),
        encoder=encoder,
        config=config,
        held_out=evaluated,
        held_out_sources=[rows.source.name for rows in held_out for _ in range(len(rows))][:num_held_out],
        scans=tuple(scans),
        longest_answer=max(
            *(found.longest_answer for found in scans[: len(parts)]), *(len(row.answer) for row in evaluated)
        ),
        has_traces=any(found.num_traces for found in scans[: len(parts)]),
    )
