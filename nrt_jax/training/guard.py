"""What becomes of updates that were skipped because their loss or gradient was not finite."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from nrt_jax.errors import UserError
from nrt_jax.training.metrics import truncate_records

SKIPPED_FILE = "skipped.jsonl"


class SkippedUpdates:
    """Writes down which rows were in a step whose updates were skipped, and ends a run in which that does not stop.

    A line of `skipped.jsonl` is `{"step": int, "skipped_updates": int, "rows": [where each row is found]}`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        most: int,
        rows_of: Callable[[int], Sequence[str]],
        earlier: Sequence[Mapping[str, Any]] = (),
    ):
        """Goes on after the records of an earlier part of the run.

        Args:
            folder: The run's.
            most: Such steps in a row that end the run.
            rows_of: Where the rows of the batch of a step, counted from 0, are found.
            earlier: Records of `metrics.jsonl` that stand; what was written of later ones is dropped.
        """
        self._path, self._most, self._rows_of = folder / SKIPPED_FILE, most, rows_of
        self._seen = self._in_a_row = 0
        for record in earlier:
            self._count(record)
        if jax.process_index() == 0:
            truncate_records(self._path, self._seen)

    def check(self, record: Mapping[str, Any] | None) -> None:
        """Takes the record of a step, once or several times.

        Raises:
            UserError: As many steps in a row as may be had skipped updates.
        """
        if record is None or record["step"] <= self._seen:
            return
        self._count(record)
        if not self._in_a_row:
            return
        step = record["step"]
        if jax.process_index() == 0:
            line = {"step": step, "skipped_updates": record["skipped_updates"], "rows": self._rows_of(step - 1)}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._in_a_row >= self._most:
            raise UserError(
                f"step {step}: the loss or its gradient was not finite in {self._in_a_row} steps in a row, whose "
                f"updates were skipped (their rows are in {self._path}); try a lower --optimizer.learning-rate or "
                "--dtype float32, look at these rows, or let it go on for longer with --max-skipped"
            )

    def _count(self, record: Mapping[str, Any]) -> None:
        self._seen = record["step"]
        self._in_a_row = self._in_a_row + 1 if record.get("skipped_updates") else 0
