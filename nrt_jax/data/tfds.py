"""TFDS data sets, read at random from array_record files: TensorFlow is not needed."""

import re
from typing import Any

import numpy as np

from nrt_jax.errors import UserError

PREFIX = "tfds:"
_LOCAL = re.compile(r"[\w./-]+(:[\d.*]+)?")
_VERSION = re.compile(r"[\d*]+\.[\d*]+\.[\d*]+")


class TFDSRows:
    """Rows of one split. Text stays bytes, as TFDS gives it."""

    def __init__(self, name: str, source, wanted: tuple[str, ...]):
        self.name = name
        self._source, self._wanted = source, wanted

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        row = self._source[int(index)]
        return {column: _plain(row[column]) for column in self._wanted if column in row}

    def where(self, index: int) -> str:
        """Rows are counted from 0."""
        return f"row {index} (from 0)"

    def columns(self) -> list[str]:
        """Names of the features."""
        return list(self._source.dataset_info.features)


def open_split(name: str, data_dir: str, wanted: tuple[str, ...]) -> TFDSRows:
    """Opens `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`; the split is `train` if none is named.

    Raises:
        UserError: It is not there, or not prepared as array_record files.
    """
    import tensorflow_datasets as tfds

    builder, _, split = name.removeprefix(PREFIX).rpartition(":")
    if not builder or _VERSION.fullmatch(split):
        builder, split = name.removeprefix(PREFIX), "train"
    if not _LOCAL.fullmatch(builder):  # a namespace, such as huggingface:, would be asked for code
        raise UserError(f"data: cannot read {name!r}: names no local data set; expected tfds:NAME[/CONFIG][:SPLIT]")
    try:
        source = tfds.data_source(builder, split=split, data_dir=data_dir or None, download=False)
        return TFDSRows(name, source, wanted)
    except Exception as error:  # TFDS raises many kinds
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"data: cannot read {name!r}: {reason or type(error).__name__}; expected tfds:NAME[/CONFIG][:SPLIT], "
            f"prepared as array_record files in {data_dir or '~/tensorflow_datasets'} (--dataset.tfds-dir)"
        ) from error


def _plain(value: Any) -> Any:
    """A feature as rows of files hold it: a sequence is a list, one number a number, text (as bytes) itself."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
