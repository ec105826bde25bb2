"""The data of the paper's release, as a TFDS data set made from the published files of tulu-3-sft-mixture.

The release's text says "test_size 1024, seed 42, first 220k rows". Its script does it in this order, and so does this:
all Parquet files in the order of their names, `datasets.Dataset.train_test_split(test_size=1024, seed=42)`, then the
first 220,000 rows of the training part as the split left them. Of each chat, x is all before the last assistant turn,
and y* that turn: `messages` is kept whole, and `rows.parse` divides it when it is read. The release drops a chat whose
last two turns are not a user's and the assistant's when it processes the rows; here such rows are counted when read.

TensorFlow is needed neither to write nor to read it.
"""

import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from nrt_jax.errors import UserError

TRAIN_ROWS = 220_000
TEST_ROWS = 1024
SEED = 42
COLUMNS = ("id", "source", "messages")


class Tulu3SftMixture(tfds.core.GeneratorBasedBuilder):
    """Builds `tulu3_sft_mixture` with the splits `train` and `test`; see `build`."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the .parquet files of https://huggingface.co/datasets/allenai/tulu-3-sft-mixture into the folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="The training and test questions of the NRT release, drawn from tulu-3-sft-mixture.",
            features=tfds.features.FeaturesDict(
                {"id": tfds.features.Text(), "source": tfds.features.Text(), "messages": tfds.features.Sequence(turn)}
            ),
            homepage="https://huggingface.co/datasets/allenai/tulu-3-sft-mixture",
            disable_shuffling=True,  # The split has shuffled them.
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        import datasets

        self._cache = tempfile.TemporaryDirectory()  # Rows are read at random, which Parquet files are slow at.
        files = [str(path) for path in parquet_files(Path(dl_manager.manual_dir))]
        try:
            rows = datasets.Dataset.from_parquet(files, cache_dir=self._cache.name).select_columns(list(COLUMNS))
        except Exception as error:  # damage is found only now; the library wraps what it met
            reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"parquet: cannot read {files}: {reason}; expected whole files, copy them again") from error
        split = rows.train_test_split(test_size=TEST_ROWS, seed=SEED)
        train = split["train"].select(range(min(len(split["train"]), TRAIN_ROWS)))
        return {"train": self._generate_examples(train), "test": self._generate_examples(split["test"])}

    def _generate_examples(self, rows):
        """Yields (number, row) of a split in its order."""
        for i, row in enumerate(rows):
            turns = [{key: turn[key] or "" for key in ("role", "content")} for turn in row["messages"] or ()]
            yield i, {"id": row["id"] or "", "source": row["source"] or "", "messages": turns}


def parquet_files(folder: Path) -> list[Path]:
    """The data's files in `folder` or, as published, in `folder/data`.

    Raises:
        UserError: There are none.
    """
    found = sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))
    if not found:
        raise UserError(f"parquet: {str(folder)!r} holds no .parquet files; expected those of tulu-3-sft-mixture")
    return found


def build(parquet: str, data_dir: str = "") -> str:
    """Writes the data set as array_record files.

    Args:
        parquet: Folder of the published Parquet files.
        data_dir: Folder of TFDS data sets; empty for `~/tensorflow_datasets`.

    Returns:
        The folder written.

    Raises:
        UserError: The files are not there, are too few or have other columns, or the data set is there already.
    """
    import pyarrow.parquet as pq

    for path in parquet_files(Path(parquet)):
        try:
            lacking = set(COLUMNS) - set(pq.read_schema(path).names)
        except (OSError, ValueError) as error:
            raise UserError(f"parquet: cannot read {str(path)!r}: {error}; expected a Parquet file") from error
        if lacking:
            raise UserError(f"parquet: {str(path)!r} has no column {', '.join(sorted(lacking))}; expected tulu-3's")
    rows = sum(pq.read_metadata(path).num_rows for path in parquet_files(Path(parquet)))
    if rows <= TEST_ROWS:
        raise UserError(f"parquet: {parquet!r} has {rows} rows; expected more than the {TEST_ROWS} of the test split")
    builder = Tulu3SftMixture(data_dir=data_dir or None, file_format="array_record")
    if builder.is_prepared():
        raise UserError(f"data_dir: {str(builder.data_path)!r} is there already; remove it to make it again")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=parquet))
    return str(builder.data_path)
