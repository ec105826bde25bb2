"""A run's data: what is held out, what weights do, and that it is read when it is used."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import tasks
from nrt_jax.data import Example
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig
from nrt_jax.errors import UserError
from nrt_jax.rewards import Rules, VerifierConfig
from tests.data.common import KINDS, encoder, write
from tests.fixtures_run import examples, write_rows

ENCODER = encoder()


def load_all(*names, config=DataConfig(), num_held_out=5, seed=0):  # noqa: B008
    opened = open_sources([str(name) for name in names], config, num_held_out=num_held_out, seed=seed)
    return load(opened, ENCODER, config, num_held_out=num_held_out)


def texts(rows) -> list[Example]:
    return [row.example for row in rows]


@pytest.mark.parametrize(
    ("num_rows", "most", "held_out"), [(2, 5, 1), (12, 5, 1), (40, 5, 4), (40, 3, 3), (100, 512, 10)]
)
def test_file_is_divided_into_disjoint_training_and_held_out_rows(tmp_path, num_rows, most, held_out):
    rows = examples(num_rows)
    data = load_all(write_rows(tmp_path / "rows.jsonl", rows), num_held_out=most)
    assert texts(data) + texts(data.held_out) == rows
    assert len(data) == num_rows - held_out and len(data.held_out) == held_out


def test_bad_rows_are_neither_trained_on_nor_held_out(tmp_path):
    rows = examples(40)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    path.write_text(path.read_text().replace('"It is 42."', "7") + "no\n")  # one row, and the last
    data = load_all(path)
    assert texts(data) + texts(data.held_out) == [row for row in rows if row.answer != "It is 42."]
    assert [str(scan).partition("; ")[2] for scan in data.scans] == [
        "left out: 1 answer is not text (first: row 40), 1 is not JSON (first: row 41)"
    ]


@pytest.mark.parametrize("verifier", ["number", "math"])
def test_rows_whose_answer_the_verifier_cannot_read_are_counted_as_bad(tmp_path, verifier):
    if verifier == "math":
        pytest.importorskip("math_verify")
    rows = [dataclasses.replace(e, answer="3/4" if i % 3 else "who knows") for i, e in enumerate(examples(12))]
    opened = open_sources([str(write_rows(tmp_path / "rows.jsonl", rows))], DataConfig(), num_held_out=2, seed=0)
    check = Rules(ENCODER, VerifierConfig(verifier)).problem
    data = load(opened, ENCODER, DataConfig(), num_held_out=2, check=check)
    assert texts(data) + texts(data.held_out) == [row for row in rows if row.answer == "3/4"]
    reason = f"answer is not right to the verifier {verifier!r}"
    assert data.scans[0].left_out == {reason: (4, "row 1")}
    with pytest.raises(UserError, match=r"rows.jsonl', row 1: verifier.name: .*'who knows'"):
        load(opened, ENCODER, DataConfig(bad_rows="stop"), num_held_out=2, check=check)


def test_rows_that_lack_a_trace_are_counted_where_traces_are_learned_from(tmp_path):
    some = [dataclasses.replace(e, trace=(None, "", e.trace)[i % 3]) for i, e in enumerate(examples(9))]
    none = [dataclasses.replace(e, trace=None) for e in examples(5)]
    paths = [write_rows(tmp_path / f"{i}.jsonl", rows) for i, rows in enumerate((examples(8), some, none))]
    paths[2].write_text(paths[2].read_text() + "no\n")
    data = load_all(*paths, config=DataConfig(held_out=str(paths[2])))
    left_out = "left out: 1 is not JSON (first: row 6)"
    lines = [
        f"data {paths[1]}: 9 of 9 rows; 6 without a trace, trained on an empty one",
        f"data {paths[2]}: 5 of 6 rows; {left_out}; 5 without a trace, trained on an empty one",
        f"data {paths[2]}: 5 of 6 rows; {left_out}",  # of the held-out rows, whose traces nothing reads
    ]
    assert data.report(with_trace=True) == lines
    assert data.report(with_trace=False) == [lines[2]] * 2


def test_own_held_out_source_leaves_all_rows_for_training(tmp_path):
    rows, others = examples(5), examples(4, start=50)
    held_out = write("parquet", tmp_path, [{"question": e.question, "answer": e.answer} for e in others])
    data = load_all(write_rows(tmp_path / "train.jsonl", rows), config=DataConfig(held_out=held_out), num_held_out=3)
    assert texts(data) == rows
    assert texts(data.held_out) == [dataclasses.replace(e, trace=None) for e in others[:3]]


def test_held_out_rows_say_which_source_they_are_of(tmp_path):
    parts = {str(tmp_path / f"{i}.jsonl"): examples(num, start=50 * i) for i, num in enumerate((30, 20))}
    data = load_all(*(write_rows(pathlib.Path(path), rows) for path, rows in parts.items()))
    assert len(set(data.held_out_sources)) == 2
    for source, example in zip(data.held_out_sources, texts(data.held_out), strict=True):
        assert example in parts[source]


def test_one_row_cannot_be_divided(tmp_path):
    with pytest.raises(UserError, match="has 1 row; expected at least 2"):
        load_all(write_rows(tmp_path / "rows.jsonl", examples(1)))


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_built_in_task_is_a_function_of_its_seed_with_disjoint_splits(name):
    config = DataConfig(size=200)
    data = load_all(name, config=config, num_held_out=50, seed=1)
    assert (len(data), len(data.held_out)) == (200, 50)
    assert not {e.question for e in texts(data)} & {e.question for e in texts(data.held_out)}
    again, other = (load_all(name, config=config, num_held_out=50, seed=seed) for seed in (1, 2))
    assert texts(again) == texts(data) != texts(other) and again.held_out == data.held_out
    assert data.has_traces and data.longest_answer == max(len(row.answer) for row in [*data, *data.held_out])


def test_task_takes_no_held_out_file():
    with pytest.raises(UserError, match=r"dataset\.held_out: 'x.jsonl' given with task 'clock'"):
        load_all("clock", config=DataConfig(held_out="x.jsonl"))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0, 1.0), (NAN, 1.0), (1.0, NAN), (INF, 1.0)]
)
def test_weights_that_do_not_fit_are_refused(tmp_path, weights):
    names = [write_rows(tmp_path / f"{i}.jsonl", examples(5)) for i in range(2)]
    with pytest.raises(
        UserError, match=r"dataset\.weights: .* for 2 sources; expected one finite number above 0 for each"
    ):
        load_all(*names, config=DataConfig(weights=weights))


def test_sources_share_the_held_out_questions_by_weight(tmp_path):
    names = [write_rows(tmp_path / f"{i}.jsonl", examples(60, start=100 * i)) for i in range(2)]
    data = load_all(*names, config=DataConfig(weights=(3.0, 1.0)), num_held_out=4)
    assert texts(data.held_out) == [*examples(3, start=57), *examples(1, start=159)]
    assert texts(data) == [*examples(57), *examples(59, start=100)]
    drawn = texts(row for _, batch in zip(range(30), data.batches(4, seed=0), strict=False) for row in batch)
    assert sum(e in examples(57) for e in drawn) == 90


def test_a_task_and_a_file_mix(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", examples(50))
    data = load_all("clock", path, config=DataConfig(size=50), num_held_out=4)
    assert len(data) == 50 + 48 and len(data.held_out) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_rows_in_memory_whatever_the_format(tmp_path, kind):
    rows = [{"question": e.question, "answer": e.answer, "trace": e.trace} for e in examples(20)]
    data = load_all(write(kind, tmp_path, rows))
    kept = examples(18)
    drawn = [texts(next(batches)) for batches in [data.batches(6, seed=4)] for _ in range(3)]
    assert sorted(e.question for batch in drawn for e in batch) == sorted(e.question for e in kept)
    reference = load_all(write_rows(tmp_path / "reference.jsonl", examples(20))).batches(6, seed=4)
    assert drawn == [texts(next(reference)) for _ in range(3)]


def test_worker_processes_read_and_tokenize_the_same_batches(tmp_path):
    rows = [{"question": e.question, "answer": e.answer} for e in examples(20)]
    names = [write("parquet", tmp_path, rows), write("jsonl", tmp_path, rows), "clock"]
    config = DataConfig(size=20, weights=(1.0, 2.0, 1.0))
    alone = load_all(*names, config=config).batches(3, seed=1)
    with load_all(*names, config=dataclasses.replace(config, workers=2)).batches(3, seed=1) as ahead:
        assert [next(ahead) for _ in range(5)] == [next(alone) for _ in range(5)]
        restored = load_all(*names, config=config).batches(3, seed=1)
        restored.set_state(ahead.get_state())
        assert next(restored) == next(alone)


FINGERPRINTED = [dataclasses.replace(e, trace=None if i % 2 else e.trace) for i, e in enumerate(examples(12))]


def fingerprint(folder, rows, config=DataConfig(), shard=None):  # noqa: B008
    data = load_all(write_rows(folder / "rows.jsonl", rows), config=config)
    with data.batches(4, seed=0, **shard or {}) as batches:
        return json.loads(json.dumps(batches.get_state()["identity"]))


@given(where=st.integers(0, 10), change=st.sampled_from(["question", "answer", "trace", "swap", "drop", "double"]))
@settings(max_examples=30)
def test_any_change_of_a_training_row_changes_what_a_checkpoint_says_of_the_data(where, change, tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("rows"), list(FINGERPRINTED)
    if change == "swap":
        rows[where], rows[where - 1] = rows[where - 1], rows[where]
    elif change == "drop":
        del rows[where]
    elif change == "double":
        rows.insert(where, rows[where])
    else:
        rows[where] = dataclasses.replace(rows[where], **{change: (getattr(rows[where], change) or "") + " 7"})
    assert fingerprint(folder, rows) != fingerprint(folder, FINGERPRINTED)


def test_what_a_checkpoint_says_of_the_data_depends_on_what_is_trained_on_alone(tmp_path):
    expected = fingerprint(tmp_path, FINGERPRINTED)
    assert fingerprint(tmp_path, FINGERPRINTED, DataConfig(workers=2), {"shard_index": 1, "num_shards": 2}) == expected
    assert fingerprint(tmp_path, [*FINGERPRINTED[:-1], *examples(1, start=70)]) == expected  # the last is held out
    lines = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text("no\n\n" + lines.replace("{", '{"id": 3, '))
    with load_all(tmp_path / "rows.jsonl").batches(4, seed=0) as batches:
        assert batches.get_state()["identity"] == expected
    code = "import pathlib, sys; from tests.data.test_load import *; folder = pathlib.Path(sys.argv[1]); "
    code += "print(fingerprint(folder, FINGERPRINTED)[0])"
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "other")]
    other = subprocess.run(command, capture_output=True, text=True, check=True)  # hashes of str differ from this one's
    assert [other.stdout.strip()] == expected
