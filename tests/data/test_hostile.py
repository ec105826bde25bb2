"""Rows, files and chat templates that were made to break a run: each is refused, or left out and counted."""

import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import jsonl
from nrt_jax.data import files
from nrt_jax.data.example import BadRow
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.errors import UserError
from tests.data.common import encoder
from tests.hostile import Target
from tests.hostile_readers import READERS, ROWS

CONFIG = DataConfig()
DATA = [reader for reader in READERS if reader.name.startswith(("data:", "chat", "JSONL"))]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    base = tmp_path_factory.mktemp("targets")
    return [Target(reader, base / str(i)) for i, reader in enumerate(DATA)]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_a_mutated_file_is_refused_or_its_rows_are_good_or_bad(targets, case):
    """A slice of tests/soak/fuzz.py."""
    for target in targets:
        target.accepts(case)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "is not JSON"),
        (b'{"question": ' + b"9" * 5000 + b', "answer": "b"}', "is not JSON"),
        (b'{"question": 1e999999, "answer": "b"}', "question is not text"),
        (b'{"question": NaN, "answer": "b"}', "question is not text"),
        (b'{"question": "\\ud800", "answer": "b"}', "question is not UTF-8"),
        (b'{"question": "a\0", "answer": "b"}', "is not JSON"),
        (b'{"question": "\xed\xa0\x80", "answer": "b"}', "is not UTF-8"),
        (b'{"question": [[[]]], "answer": "b"}', "question is not text"),
    ],
    ids=range(8),
)
def test_a_hostile_row_is_left_out_and_the_others_stay(tmp_path, line, reason):
    good = json.dumps(ROWS[0]).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good, line, good]))
    source = open_rows(str(tmp_path / "rows.jsonl"), CONFIG)
    with pytest.raises(BadRow) as problem:
        parse(source[1], CONFIG)
    assert problem.value.reason == reason
    assert parse(source[0], CONFIG) == parse(source[2], CONFIG)
    with pytest.raises(UserError, match=rf"rows\.jsonl', line 2: {'is not JSON' if 'JSON' in reason else ''}"):
        [row.text("question") for row in jsonl.read(str(tmp_path / "rows.jsonl"), field="input", adds=())]


@pytest.mark.parametrize("roles", [["user"], 3, None])
def test_turns_as_two_lists_that_do_not_match_are_a_bad_row(roles):
    with pytest.raises(BadRow, match="expected two lists of the same length"):
        parse({"messages": {"role": roles, "content": ["a", "b"]}}, CONFIG)


def test_nul_and_escapes_are_text_like_any_other(tmp_path):
    row = {"question": "a\0b\x1b[2J\ufeff\u202e", "answer": "\0"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    example = parse(open_rows(str(tmp_path / "rows.jsonl"), CONFIG)[0], CONFIG)
    assert (example.question, example.answer) == (row["question"], row["answer"])
    made = encoder()
    assert made.tokenizer.decode(made.encode(example).answer[:-1]) == "\0"


def test_a_row_of_any_size_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1000)
    rows = [json.dumps({"question": "x" * size, "answer": "y"}) for size in (900, 2000, 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    source = open_rows(str(tmp_path / "rows.jsonl"), CONFIG)
    assert len(parse(source[0], CONFIG).question) == 900 and parse(source[2], CONFIG).question == "xxx"
    with pytest.raises(BadRow, match="expected at most 1,000"):
        source[1]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is no regular file; expected a file or folder of rows"):
        open_rows(str(tmp_path / name), CONFIG)


@pytest.mark.parametrize("name", ["a\0b.jsonl", "a\0b", "\ud800.jsonl", "tfds:huggingface:squad:train"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match=r"^data: "):
        open_rows(name, CONFIG)
    with pytest.raises(UserError, match=r"^input: cannot read"):
        jsonl.read(name, field="input", adds=())


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "", 3, None])
@pytest.mark.parametrize("where", ["state", "dict"])
def test_an_arrow_folder_names_files_of_its_own_only(tmp_path, name, where):
    saved = datasets.Dataset.from_list(ROWS)
    if where == "dict":
        datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
        (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", name]}))
    else:
        saved.save_to_disk(str(tmp_path / "saved"))
        state = json.loads((tmp_path / "saved" / "state.json").read_text())
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match="which is no file of this folder"):
        open_rows(str(tmp_path / "saved") + (":train" if where == "dict" else ""), CONFIG)


def test_offsets_that_lead_out_of_an_arrow_file_are_not_followed(tmp_path):
    offsets = b"".join(i.to_bytes(4, "little", signed=True) for i in (0, 1, 2**31 - 8, 3))
    lying = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(b"abc"))
    good = pa.array(["x", "y", "z"])
    schema = datasets.Dataset.from_list([{"question": "a", "answer": "b"}])
    schema.save_to_disk(str(tmp_path / "saved"))
    table = pa.table({"question": lying, "answer": good})
    (file,) = (tmp_path / "saved").glob("*.arrow")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    source = open_rows(str(tmp_path / "saved"), CONFIG)
    assert parse(source[0], CONFIG).question == "a"
    for i in (1, 2):
        with pytest.raises(BadRow) as problem:
            source[i]
        assert problem.value.reason == "cannot be read"


def test_an_extension_type_of_arrow_is_not_unpickled(tmp_path):
    """The type of CVE-2023-47248: its metadata was unpickled when a file was opened."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return ((tmp_path / "mark").touch, ())

    table = pa.table({"question": ["a"], "answer": ["b"]})
    hostile = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Bomb())}
    field = table.schema.field("question").with_metadata(hostile)
    table = table.cast(pa.schema([field, table.schema.field("answer")]))
    pq.write_table(table, tmp_path / "rows.parquet")
    source = open_rows(str(tmp_path / "rows.parquet"), CONFIG)
    assert parse(source[0], CONFIG).question == "a"
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "reach",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch mark') }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch mark') }}",
        "{{ ('%s' | attr('format'))(''.__class__.__mro__) }}",
        "{{ range(10**9) | list }}",
        "{{ 'a' * 10**15 }}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(tmp_path, reach, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + reach)
    try:
        prompt = encoder(chat_template=str(tmp_path / "chat.jinja"))._template.render(parse(ROWS[0], CONFIG))
    except UserError as error:
        assert "text.chat_template" in str(error)
    else:  # Jinja gives nothing for what it does not let through.
        assert prompt == [(ROWS[0]["question"], True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jinja"]
