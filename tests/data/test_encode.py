"""Segments are tokenized each on its own; the limits leave samples out and never cut an answer."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoder, TextConfig, bucket, pad
from nrt_jax.data.formats import TraceFormat
from nrt_jax.errors import UserError
from tests.fixtures_run import CHAT_TEMPLATE, examples, tokenizer

BOS, EOS, DELIMITER, OPENING = (
    tokenizer().convert_tokens_to_ids(t) for t in ("<bos>", "<eos>", "<|response_start|>", "<think>")
)
RELEASE = TraceFormat(opening=(), delimiter=DELIMITER, eos=EOS, stop_ids=(DELIMITER, EOS))
TAGS = TraceFormat(opening=(OPENING,), delimiter=DELIMITER, eos=EOS, stop_ids=(DELIMITER, EOS))


PLAIN = tokenizer()


def encoder(trace_format=RELEASE, tokenizer=PLAIN, **config) -> Encoder:
    return Encoder(tokenizer, trace_format, TextConfig(**config))


def chat_tokenizer(template: str = CHAT_TEMPLATE):
    chat = copy.deepcopy(tokenizer())
    chat.chat_template = template
    return chat


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


def test_ids_of_segments_are_joined_where_joined_text_would_merge_across_the_boundary():
    encoded = encoder(template="{question}").encode(Example("6 plus 6 = 1", "2", "6"))
    assert encoded.prompt == (BOS, *ids("6 plus 6 = 1"))
    assert encoded.answer == (*ids("2"), EOS)
    assert encoded.trace == tuple(ids("6"))
    joined = ids("6 plus 6 = 12")
    assert len(joined) < len(ids("6 plus 6 = 1")) + len(ids("2"))  # one token " 12" swallows "2"
    assert tokenizer().decode([*encoded.prompt[1:], *encoded.answer[:-1]]) == tokenizer().decode(joined)


def test_reference_tokens_do_not_depend_on_question_trace_or_format():
    alone = encoder().encode(Example("?", "It is 12.")).answer
    for trace_format in (RELEASE, TAGS):
        for question in ("What is 9 plus 3?", "1", ""):
            for trace in (None, "", "1", "It is"):
                assert encoder(trace_format).encode(Example(question, "It is 12.", trace)).answer == alone


def test_plain_prompt_is_bos_once_then_question_and_newline():
    assert encoder().prompt("What is 1 plus 3?") == (BOS, *ids("What is 1 plus 3?\n"))
    assert encoder(template="<bos>Q: {question} A:").prompt("1") == (BOS, *ids("Q: 1 A:"))


def test_no_bos_is_put_before_the_prompt_where_the_tokenizer_has_none():
    without = copy.deepcopy(tokenizer())
    without.bos_token = None
    assert encoder(tokenizer=without).prompt("1") == tuple(ids("1\n"))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHAT_TEMPLATE.replace("{{ bos_token }}", "")])
def test_chat_template_is_used_where_there_is_one_and_bos_stands_once(template):
    prompt = encoder(tokenizer=chat_tokenizer(template)).prompt("What is 1 plus 3?")
    assert prompt == (BOS, *ids("[user] What is 1 plus 3?\n[assistant] "))


def test_configured_template_goes_before_the_chat_template():
    assert encoder(tokenizer=chat_tokenizer(), template="{question}!").prompt("1") == (BOS, *ids("1!"))


def test_braces_in_questions_and_templates_are_left_alone():
    assert encoder(template="{x} {question}").prompt("{y} {question}") == (BOS, *ids("{x} {y} {question}"))


def test_opening_tag_ends_the_prompt_with_any_template():
    for settings in ({}, {"template": "{question}"}, {"tokenizer": chat_tokenizer()}):
        assert encoder(TAGS, **settings).prompt("1") == (*encoder(**settings).prompt("1"), OPENING)


def test_template_without_a_place_for_the_question_is_refused():
    with pytest.raises(UserError, match=r"text\.template: 'Answer!' has no \{question\}; expected e\.g\. '"):
        encoder(template="Answer!")


def test_limits_count_bos_opening_tag_delimiter_and_eos():
    exact = encoder(TAGS).encode(Example("What is 1 plus 3?", "It is 4.", "1 + 3 = 4"))
    limits = {"max_prompt_length": len(exact.prompt), "max_answer_length": len(exact.answer)}
    assert encoder(TAGS, **limits).over_limit(exact, None) is None
    for name in limits:
        assert encoder(TAGS, **limits | {name: limits[name] - 1}).over_limit(exact, None) == f"longer than text.{name}"
    length = sum(limits.values()) + 1
    assert encoder(TAGS, **limits).over_limit(exact, length) is None
    assert "rollout.max_length" in encoder(TAGS, **limits).over_limit(exact, length - 1)


def test_batch_holds_each_row_and_nothing_else():
    rows = [encoder(TAGS).encode(e) for e in (*examples(2), Example("1", "2"))]
    batch = encoder(TAGS).batch(rows)
    for part, field in ((batch.prompts, "prompt"), (batch.reference, "answer")):
        for tokens, mask, row in zip(part.tokens, part.mask, rows, strict=True):
            num = len(getattr(row, field))
            assert tuple(tokens[:num]) == getattr(row, field)
            assert not tokens[num:].any()
            np.testing.assert_array_equal(mask, np.arange(len(tokens)) < num)
        assert part.tokens.dtype == np.int32 and part.mask.dtype == bool
    assert batch.reference.delimiter == DELIMITER and batch.reference.delimiter.dtype == np.int32


@given(st.lists(st.lists(st.integers(1, 99), max_size=40), max_size=5))
def test_padding_keeps_every_id_and_adds_as_little_as_buckets_allow(rows):
    tokens, mask = pad(rows)
    assert [t[m].tolist() for t, m in zip(tokens, mask, strict=True)] == rows
    assert tokens.shape == (len(rows), bucket(max(map(len, rows), default=0)))


def test_buckets_are_few_and_waste_at_most_a_third():
    assert [b for b in sorted({bucket(n) for n in range(129)}) if b >= 32] == [32, 40, 48, 56, 64, 96, 128]
    for n in range(1, 5000):
        size = bucket(n)
        assert size >= n and bucket(size) == size
        assert size - n < max(4, size / 3)


def test_text_that_spells_a_special_token_stays_text():
    encoded = encoder().encode(Example("Is <eos> a word?", "No <eos> <|response_start|>", "<|response_start|>"))
    assert EOS not in encoded.prompt and DELIMITER not in encoded.trace
    assert encoded.answer.count(EOS) == 1 and DELIMITER not in encoded.answer
    assert EOS in encoder(template="<eos>{question}").prompt("Why?")  # a template's own tokens are meant
    chatty = encoder(tokenizer=chat_tokenizer()).prompt("Is <eos> a word?")
    assert EOS not in chatty and chatty.count(BOS) == 1
