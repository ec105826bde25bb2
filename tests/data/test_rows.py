"""What makes a row an example, and in which words another one is refused."""

import pytest

from nrt_jax.data import Example
from nrt_jax.data.example import BadRow
from nrt_jax.data.rows import DataConfig, parse

CONFIG = DataConfig()


def turn(role, content):
    return {"role": role, "content": content}


QUESTION, ANSWER = turn("user", "q"), turn("assistant", "a")


def problem(row, config=CONFIG) -> tuple[str, str]:
    with pytest.raises(BadRow) as error:
        parse(row, config)
    return error.value.reason, str(error.value)


def test_columns_may_have_other_names():
    names = {"question_column": "problem", "answer_column": "solution", "trace_column": "working"}
    row = {"problem": "one", "solution": "1", "working": "so", "answer": 3, "trace": "no"}
    assert parse(row, DataConfig(**names)) == Example("one", "1", "so")
    assert parse({"chat": [QUESTION, ANSWER]}, DataConfig(messages_column="chat")) == Example("q", "a")


def test_text_stays_as_it_stands_and_a_trace_may_be_absent():
    assert parse({"question": " one\n", "answer": "1 ", "trace": None}, CONFIG) == Example(" one\n", "1 ", None)
    assert parse({"question": b"\xc3\xa9", "answer": b"1", "trace": b"z"}, CONFIG) == Example("é", "1", "z")


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"question": "two"}, "answer is missing", "answer column 'answer' is missing"),
        ({"answer": "2"}, "question is missing", "question column 'question' is missing"),
        ({"question": "two", "answer": ""}, "answer is empty", "answer column 'answer' is ''"),
        ({"question": "two", "answer": " \n"}, "answer is empty", r"answer column 'answer' is ' \n'"),
        ({"question": "two", "answer": 2}, "answer is not text", "answer column 'answer' is 2"),
        ({"question": "two", "answer": None}, "answer is not text", "answer column 'answer' is None"),
        ({"question": ["two"], "answer": "2"}, "question is not text", "question column 'question' is ['two']"),
        ({"question": "\ud83d", "answer": "2"}, "question is not UTF-8", "is not UTF-8 text"),
        ({"question": b"\xff", "answer": "2"}, "question is not UTF-8", "is not UTF-8 text"),
        (
            {"question": "two", "answer": "2", "trace": 5},
            "trace is not text",
            "trace column 'trace' is 5; expected text or null",
        ),
        ({"question": "two", "answer": "2", "trace": ["a"]}, "trace is not text", "trace column 'trace' is ['a']"),
        ({"question": "two", "answer": "2", "trace": "\udc00"}, "trace is not UTF-8", "is not UTF-8 text"),
        (["two", "2"], "is not an object", "is a list; expected an object"),
        (None, "is not an object", "is a NoneType"),
    ],
)
def test_row_that_is_no_example_is_refused_by_field(row, reason, detail):
    found, text = problem(row)
    assert found == reason and detail in text and "expected" in text and "\n" not in text
    if "column" in detail:
        assert "--dataset." in text


def test_trace_of_a_chat_is_checked_too():
    chat = {"messages": [QUESTION, ANSWER]}
    assert parse(chat | {"trace": "so"}, CONFIG) == Example("q", "a", "so")
    assert problem(chat | {"trace": 5})[0] == "trace is not text"


def test_chat_is_divided_at_its_last_assistant_turn():
    system, again = turn("system", "be brief"), turn("user", "and?")
    later = turn("assistant", "b")
    assert parse({"messages": [QUESTION, ANSWER]}, CONFIG) == Example("q", "a")
    expected = Example("and?", "b", None, (("system", "be brief"), ("user", "q"), ("assistant", "a")))
    for tail in ([], [QUESTION]):  # what follows the answer is no part of the example
        assert parse({"messages": [system, QUESTION, ANSWER, again, later, *tail]}, CONFIG) == expected
    columns = {"role": [b"user", b"assistant"], "content": [b"q", b"a"]}  # as TFDS gives it
    assert parse({"messages": columns}, CONFIG) == Example("q", "a")


def test_question_goes_before_messages():
    both = {"question": "own", "answer": "1", "messages": [QUESTION, ANSWER]}
    assert parse(both, CONFIG) == Example("own", "1")
    assert parse(both | {"question": None}, CONFIG) == Example("q", "a")  # as a table has absent values


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("user: q", "chat is not a list of turns"),
        (["q", "a"], "chat is not a list of turns"),
        ([], "chat has no assistant turn"),
        ([QUESTION], "chat has no assistant turn"),
        ([ANSWER], "chat has no user turn before its last assistant turn"),
        ([turn("system", "s"), ANSWER], "chat has no user turn before its last assistant turn"),
        ([QUESTION, ANSWER, ANSWER], "chat has no user turn before its last assistant turn"),
        ([QUESTION, turn("tool", "x"), ANSWER], "chat has a turn of an unknown role"),
        ([QUESTION, {"role": "assistant"}], "chat has a turn without text"),
        ([turn("user", ["q"]), ANSWER], "chat has a turn without text"),
        ([turn("user", " "), ANSWER], "chat has an empty question or answer"),
        ([QUESTION, turn("assistant", "")], "chat has an empty question or answer"),
        ([QUESTION, turn("assistant", "\udc00")], "chat is not UTF-8"),
    ],
)
def test_chat_that_is_no_example_is_refused(messages, reason):
    found, text = problem({"messages": messages})
    assert found == reason and "'messages'" in text and "\n" not in text
