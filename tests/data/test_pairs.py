"""Rows with a chosen and a rejected completion: text and chats, their token ids, and what is refused."""

import pytest

from nrt_jax.data.example import BadRow, Example
from nrt_jax.data.formats import TraceFormat
from nrt_jax.data.load import load, open_sources
from nrt_jax.data.rows import DataConfig, parse
from nrt_jax.training.learner import from_pairs
from tests.data.common import DELIMITER, EOS, KINDS, encoder, tokenizer, write

PAIRS = DataConfig(pairs=True)
SAYS = "<|response_start|>"
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
SYSTEM = {"role": "system", "content": "be brief"}
PLAIN = Example("q", "good", pair=("good", "bad"))
BRIEF = Example("q", "good", history=(("system", "be brief"),), pair=("good", "bad"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
        ({"prompt": "q", "chosen": b"good", "rejected": "bad"}, PLAIN),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, BRIEF),
        ({"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}, BRIEF),
        (
            {"prompt": [USER], "chosen": {"role": ["assistant"], "content": ["good"]}, "rejected": "bad"},
            PLAIN,
        ),
        (
            {"question": "q", "answer": "7", "chosen": "good", "rejected": "bad"},
            Example("q", "7", pair=("good", "bad")),
        ),
        ({"question": "q", "answer": "7", "chosen": None}, Example("q", "7")),
    ],
)
def test_a_pair_is_text_or_chats_with_or_without_the_prompt(row, expected):
    assert parse(row, PAIRS) == expected


def test_completions_are_not_looked_at_unless_pairs_are_asked_for():
    row = {"question": "q", "answer": "7", "chosen": "good", "rejected": "good"}
    assert parse(row, DataConfig()) == Example("q", "7")
    assert set(PAIRS.columns) - set(DataConfig().columns) == {"prompt", "chosen", "rejected"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "chosen": "good"}, "rejected is missing"),
        ({"question": "q", "answer": "7", "rejected": "bad"}, "chosen is missing"),
        ({"question": "q", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
        ({"chosen": "good", "rejected": "bad"}, "question is missing"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "chosen and rejected have different prompts"),
        ({"question": "q", "chosen": "good", "rejected": 7}, "chat is not a list of turns"),
        ({"question": "q", "chosen": "good", "rejected": []}, "chat has no assistant turn"),
        ({"question": "q", "chosen": "good", "rejected": " "}, "chat has an empty question or answer"),
        ({"prompt": 7, "chosen": "good", "rejected": "bad"}, "chat is not a list of turns"),
        ({"question": "q"}, "answer is missing"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(row, reason):
    with pytest.raises(BadRow) as found:
        parse(row, PAIRS)
    assert found.value.reason == reason and "\n" not in str(found.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_pairs(kind, tmp_path):
    rows = [{"prompt": f"{i} plus 3", "chosen": f"{i + 3}", "rejected": f"{i}"} for i in range(10, 14)]
    name = write(kind, tmp_path, rows)
    data = load(open_sources([name], PAIRS, num_held_out=1, seed=0), encoder(), PAIRS, num_held_out=1)
    assert data.num_without_pair == 0
    assert [row.example.pair for row in data] == [(row["chosen"], row["rejected"]) for row in rows[:3]]


def test_two_rows_that_differ_in_the_rejected_completion_alone_have_two_hashes(tmp_path):
    rows = [{"prompt": "7", "chosen": "3", "rejected": text} for text in ("4", "5", "5", "6")]
    (part,) = load(
        open_sources([write("jsonl", tmp_path, rows)], PAIRS, num_held_out=1, seed=0), encoder(), PAIRS, num_held_out=1
    ).parts
    assert part.hashes[0] != part.hashes[1] == part.hashes[2]


def ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False))


def test_a_completion_ends_with_eos_and_its_first_delimiter_is_one_token():
    row = Example("q", "x", pair=(f"7 + 3{SAYS}It is 10.{SAYS}", "It is <eos>."))
    chosen, rejected = encoder().encode(row).pair
    assert chosen[: len(ids("7 + 3")) + 1] == (*ids("7 + 3"), DELIMITER)
    assert chosen.count(DELIMITER) == 1 and chosen.count(EOS) == 1 and chosen[-1] == EOS
    assert DELIMITER not in rejected and rejected.index(EOS) == len(rejected) - 1
    assert tokenizer().decode(rejected[:-1]) == "It is <eos>."


def test_without_an_answer_of_its_own_a_row_has_that_of_the_chosen_completion():
    pair = (f"7 + 3{SAYS}It is 10.", "It is 9.")
    row = encoder().encode(Example("q", pair[0], pair=pair))
    assert (row.example.answer, row.example.trace) == ("It is 10.", "7 + 3")
    assert row.pair[0] == (*row.trace, DELIMITER, *row.answer)
    assert encoder().encode(Example("q", "10", pair=pair)).answer == (*ids("10"), EOS)
    plain = encoder().encode(Example("q", "It is 10.", pair=("It is 10.", "It is 9.")))
    assert plain.trace is None and plain.answer == plain.pair[0]


def test_an_opening_tag_that_ends_the_prompt_is_not_repeated():
    opening = tokenizer().convert_tokens_to_ids("<think>")
    tags = TraceFormat(opening=(opening,), delimiter=DELIMITER, eos=EOS, stop_ids=(DELIMITER, EOS))
    pair = (f"<think>7 + 3{SAYS}10", f"7 + 3{SAYS}10")
    row = encoder(trace_format=tags).encode(Example("q", "10", pair=pair))
    assert row.pair[0] == row.pair[1] and row.prompt[-1] == opening


def test_a_batch_has_the_chosen_completion_first_and_traces_that_are_cut_to_fit():
    row = encoder().encode(Example("q", "x", pair=(f"{'1 ' * 50}{SAYS}10", "It is 9.")))
    answer = row.pair[0][row.pair[0].index(DELIMITER) :]
    batch = from_pairs(encoder(), [row], max_length=20)
    found = [
        tuple(tokens[mask].tolist()) for tokens, mask in zip(batch.tokens[0], batch.masks.reference[0], strict=True)
    ]
    assert found[0] == (*row.pair[0][: 20 - len(row.prompt) - len(answer)], *answer) and found[1] == row.pair[1]
    assert len(row.prompt) + len(found[0]) == 20
    assert (batch.tokens[..., 0] == row.prompt[-1]).all() and not batch.masks.reference[..., 0].any()


def test_completions_whose_answers_are_too_long_are_left_out():
    short = encoder(max_answer_length=6)
    for pair, limit in (
        ((f"{'1 ' * 50}{SAYS}10", "9"), None),
        (("10", "1 " * 50), "longer than text.max_answer_length"),
        (("10", f"1{SAYS}{'1 ' * 50}"), "longer than text.max_answer_length"),
    ):
        assert short.over_limit(short.encode(Example("q", "10", pair=pair)), None) == limit
    row = encoder().encode(Example("q", "10", pair=("10", "1 " * 50)))
    assert encoder().over_limit(row, 20) == "longer than rollout.max_length, even without a trace"
