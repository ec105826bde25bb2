"""TFDS without TensorFlow: the release's data set is written and read, row by row what its recipe says."""

import sys

import datasets
import pytest

from launch import cli, prepare
from nrt_jax.data import tulu3
from nrt_jax.data.example import BadRow
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.data.sources import open_rows
from nrt_jax.errors import UserError
from tests.data.common import encoder

NUM_ROWS, KEPT = 1500, 300


def chat(i: int) -> list[dict]:
    turns = [("user", f"What is {i}?"), ("assistant", f"It is {i}.")]
    turns = [("system", "é"), *turns, ("user", "And 1?"), ("assistant", "1")] if i % 3 == 0 else turns
    turns = turns[:1] if i % 50 == 7 else turns  # nobody answers
    return [{"role": role, "content": content} for role, content in turns]


ROWS = [{"id": f"row {i}", "messages": chat(i), "source": f"part {i // 1000}", "more": i} for i in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data set as `launch.prepare` makes it from three Parquet files, its training part cut to 300 rows."""
    published, made = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("tfds")
    (published / "data").mkdir()
    for i in range(3):
        part = datasets.Dataset.from_list(ROWS[i * 500 : (i + 1) * 500])
        part.to_parquet(published / "data" / f"train-{i:05}-of-00003.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tulu3, "TRAIN_ROWS", KEPT)
        args = ["--parquet", str(published), "--data-dir", str(made)]
        cli.run(prepare.main, prepare.PrepareConfig, "prepare", "Makes it.", args=args)
    return made


@pytest.fixture(scope="module")
def splits():
    """The recipe itself, on rows in memory."""
    split = datasets.Dataset.from_list(ROWS).train_test_split(test_size=1024, seed=42)
    return {"train": split["train"].select(range(KEPT)), "test": split["test"]}


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_hold_the_rows_of_the_recipe_in_its_order(prepared, splits, split):
    config = DataConfig(tfds_dir=str(prepared))
    source = open_rows(f"tfds:tulu3_sft_mixture:{split}", config)
    assert len(source) == len(splits[split])
    for i in range(0, len(source), 7):
        *history, answer = [(turn["role"], turn["content"]) for turn in splits[split][i]["messages"]]
        if answer[0] != "assistant":
            with pytest.raises(BadRow, match="has no assistant turn"):
                parse(source[i], config)
            continue
        example = parse(source[i], config)
        assert [*example.history, ("user", example.question)] == history and example.answer == answer[1]


def test_what_is_prepared_is_not_made_again(prepared, tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"tulu3_sft_mixture/1\.0\.0' is there already; remove it to make it again"):
        tulu3.build(str(tmp_path), str(prepared))


def test_splits_are_disjoint(prepared):
    import tensorflow_datasets as tfds

    ids = [
        {row["id"] for row in tfds.data_source("tulu3_sft_mixture", split=split, data_dir=prepared, download=False)}
        for split in ("train", "test")
    ]
    assert [len(part) for part in ids] == [KEPT, 1024] and not ids[0] & ids[1]


def test_no_tensorflow_is_imported_to_write_or_read(prepared):
    open_rows("tfds:tulu3_sft_mixture", DataConfig(tfds_dir=str(prepared)))[0]
    assert "tensorflow" not in sys.modules


def test_a_run_trains_and_is_evaluated_on_named_splits(prepared):
    config = DataConfig(tfds_dir=str(prepared), held_out="tfds:tulu3_sft_mixture:test")
    opened = open_sources(["tfds:tulu3_sft_mixture:train"], config, num_held_out=9, seed=0)
    data = load(opened, encoder(), config, num_held_out=9)
    assert len(data.held_out) == 9 and len(data) + sum(n for n, _ in data.scans[0].left_out.values()) == KEPT
    assert list(data.scans[0].left_out) == ["chat has no assistant turn"]


@pytest.mark.parametrize(
    ("name", "problem"), [("tfds:tulu3_sft_mixture:dev", "Unknown split 'dev'"), ("tfds:tulu4", "tulu4 not found")]
)
def test_what_is_not_there_is_named(prepared, name, problem):
    with pytest.raises(UserError, match=f"data: cannot read '{name}': .*{problem}.*--dataset.tfds-dir"):
        open_rows(name, DataConfig(tfds_dir=str(prepared)))


def test_a_version_is_not_taken_for_a_split(prepared):
    config = DataConfig(tfds_dir=str(prepared))
    assert len(open_rows("tfds:tulu3_sft_mixture:1.0.0", config)) == KEPT
    assert len(open_rows("tfds:tulu3_sft_mixture:1.0.0:test", config)) == 1024


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (None, "holds no .parquet files"),
        ([{"id": "1", "text": "x"}], "has no column messages, source"),
        (ROWS[:1024], "has 1024 rows; expected more than the 1024 of the test split"),
    ],
)
def test_folder_that_is_not_tulu3_is_refused_before_anything_is_written(tmp_path, rows, problem):
    (tmp_path / "in").mkdir()
    if rows:
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in" / "a.parquet")
    with pytest.raises(UserError, match=f"parquet: .*{problem}"):
        tulu3.build(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_file_whose_rows_are_damaged_is_one_line_and_nothing_stays(tmp_path):
    path = tmp_path / "in" / "rows.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996  # The footer is whole, the first pages are not.
    path.write_bytes(data)
    problem = r"parquet: cannot read .*rows\.parquet.*expected whole files, copy them again"
    with pytest.raises(UserError, match=problem):
        tulu3.build(str(path.parent), str(tmp_path / "out"))
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
