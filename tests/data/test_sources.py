"""Files and folders of rows: every format gives the same rows, and what cannot be read is refused in one line."""

import dataclasses
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.example import BadRow
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.errors import UserError
from tests.data.common import KINDS, write
from tests.fixtures_run import examples

CONFIG = DataConfig()
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
chats = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)
ROWS = [dataclasses.asdict(e) | {"history": None} for e in examples(7)]


def read(name: str, config: DataConfig = CONFIG) -> list[Example]:
    source = open_rows(name, config)
    return [parse(source[i], config) for i in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=7))
def test_every_format_gives_the_texts_that_were_written_in_order(kind, rows):
    with tempfile.TemporaryDirectory() as folder:
        name = write(kind, Path(folder), [{"question": q, "id": 3, "answer": a} for q, a in rows])
        assert read(name) == [Example(q, a) for q, a in rows]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(rows=st.lists(chats, min_size=1, max_size=4))
def test_every_format_gives_the_turns_of_chats(kind, rows):
    turns = [
        [t for q, a in pairs for t in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
        for pairs in rows
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = read(write(kind, Path(folder), [{"messages": chat} for chat in turns]))
    for example, chat in zip(found, turns, strict=True):
        *history, question, answer = [(turn["role"], turn["content"]) for turn in chat]
        assert example == Example(question[1], answer[1], None, tuple(history))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_in_any_order_and_in_another_process(kind, tmp_path):
    source = open_rows(write(kind, tmp_path, ROWS), CONFIG)
    in_order = [source[i] for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))  # with the files of `source` open
    order = np.random.default_rng(0).integers(0, len(source), 50)
    assert [copy[i] for i in order] == [source[i] for i in order] == [in_order[i] for i in order]
    assert len(pickle.dumps(source)) < 4000  # what is sent is the place, not the rows


@pytest.mark.parametrize("kind", KINDS)
def test_all_columns_are_listed_though_only_some_are_read(kind, tmp_path):
    source = open_rows(write(kind, tmp_path, [row | {"big": "x"} for row in ROWS]), CONFIG)
    assert {"question", "answer", "trace", "big"} <= set(source.columns())
    if kind.startswith(("parquet", "arrow")):
        assert set(source[0]) == {"question", "answer", "trace"}


def test_a_row_of_a_jsonl_file_is_called_by_its_line_and_others_by_their_index(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\r\n  \n{"a": 2}')
    source = open_rows(str(tmp_path / "a.jsonl"), CONFIG)
    assert [source.where(i) for i in range(len(source))] == ["row 1", "row 4"]
    assert open_rows(write("json", tmp_path, ROWS), CONFIG).where(2) == "row 2 (from 0)"


def test_one_bad_line_leaves_the_others_readable(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}\n{"a"\n' + b"[" * 100000 + b"\n[2]\n")
    source, found = open_rows(str(tmp_path / "a.jsonl"), CONFIG), []
    for i in range(len(source)):
        try:
            found.append(source[i])
        except BadRow as problem:
            found.append(problem.reason)
    assert found == [{"a": 1}, "is not UTF-8", "is not JSON", "is not JSON", [2]]


def test_text_that_is_not_utf8_in_a_column_spoils_its_row_only(tmp_path):
    array = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"question": array, "answer": ["1", "2"]}), tmp_path / "a.parquet")
    source = open_rows(str(tmp_path / "a.parquet"), CONFIG)
    assert source[0] == {"question": "ok", "answer": "1"}
    with pytest.raises(BadRow, match="is not UTF-8 text"):
        source[1]


def test_parquet_files_are_decoded_once_and_never_for_a_row(tmp_path, monkeypatch):
    """Before, a row cost its whole row group: 32 shuffled rows of 8 files of 30,000 took seconds."""
    source = open_rows(write("parquet folder", tmp_path, ROWS), CONFIG)
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert [source[i]["question"] for i in (6, 0, 3)] == [ROWS[i]["question"] for i in (6, 0, 3)]


def test_temporary_copy_of_parquet_files_goes_with_its_rows_and_with_its_process(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    name = write("parquet folder", tmp_path, ROWS)
    source = open_rows(name, CONFIG)
    copy = pickle.loads(pickle.dumps(source))
    assert len(list((tmp_path / "tmp").glob("*/*.arrow"))) == 3
    del copy  # a worker's end leaves the others their rows
    assert source[6]["question"] == ROWS[6]["question"]
    del source
    assert not list((tmp_path / "tmp").iterdir())
    code = (
        "import sys; from nrt_jax.data.sources import *; s = open_rows(sys.argv[1], DataConfig()); s[0]; print(1 / 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=False)
    assert "ZeroDivisionError" in ended.stderr and not list((tmp_path / "tmp").iterdir())


def test_files_of_a_parquet_folder_may_differ_in_columns_and_types(tmp_path):
    tables = [
        pa.table({"question": ["a", "b"], "answer": ["1", "2"], "trace": pa.nulls(2)}),
        pa.table({"answer": pa.array(["3"], pa.large_string()), "extra": [1], "question": ["c"], "trace": ["z"]}),
        pa.table({"extra": [1, 2]}),
        pa.table({"question": pa.array([], pa.string())}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    source = open_rows(str(tmp_path), CONFIG)
    none = {"trace": None}
    assert [source[i] for i in range(len(source))] == [
        {"question": "a", "answer": "1"} | none,
        {"question": "b", "answer": "2"} | none,
        {"question": "c", "answer": "3", "trace": "z"},
        {},
        {},
    ]
    assert source.columns() == ["question", "answer", "trace", "extra"]


def test_parquet_columns_of_repeated_texts_are_read(tmp_path):
    """As pandas writes categories: each row group may have a dictionary of its own."""
    texts = [f"q{i // 2}" for i in range(9)]
    table = pa.table({"question": pa.array(texts).dictionary_encode(), "answer": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = open_rows(str(tmp_path / "a.parquet"), CONFIG)
    assert [source[i] for i in range(9)] == [{"question": text, "answer": text} for text in texts]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_room_for_the_copy_of_a_parquet_file_is_said(tmp_path, monkeypatch):
    name = write("parquet", tmp_path, ROWS)
    full = pa.OSFile
    monkeypatch.setattr(pa, "OSFile", lambda _, mode: full("/dev/full", mode))
    with pytest.raises(UserError, match=r"data: no room in '.*' for an uncompressed copy of '.*rows\.parquet'.*TMPDIR"):
        open_rows(name, CONFIG)


def test_parquet_file_with_damaged_rows_is_named(tmp_path):
    path = Path(write("parquet", tmp_path, ROWS))
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(UserError, match=r"cannot read '.*rows\.parquet': .*; expected a Parquet file") as error:
        open_rows(str(path), CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": 1}', "it holds no list; expected a list of objects, or an object with one list"),
        ('{"a": [], "b": [1]}', r"2 of its values are lists \(a, b\)"),
        ('"text"', "is a str"),
        ('[{"a": 1}, ', "is not JSON"),
        ('[{"a": 1} {"a": 2}]', "is not JSON"),
        ('{"a": [{"b": 1}]', "is not JSON"),
        ('{"a": 1}\n{"a": 2}', "is not JSON .Extra data.*is a .jsonl file"),
        ("[1]\n[2]", "is not JSON .Extra data.*is a .jsonl file"),
        ("[" * 100000, "is not JSON"),
    ],
)
def test_json_file_that_is_no_list_of_rows_is_refused(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=f"data: .*a.json'.*{problem}") as error:
        open_rows(str(tmp_path / "a.json"), CONFIG)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".txt"])
def test_missing_file_is_named(tmp_path, suffix):
    with pytest.raises(UserError, match=rf"cannot read .*no\{suffix}': No such file or directory; expected a file"):
        open_rows(str(tmp_path / f"no{suffix}"), CONFIG)


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_text("question,answer")
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet': .*; expected a Parquet file"):
        open_rows(str(tmp_path / "a.parquet"), CONFIG)


def test_splits_of_an_arrow_folder_are_listed(tmp_path):
    write("arrow split", tmp_path, ROWS)
    write("arrow", tmp_path, ROWS)
    folder = str(tmp_path / "splits")
    for name, problem in ((folder, "needs a split"), (f"{folder}:dev", "no such split")):
        with pytest.raises(UserError, match=f"{problem}; expected {folder}:test or {folder}:train"):
            open_rows(name, CONFIG)
    with pytest.raises(UserError, match="no such split, since it has none"):
        open_rows(str(tmp_path / "arrow:train"), CONFIG)
    with pytest.raises(UserError, match="is a folder without rows"):
        open_rows(str(tmp_path), CONFIG)


def test_name_that_is_neither_task_nor_file_lists_the_tasks():
    with pytest.raises(UserError, match=r"data: 'clok' is no task \(.*clock.*\) and no file"):
        open_rows("clok", CONFIG)


def test_tfds_that_is_not_there_is_refused_in_one_line(tmp_path):
    for name, found in (
        ("tfds:no_such_set", ".*array_record"),
        ("tfds:mnist:train", ".*array_record"),
        ("tfds:", "names no local data set"),
    ):
        with pytest.raises(UserError, match=f"data: cannot read '{name}': {found}") as error:
            open_rows(name, DataConfig(tfds_dir=str(tmp_path)))
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
