"""What the tests of data share: an encoder with a small byte-level tokenizer, and writers of every format."""

import json
import pathlib

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from nrt_jax.data.encode import Encoder, TextConfig
from nrt_jax.data.formats import TraceFormat
from tests.fixtures_run import tokenizer

EOS, DELIMITER = (tokenizer().convert_tokens_to_ids(t) for t in ("<eos>", "<|response_start|>"))
RELEASE = TraceFormat(opening=(), delimiter=DELIMITER, eos=EOS, stop_ids=(DELIMITER, EOS))


def encoder(tokenizer=tokenizer(), trace_format=RELEASE, **config) -> Encoder:  # noqa: B008
    return Encoder(tokenizer, trace_format, TextConfig(**config))


def write(kind: str, folder: pathlib.Path, rows: list[dict]) -> str:
    """Writes rows in a format and returns the name that `--data` takes."""
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl":
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        return str(folder / "rows.jsonl")
    if kind == "json":
        (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        return str(folder / "rows.json")
    if kind == "json object":
        text = json.dumps({"version": {"of": [1]}, "rows": rows, "é": "]"}, ensure_ascii=False)
        (folder / "object.json").write_text("\ufeff" + text, encoding="utf-8")
        return str(folder / "object.json")
    if kind == "parquet":
        pq.write_table(table, folder / "rows.parquet", row_group_size=2)
        return str(folder / "rows.parquet")
    if kind == "parquet folder":
        (folder / "parts").mkdir()
        for i in range(0, len(rows), 3):
            pq.write_table(table.slice(i, 3), folder / "parts" / f"{i:03}.parquet")
        return str(folder / "parts")
    if kind == "arrow":
        datasets.Dataset(table).save_to_disk(folder / "arrow")
        return str(folder / "arrow")
    if kind == "arrow split":
        splits = {"test": datasets.Dataset(table.slice(0, 1)), "train": datasets.Dataset(table)}
        datasets.DatasetDict(splits).save_to_disk(folder / "splits")
        return f"{folder / 'splits'}:train"
    raise ValueError(kind)


KINDS = ("jsonl", "json", "json object", "parquet", "parquet folder", "arrow", "arrow split")
