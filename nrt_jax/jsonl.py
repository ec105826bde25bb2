"""JSON Lines in and out: rows that know where they stand, and a file that appears complete or not at all."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nrt_jax import json_file
from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One JSON object of a file.

    Attributes:
        line: Its line in the file, from 1.
        where: File and line as an error names them.
        values: The object.
    """

    line: int
    where: str
    values: dict[str, Any]

    def text(self, column: str, *, may_be_empty: bool = False) -> str:
        """The text in a column.

        Raises:
            UserError: The column is absent, no text or no valid Unicode, or is blank though it must not be.
        """
        value = self.values.get(column)
        expected = "text" if may_be_empty else "non-empty text"
        if not isinstance(value, str) or not (may_be_empty or value.strip()):
            found = f"is {value!r:.40}" if column in self.values else "is missing"
            raise UserError(f"{self.where}: {column!r} {found}; expected {expected}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{self.where}: {column!r} holds half a surrogate pair; expected valid Unicode") from None
        return value


def read(path: str, *, field: str, adds: Sequence[str]) -> list[Row]:
    """Reads one object a line; blank lines are passed over.

    Args:
        path: The file.
        field: The config's name for it, for errors.
        adds: Columns that will be added. A row that has one already is refused, since one of the two would be lost.

    Raises:
        UserError: The file cannot be read, holds no row, or holds a line that is no object; names file and line.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{field}: cannot read {path!r}: {reason}; expected a JSONL file") from error
    rows = [
        _parse(line, number, f"{field}: {path!r}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not rows:
        raise UserError(f"{field}: {path!r} is empty; expected one JSON object a line")
    for row in rows:
        for column in adds:
            if column in row.values:
                raise UserError(f"{row.where}: has {column!r}, which the output adds; rename or remove that column")
    return rows


def _parse(line: bytes, number: int, where: str) -> Row:
    try:
        values = json.loads(line.decode("utf-8"), parse_float=_finite, parse_constant=_finite)
        json_file.check_depth(values)  # what is read must be fit to be written, too
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error}); expected an object") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: is a {type(values).__name__}; expected an object")
    return Row(number, where, values)


def _finite(text: str) -> float:
    """A number that can be written back: JSON has neither NaN nor infinity, though Python reads them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def check_writable(path: str, *, field: str) -> None:
    """Raises UserError if `write` could not make this file, before hours are spent on what goes into it."""
    with _partial(path, field):
        pass


def write(path: str, rows: Iterable[Row], *, field: str) -> None:
    """Writes one object a line, in ASCII; an existing file is replaced once the new one is complete.

    Raises:
        UserError: The file cannot be written, or a number is not finite.
    """
    with _partial(path, field) as file:
        for row in rows:
            try:
                file.write(json.dumps(row.values, allow_nan=False) + "\n")
            except ValueError as error:
                raise UserError(
                    f"{row.where}: the result is not finite; expected a checkpoint whose weights are, "
                    "and a temperature that is not tiny"
                ) from error
        file.close()
        Path(file.name).replace(Path(path).resolve())


@contextlib.contextmanager
def _partial(path: str, field: str) -> Iterator[TextIO]:
    """A file beside `path`, which is gone at the end of the block unless it was renamed."""
    target = Path(path).resolve()  # a link keeps pointing where it points
    if target.exists() and not target.is_file():
        raise UserError(f"{field}: {path!r} is not a regular file; expected the name of a file to write")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("w", encoding="ascii") as file:
                yield file
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{field}: cannot write {path!r}: {reason}; choose a file in a folder you can write") from error
