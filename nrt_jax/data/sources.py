"""Where examples come from: tasks, files of question-answer rows or chats, TFDS."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nrt_jax import tasks
from nrt_jax.data import files, tfds
from nrt_jax.data.example import Example
from nrt_jax.data.rows import DataConfig
from nrt_jax.errors import UserError


class Source(Protocol):
    """Rows in a fixed order, each read when it is asked for.

    Attributes:
        name: As the user wrote it.
    """

    name: str

    def __len__(self) -> int:
        """Number of rows, good and bad."""

    def __getitem__(self, index: int) -> Any:
        """Row `index`, as `rows.parse` takes it; raises BadRow if it cannot be read."""

    def where(self, index: int) -> str:
        """How a person finds the row."""

    def columns(self) -> list[str]:
        """Names of the columns."""


@dataclasses.dataclass(frozen=True)
class TaskRows:
    """Examples of a task."""

    name: str
    examples: list[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def where(self, index: int) -> str:
        """Rows are counted from 0."""
        return f"row {index} (from 0)"

    def columns(self) -> list[str]:
        """Names of the fields."""
        return ["question", "answer", "trace"]


def open_task(name: str, config: DataConfig, split: str, size: int, seed: int) -> TaskRows:
    """The first `size` examples of a split of a task."""
    level = {"level": config.level} if config.level else {}
    return TaskRows(name, tasks.get(name).examples(size, seed, split=split, **level))


def open_rows(name: str, config: DataConfig) -> Source:
    """Opens a file, a folder or a TFDS data set.

    Args:
        name: Path of a `.jsonl`, `.json` or `.parquet` file; of a folder of Parquet files or one that
            `datasets.save_to_disk` wrote (`FOLDER:SPLIT` if it has splits); or `tfds:NAME[/CONFIG][:SPLIT]`.
        config: Columns, and where TFDS keeps its data sets.

    Raises:
        UserError: There is no such thing, or it cannot be read.
    """
    if name.startswith(tfds.PREFIX):
        return tfds.open_split(name, config.tfds_dir, config.columns)
    path, split = Path(name), ""
    if not path.exists() and Path(name.rpartition(":")[0] or name).is_dir():
        folder, _, split = name.rpartition(":")
        path = Path(folder)
    if path.is_dir():
        return _open_folder(name, path, split, config.columns)
    if not path.exists():
        known = f"is no task ({', '.join(sorted(tasks.TASKS))}) and no file; expected one of them"
        missing = f"cannot read {name!r}: No such file or directory; expected a file or folder of rows"
        raise UserError(f"data: {missing}" if path.suffix else f"data: {name!r} {known}")
    if not path.is_file():  # to open a pipe would wait for a writer
        raise UserError(f"data: {name!r} is no regular file; expected a file or folder of rows")
    if path.suffix == ".parquet":
        return files.ParquetRows(name, [path], config.columns)
    return files.json_list(name) if path.suffix == ".json" else files.jsonl(name)


def _open_folder(name: str, path: Path, split: str, columns: Sequence[str]) -> Source:
    parquet = sorted(path.glob("*.parquet"))
    if parquet and not split:
        return files.ParquetRows(name, parquet, columns)
    if any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        return files.arrow_folder(name, path, split, columns)
    raise UserError(
        f"data: {name!r}: is a folder without rows; expected one of .parquet files, "
        "or one that datasets.save_to_disk wrote"
    )
