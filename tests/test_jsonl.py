"""JSON Lines: what is read can be written and read again, and a file is complete or absent."""

import dataclasses
import errno
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from nrt_jax import jsonl
from nrt_jax.errors import UserError

# Any code point, half surrogates too: what a row's other columns hold is not ours to judge.
text = st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@hypothesis.given(st.lists(st.dictionaries(text, values, max_size=4), min_size=1, max_size=4))
def test_objects_survive_being_written_and_read(tmp_path_factory, objects):
    path = str(tmp_path_factory.mktemp("jsonl") / "rows.jsonl")
    jsonl.write(path, [jsonl.Row(i, "", values) for i, values in enumerate(objects)], field="output")
    rows = jsonl.read(path, field="input", adds=())
    assert [row.values for row in rows] == objects
    assert [row.line for row in rows] == [i + 1 for i in range(len(objects))]
    assert len(pathlib.Path(path).read_text().splitlines()) == len(objects)


def test_byte_order_mark_and_foreign_line_ends_are_read(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n\r\n{"a": 2}')
    rows = jsonl.read(str(tmp_path / "in.jsonl"), field="input", adds=("b",))
    assert [(row.line, row.values) for row in rows] == [(1, {"a": "\u2028"}), (3, {"a": 2})]


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}')
    with pytest.raises(UserError, match=r"in\.jsonl', line 2: is not JSON \('utf-8' codec"):
        jsonl.read(str(tmp_path / "in.jsonl"), field="input", adds=())


def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_text("older\n")
    row = jsonl.Row(1, "", {"a": 1})

    def dumps(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dumps", dumps)
    with pytest.raises(UserError, match=r"output: cannot write .*: No space left on device"):
        jsonl.write(str(path), [row, dataclasses.replace(row, line=2)], field="output")
    assert path.read_text() == "older\n"
    assert list(tmp_path.iterdir()) == [path]


def test_checking_leaves_nothing_and_changes_nothing(tmp_path):
    jsonl.check_writable(str(tmp_path / "new.jsonl"), field="output")
    assert not list(tmp_path.iterdir())
    (tmp_path / "old.jsonl").write_text("older\n")
    jsonl.check_writable(str(tmp_path / "old.jsonl"), field="output")
    assert (tmp_path / "old.jsonl").read_text() == "older\n"
