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
from nrt_jax.tasks import judging


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


@dataclasses.dataclass(frozen=True)
class JudgingRows:
    """Judged responses (`nrt_jax.tasks.judging`) as questions to a judge, whose answers are verdicts."""

    name: str
    judged: Source
    config: DataConfig

    def __len__(self) -> int:
        return len(self.judged)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.judged[index]
        example = judging.parse_row(row).example(row.get(self.config.trace_column))
        columns = (self.config.question_column, self.config.answer_column, self.config.trace_column)
        return dict(zip(columns, (example.question, example.answer, example.trace), strict=True))

    def where(self, index: int) -> str:
        """As in the file."""
        return self.judged.where(index)

    def columns(self) -> list[str]:
        """Those of the file."""
        return self.judged.columns()


def open_rows(name: str, config: DataConfig, columns: Sequence[str] = ()) -> Source:
    """Opens a file, a folder or a TFDS data set.

    Args:
        name: Path of a `.jsonl`, `.json` or `.parquet` file; of a folder of Parquet files or one that
            `datasets.save_to_disk` wrote (`FOLDER:SPLIT` if it has splits); or `tfds:NAME[/CONFIG][:SPLIT]`. After
            `judging:`, rows are responses with labels, and become judging tasks.
        config: Columns, and where TFDS keeps its data sets.
        columns: Those that are read; by default the config's.

    Raises:
        UserError: There is no such thing, or it cannot be read.
    """
    if name.startswith(judging.PREFIX):
        wanted = (*judging.COLUMNS, config.trace_column)
        return JudgingRows(name, open_rows(name.removeprefix(judging.PREFIX), config, wanted), config)
    columns = columns or config.columns
    if name.startswith(tfds.PREFIX):
        return tfds.open_split(name, config.tfds_dir, columns)
    path, split = Path(name), ""
    if not path.exists() and Path(name.rpartition(":")[0] or name).is_dir():
        folder, _, split = name.rpartition(":")
        path = Path(folder)
    if path.is_dir():
        return _open_folder(name, path, split, columns)
    if not path.exists():
        known = f"is no task ({', '.join(sorted(tasks.TASKS))}) and no file; expected one of them"
        missing = f"cannot read {name!r}: No such file or directory; expected a file or folder of rows"
        raise UserError(f"data: {missing}" if path.suffix else f"data: {name!r} {known}")
    if not path.is_file():  # to open a pipe would wait for a writer
        raise UserError(f"data: {name!r} is no regular file; expected a file or folder of rows")
    if path.suffix == ".parquet":
        return files.ParquetRows(name, [path], columns)
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
