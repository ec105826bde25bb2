"""Files of rows, read one row at a time: JSONL, JSON, Parquet and Arrow folders.

Each source is a sequence of rows (`__len__`, `__getitem__`) with a `name`, `where(i)`, how a person finds row i, and
`columns()`, those that its rows have. Open files stay behind when a source is sent to a worker process, which opens its
own.
"""

import dataclasses
import errno
import functools
import json
import mmap
import re
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nrt_jax import json_file
from nrt_jax.data.example import BadRow
from nrt_jax.errors import UserError

#: A larger row is none: what is asked for is held in memory, and tokenized at once.
MAX_ROW_BYTES = 2**26
#: Rows of a Parquet file that are copied at once.
_COPIED_ROWS = 4096


class JsonRows:
    """Objects in a text file, one a line, each found by the span of its bytes; the file is mapped, not read."""

    def __init__(self, path: str, starts: array, ends: array, lines: array):
        """Spans of the rows in bytes, and their lines counted from 1."""
        self.name = path
        self._starts, self._ends, self._lines = starts, ends, lines

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        size = self._ends[index] - self._starts[index]
        if size > MAX_ROW_BYTES:
            raise BadRow("is too large", f"has {size:,} bytes; expected at most {MAX_ROW_BYTES:,}")
        span = self._bytes[self._starts[index] : self._ends[index]]
        try:
            return json.loads(span.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise BadRow("is not UTF-8", f"is not UTF-8 text ({error.reason}); expected a JSON object") from error
        except (ValueError, RecursionError) as error:
            raise BadRow("is not JSON", f"is not JSON ({error}); expected an object") from error

    def where(self, index: int) -> str:
        """A row is called by its line, as an editor counts."""
        return f"row {self._lines[index]}"

    def columns(self) -> list[str]:
        """The names in the first row that is an object."""
        for i in range(len(self)):
            try:
                row = self[i]
            except BadRow:
                continue
            if isinstance(row, dict):
                return list(row)
        return []

    @functools.cached_property
    def _bytes(self) -> mmap.mmap:
        with Path(self.name).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_bytes"}


def jsonl(path: str) -> JsonRows:
    """One object a line; blank lines are no rows."""
    starts, ends, lines = array("q"), array("q"), array("q")
    start, end, number, blank = 0, 0, 1, True
    try:
        with Path(path).open("rb") as file:
            for piece in iter(functools.partial(file.readline, MAX_ROW_BYTES), b""):  # a line, or a part of a long one
                end += len(piece)
                blank = blank and not piece.strip()
                if not blank and (not lines or lines[-1] != number):
                    starts.append(start)
                    ends.append(end)
                    lines.append(number)
                elif not blank:
                    ends[-1] = end
                if piece.endswith(b"\n"):
                    start, number, blank = end, number + 1, True
    except OSError as error:
        raise unreadable(path, error, "a JSONL file") from error
    return JsonRows(path, starts, ends, lines)


@dataclasses.dataclass(frozen=True)
class ListRows:
    """Objects of a JSON file, which cannot be read in parts: large data wants JSONL or Parquet."""

    name: str
    rows: list[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def where(self, index: int) -> str:
        """Rows are counted from 0."""
        return f"row {index} (from 0)"

    def columns(self) -> list[str]:
        """The names in the first row that is an object."""
        return next((list(row) for row in self.rows if isinstance(row, dict)), [])


def json_list(path: str) -> ListRows:
    """A list of objects, or an object one of whose values is that list."""
    try:
        text = Path(path).read_bytes()
        content = json.loads(text.decode("utf-8-sig")) if text.strip() else []
    except OSError as error:
        raise unreadable(path, error, "a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"data: {path!r} is not JSON ({error}); expected a list of objects; one object a line is a .jsonl file"
        ) from error
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        if len(lists) != 1:
            found = f"{len(lists)} of its values are lists ({', '.join(lists)})" if lists else "it holds no list"
            raise UserError(f"data: {path!r}: {found}; expected a list of objects, or an object with one list")
        (content,) = lists.values()
    if not isinstance(content, list):
        raise UserError(f"data: {path!r}: is a {type(content).__name__}; expected a list of objects")
    return ListRows(path, content)


class ArrowRows:
    """Rows of Arrow tables that are mapped into memory: of each, only the rows that are asked for are read."""

    def __init__(self, name: str, parts: Sequence[tuple[Callable, tuple]], sizes: Sequence[int], columns: list[str]):
        """Parts as (function, arguments) that give a table, their numbers of rows, and all columns' names."""
        self.name = name
        self._parts, self._columns = parts, columns
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._tables = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        if part not in self._tables:
            load, arguments = self._parts[part]
            self._tables[part] = load(*arguments)
        row = self._tables[part].slice(int(index - self._starts[part]), 1)
        try:
            row.validate(full=True)  # Offsets that lead out of the file would be followed.
            return next(iter(row.to_pylist()), {})  # A table of no columns has no rows either.
        except (ValueError, TypeError, ArithmeticError) as error:  # such as a date that Python has not
            reason = _reason(error)
            if "UTF8" in reason:
                raise BadRow("is not UTF-8", f"is not UTF-8 text ({reason}); expected valid text") from error
            raise BadRow("cannot be read", f"cannot be read ({reason}); expected text") from error

    def where(self, index: int) -> str:
        """Rows are counted from 0, over all files of a folder in the order of their names."""
        return f"row {index} (from 0)"

    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return self._columns

    def __getstate__(self):
        return vars(self) | {"_tables": {}}


class ParquetRows(ArrowRows):
    """Rows of Parquet files, in a copy that can be read at random; Parquet itself gives whole row groups only.

    Opening writes the wanted columns, uncompressed, into a temporary folder (under TMPDIR), which takes several times
    the room that they take in the files. It is removed with this object, or when its process ends (not if it is
    killed). Other processes that are sent the rows read the same copy.
    """

    def __init__(self, name: str, paths: Sequence[Path], wanted: Sequence[str]):
        """Raises UserError if a file cannot be read, or there is no room for the copy."""
        folder = tempfile.TemporaryDirectory(prefix="nrt_jax_rows_")
        parts, sizes, columns = [], [], {}
        for i, path in enumerate(paths):
            copy = str(Path(folder.name) / f"{i}.arrow")
            names, size = _copy_as_arrow(str(path), copy, wanted)
            parts.append((_mapped_table, (copy,)))
            sizes.append(size)
            columns |= dict.fromkeys(names)
        super().__init__(name, parts, sizes, list(columns))
        self._folder = folder

    def __getstate__(self):
        return super().__getstate__() | {"_folder": None}  # It belongs to the process that made it.


def _copy_as_arrow(path: str, copy: str, wanted: Sequence[str]) -> tuple[list[str], int]:
    """Writes the wanted columns of a Parquet file as an Arrow stream; all columns' names, and the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            read = [column for column in wanted if column in names]
            # Streams, unlike Arrow files, may hold columns whose dictionary changes on the way.
            schema = file.read_row_groups([], columns=read).schema
            with pa.OSFile(copy, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in file.iter_batches(_COPIED_ROWS, columns=read):
                    writer.write_batch(batch)
            return names, file.metadata.num_rows
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UserError(
                f"data: no room in {tempfile.gettempdir()!r} for an uncompressed copy of {path!r}; "
                "expected some; name another folder by the environment variable TMPDIR"
            ) from error
        raise unreadable(path, error, "a Parquet file") from error


def _mapped_table(path: str):
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


def arrow_folder(name: str, path: Path, split: str, wanted: Sequence[str]) -> ArrowRows:
    """Rows that `datasets.Dataset.save_to_disk` wrote; of a DatasetDict, those of one split."""
    import datasets

    try:
        _check_names(path)
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # for a damaged folder it may be of many kinds
        raise unreadable(name, error, "a folder written by datasets.save_to_disk") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            choices = " or ".join(f"{path!s}:{known}" for known in loaded)
            raise UserError(f"data: {name!r}: {'no such split' if split else 'needs a split'}; expected {choices}")
        path, loaded = path / split, loaded[split]
    elif split:
        raise UserError(f"data: {name!r}: no such split, since it has none; expected {str(path)!r}")
    read = tuple(column for column in wanted if column in loaded.column_names)
    return ArrowRows(name, [(_saved_table, (str(path), read))], [len(loaded)], loaded.column_names)


def _check_names(path: Path) -> None:
    """Raises ValueError if the folder's JSON files name splits or files that are not in it."""
    folders = [path]
    if (path / "dataset_dict.json").exists():
        splits = json_file.read(path / "dataset_dict.json")["splits"]
        folders = [path / _bare(split) for split in splits]
    for folder in folders:
        for file in json_file.read(folder / "state.json")["_data_files"]:
            _bare(file["filename"])


def _bare(name: Any) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise ValueError(f"it names {name!r}, which is no file of this folder")
    return name


def _saved_table(path: str, columns: tuple[str, ...]):
    import datasets

    return datasets.load_from_disk(path).data.select(list(columns))  # Mapped into memory, not read.


def unreadable(path: str, error: Exception, expected: str) -> UserError:
    """The error for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or _reason(error)
    return UserError(f"data: cannot read {path!r}: {reason}; expected {expected}")


def _reason(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
