"""The pass over a source: good rows are kept by number, bad ones are counted by reason or stop the run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.rows import DataConfig
from nrt_jax.data.scan import scan
from nrt_jax.data.sources import TaskRows, open_rows
from nrt_jax.errors import UserError
from tests.data.common import encoder
from tests.fixtures_run import CHAT_TEMPLATE, examples, tokenizer, write_rows

GOOD = '{"question": "one", "answer": "1"}'
BAD = {
    '{"question": "two"}': "answer is missing",
    '{"question": "two", "answer": 2}': "answer is not text",
    '{"question": "two", "answer": "2"': "is not JSON",
    '["two"]': "is not an object",
    json.dumps({"question": "plus " * 30, "answer": "3"}): "longer than text.max_prompt_length",
    json.dumps({"question": "3", "answer": "plus " * 30}): "longer than text.max_answer_length",
}
ENCODER = encoder(max_prompt_length=20, max_answer_length=20)
STOP = DataConfig(bad_rows="stop")


def scan_lines(folder, lines, config=DataConfig(), **options):  # noqa: B008
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return scan(open_rows(str(path), config), ENCODER, config, **options)


@given(lines=st.lists(st.sampled_from([GOOD, GOOD, *BAD]), max_size=40))
def test_every_row_is_kept_or_counted_once_under_its_reason(lines, tmp_path_factory):
    lines = [*lines, GOOD]
    found = scan_lines(tmp_path_factory.mktemp("scan"), lines)
    reasons = [BAD.get(line) for line in lines]
    assert found.rows.indices.tolist() == [i for i, reason in enumerate(reasons) if reason is None]
    assert list(found.rows) == [Example("one", "1")] * len(found.rows)
    assert found.left_out == {
        reason: (reasons.count(reason), f"row {reasons.index(reason) + 1}") for reason in set(reasons) - {None}
    }


def test_table_says_how_many_of_how_many_and_where_each_kind_comes_first(tmp_path):
    lines = [GOOD] * 10
    lines[2], lines[5], lines[7] = '{"question": "two"}', "no", "no"
    path = tmp_path / "rows.jsonl"
    assert str(scan_lines(tmp_path, lines)) == (
        f"data {path}: 7 of 10 rows; left out: 1 answer is missing (first: row 3), 2 is not JSON (first: row 6)"
    )
    assert str(scan_lines(tmp_path, [GOOD])) == f"data {path}: 1 of 1 rows"


@pytest.mark.parametrize(("line", "reason"), BAD.items())
def test_strict_mode_stops_at_the_first_bad_row(tmp_path, line, reason):
    with pytest.raises(UserError) as error:
        scan_lines(tmp_path, [GOOD, "", line, "worse"], STOP)
    message = str(error.value)
    assert message.startswith(f"data: {str(tmp_path / 'rows.jsonl')!r}, row 3: ") and "\n" not in message
    field = reason.split()[0]
    assert f"{field} column" in message or reason.replace(" an object", " JSON") in message or "is a list" in message
    scan_lines(tmp_path, [GOOD, GOOD], STOP)


def test_strict_mode_names_the_first_bad_row_whatever_is_wrong_with_it(tmp_path):
    """Lengths are looked at after the rows are read; a later row that is not JSON must not go before."""
    too_long = next(line for line, reason in BAD.items() if "prompt" in reason)
    with pytest.raises(UserError, match=r"row 2: longer than text\.max_prompt_length"):
        scan_lines(tmp_path, [GOOD, too_long, "no"], STOP)


@pytest.mark.parametrize("config", [DataConfig(question_column="problem"), STOP])
def test_column_that_no_row_has_is_named_with_those_there_are(tmp_path, config):
    rows = ['{"text": "one", "answer": "1"}'] * 3
    with pytest.raises(UserError) as error:
        scan_lines(tmp_path, rows, config)
    assert "question" in str(error.value) and "columns are text, answer" in str(error.value)
    assert "--dataset.question-column" in str(error.value) and "--dataset.messages-column" in str(error.value)


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(UserError, match=r"no example is left of the 2 rows of .*: 2 is not JSON \(first: row 1\)"):
        scan_lines(tmp_path, ["no", "no"])
    with pytest.raises(UserError, match="is empty; expected rows with 'question' and 'answer'"):
        scan_lines(tmp_path, ["", " "])


def test_prompt_and_answer_that_leave_no_room_for_a_trace_count_as_too_long(tmp_path):
    encoded = ENCODER.encode(Example("one", "1"))
    exact = len(encoded.prompt) + 1 + len(encoded.answer)
    assert len(scan_lines(tmp_path, [GOOD], max_length=exact).rows) == 1
    with pytest.raises(UserError, match=r"longer than rollout\.max_length, even without a trace"):
        scan_lines(tmp_path, [GOOD], max_length=exact - 1)


def test_longest_answer_and_traces_are_those_of_good_rows(tmp_path):
    rows = examples(30)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = scan(open_rows(str(path), DataConfig()), ENCODER, DataConfig())
    assert found.longest_answer == max(len(ENCODER.encode(row).answer) for row in rows)
    assert found.num_traces == 30
    assert scan_lines(tmp_path, [GOOD, '{"question": "two", "answer": "2", "trace": ""}']).num_traces == 0


def test_turns_that_the_chat_template_refuses_are_left_out_of_the_others():
    import copy

    strict = copy.deepcopy(tokenizer())
    refusal = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
    )
    strict.chat_template = refusal + CHAT_TEMPLATE
    rows = [*examples(3), Example("1", "2", None, (("system", "be brief"),)), *examples(2)]
    found = scan(TaskRows("sums", rows), encoder(strict), DataConfig())
    assert found.left_out == {"chat template refuses it": (1, "row 3 (from 0)")}
    assert list(found.rows) == [*examples(3), *examples(2)]
    with pytest.raises(UserError, match=r"row 3 \(from 0\): the chat template fails on its turns \(no system\)"):
        scan(TaskRows("sums", rows), encoder(strict), STOP)
