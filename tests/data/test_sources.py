"""Files of question-answer rows: what is read, what is refused and in which words, and what is held out."""

import json

import pytest

from nrt_jax import tasks
from nrt_jax.data import Example
from nrt_jax.data.sources import DataConfig, load, read_jsonl
from nrt_jax.errors import UserError
from tests.fixtures_run import examples, write_rows

EMPTY_OR_BINARY = [(b"", "is empty"), (b"\n \n", "is empty"), (b'\xff"', "is not UTF-8")]
GOOD = '{"question": "one", "answer": "1"}'


def read(path, content, **config):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_jsonl(str(path), DataConfig(**config))


def test_rows_are_read_in_order_with_their_text_as_it_stands(tmp_path):
    rows = [Example(" one\n", "1 "), Example("zwei\u2028é", "二", "because"), Example("q", "a", None)]
    lines = [json.dumps(vars(row) | {"id": 7}, ensure_ascii=False) for row in rows]
    assert read(tmp_path / "a.jsonl", "\n".join(lines)) == rows
    assert read(tmp_path / "b.jsonl", "\r\n\r\n".join(lines) + "\r\n\n  \n") == rows


def test_columns_may_have_other_names(tmp_path):
    line = '{"problem": "one", "solution": "1", "answer": 3}'
    columns = {"question_column": "problem", "answer_column": "solution"}
    assert read(tmp_path / "a.jsonl", line, **columns) == [Example("one", "1")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"question": "two"}', "answer column 'answer' is missing"),
        ('{"answer": "2"}', "question column 'question' is missing"),
        ('{"question": "two", "answer": ""}', "answer column 'answer' is ''"),
        ('{"question": "two", "answer": " \\n"}', r"answer column 'answer' is ' \\n'"),
        ('{"question": "two", "answer": 2}', "answer column 'answer' is 2"),
        ('{"question": "two", "answer": null}', "answer column 'answer' is None"),
        ('{"question": ["two"], "answer": "2"}', "question column 'question' is .'two'."),
        ('["two", "2"]', "is a list; expected an object"),
        ('{"question": "two", "answer": "2"', "is not JSON"),
        ("two,2", "is not JSON"),
    ],
)
def test_bad_row_is_named_with_its_file_number_and_problem(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError) as error:
        read(path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    message = str(error.value)
    assert message.startswith(f"data: {str(path)!r}, row 3: ")  # as an editor counts
    assert "\n" not in message and "expected" in message
    with pytest.raises(UserError, match=problem):
        read(path, line)


@pytest.mark.parametrize(("content", "problem"), EMPTY_OR_BINARY)
def test_empty_and_undecodable_files_are_refused(tmp_path, content, problem):
    with pytest.raises(UserError, match=f"data: .*rows.jsonl'.*{problem}.*expected"):
        read(tmp_path / "rows.jsonl", content)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*no\.jsonl': No such file or directory"):
        read_jsonl(str(tmp_path / "no.jsonl"), DataConfig())
    with pytest.raises(UserError, match=r"cannot read .*Is a directory"):
        read_jsonl(str(tmp_path), DataConfig())


def test_name_that_is_neither_task_nor_file_lists_the_tasks():
    with pytest.raises(UserError, match=r"data: 'clok' is no task \(.*clock.*\) and no file"):
        load("clok", DataConfig(), num_held_out=1, seed=0)


@pytest.mark.parametrize(
    ("num_rows", "most", "held_out"), [(2, 5, 1), (12, 5, 1), (40, 5, 4), (40, 3, 3), (100, 512, 10)]
)
def test_file_is_divided_into_disjoint_training_and_held_out_rows(tmp_path, num_rows, most, held_out):
    rows = examples(num_rows)
    train, test = load(str(write_rows(tmp_path / "rows.jsonl", rows)), DataConfig(), num_held_out=most, seed=0)
    assert train + test == rows
    assert len(test) == held_out and not set(train) & set(test)


def test_own_held_out_file_leaves_all_rows_for_training(tmp_path):
    rows, others = examples(5), examples(4, start=50)
    config = DataConfig(held_out=str(write_rows(tmp_path / "test.jsonl", others)))
    path = write_rows(tmp_path / "train.jsonl", rows)
    assert load(str(path), config, num_held_out=3, seed=0) == (rows, others[:3])


def test_one_row_cannot_be_divided(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", examples(1))
    with pytest.raises(UserError, match="has 1 row; expected at least 2"):
        load(str(path), DataConfig(), num_held_out=4, seed=0)


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_built_in_task_is_a_function_of_its_seed_with_disjoint_splits(name):
    config = DataConfig(size=200)
    train, test = load(name, config, num_held_out=50, seed=1)
    assert (len(train), len(test)) == (200, 50)
    assert not {e.question for e in train} & {e.question for e in test}
    assert load(name, config, num_held_out=50, seed=1) == (train, test)
    assert load(name, config, num_held_out=50, seed=2)[0] != train


def test_task_takes_no_held_out_file():
    with pytest.raises(UserError, match=r"dataset\.held_out: 'x.jsonl' given with task 'clock'"):
        load("clock", DataConfig(held_out="x.jsonl"), num_held_out=1, seed=0)
