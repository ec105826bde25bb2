"""Trace formats: both known ones resolve to single tokens, are added where need be, and split completions."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from nrt_jax.data import formats
from nrt_jax.data.formats import STANDARD_TOKENS, TraceFormat, TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.models import Model
from tests.hf import tiny

EOS = tiny.WORDS.index("</s>")
NUM_WORDS = len(tiny.WORDS)
RELEASE = TraceFormatConfig()
TAGS = TraceFormatConfig(opening="<think>", closing="</think>")


def resolve(config=RELEASE, tokenizer=None, **changes):
    model = Model(dataclasses.replace(tiny.LLAMA, **changes))
    return formats.resolve(config, model, tiny.params(model.config), tokenizer or tiny.tokenizer())


@pytest.mark.parametrize(
    ("tokens", "trace", "answer"),
    [
        ([1, 2, 8, 3, 4, 9, 7], [1, 2], [3, 4]),
        ([8, 3, 9], [], [3]),
        ([1, 8, 9], [1], []),
        ([1, 8], [1], []),
        ([1, 8, 3], [1], [3]),  # out of length before EOS
        ([1, 8, 3, 8, 4, 9], [1], [3, 8, 4]),  # only the first delimiter divides
        ([1, 2, 9], [1, 2], None),
        ([1, 9, 8, 3], [1], None),  # a delimiter after EOS was never read
        ([1, 2], [1, 2], None),
        ([], [], None),
        ([9], [], None),
    ],
)
def test_completion_splits_at_the_first_delimiter_before_eos(tokens, trace, answer):
    trace_format = TraceFormat(opening=(), delimiter=8, eos=9, stop_ids=(8, 9))
    found_trace, found_answer = trace_format.split(np.array(tokens, np.int32))
    assert found_trace.tolist() == trace
    assert answer == (None if found_answer is None else found_answer.tolist())


@pytest.mark.parametrize("vocab_size", [NUM_WORDS, NUM_WORDS + 1, NUM_WORDS + 4])
@pytest.mark.parametrize("config", [RELEASE, TAGS])
def test_standard_tokens_are_added_with_the_embedding_of_eos(config, vocab_size):
    trace_format, model, params, tokenizer = resolve(config, vocab_size=vocab_size)
    before = tiny.params(dataclasses.replace(tiny.LLAMA, vocab_size=vocab_size))
    new = [*trace_format.opening, trace_format.delimiter]
    assert tokenizer.convert_ids_to_tokens(new) == [t for t in (config.opening, config.closing) if t]
    assert new == list(range(NUM_WORDS, NUM_WORDS + len(new)))
    assert model.config.vocab_size == max(vocab_size, NUM_WORDS + len(new)) == len(params["embedding"])
    for name in ("embedding", "head"):
        np.testing.assert_array_equal(params[name][np.array(new)], np.stack([before[name][EOS]] * len(new)))
        np.testing.assert_array_equal(params[name][:NUM_WORDS], before[name][:NUM_WORDS])


def test_tokens_that_the_tokenizer_has_change_nothing():
    _, model, params, tokenizer = resolve(TAGS)
    again = formats.resolve(dataclasses.replace(TAGS, add_tokens="never"), model, params, tokenizer)
    assert again[1] == model and again[3] is tokenizer
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again[2], params))


def test_trace_stops_at_the_delimiter_first_of_all_then_at_eos_and_other_special_tokens():
    trace_format, *_, tokenizer = resolve(TAGS)
    assert trace_format.stop_ids[0] == trace_format.delimiter
    assert trace_format.eos == EOS and EOS in trace_format.stop_ids
    assert set(trace_format.opening) < set(trace_format.stop_ids)
    assert set(tokenizer.all_special_ids) <= set(trace_format.stop_ids)
    assert len(set(trace_format.stop_ids)) == len(trace_format.stop_ids)
    words = {tiny.WORDS.index(word) for word in ("one", "two", "three", "plus", "is")}
    assert not words & set(trace_format.stop_ids)


def test_a_word_of_the_vocabulary_may_be_the_delimiter():
    trace_format, *_ = resolve(TraceFormatConfig(closing="is", add_tokens="never"))
    assert trace_format.delimiter == tiny.WORDS.index("is") == trace_format.stop_ids[0]
    assert trace_format.opening == () and EOS in trace_format.stop_ids


@pytest.mark.parametrize("field", ["opening", "closing"])
def test_unknown_delimiter_is_refused_unless_any_may_be_added(field):
    config = TraceFormatConfig(**{field: "<answer>"})
    problem = rf"trace\.{field}: '<answer>' is missing from the tokenizer.*add-tokens any"
    with pytest.raises(UserError, match=problem):
        resolve(config)
    trace_format, *_, tokenizer = resolve(dataclasses.replace(config, add_tokens="any"))
    found = trace_format.delimiter if field == "closing" else trace_format.opening[0]
    assert found == tokenizer.convert_tokens_to_ids("<answer>")


@pytest.mark.parametrize("token", [*STANDARD_TOKENS, "<answer>"])
def test_never_refuses_any_missing_token(token):
    problem = re.escape(f"trace.closing: {token!r} is missing from the tokenizer")
    with pytest.raises(UserError, match=problem):
        resolve(TraceFormatConfig(closing=token, add_tokens="never"))


def test_empty_delimiter_and_a_tokenizer_without_eos_are_refused():
    with pytest.raises(UserError, match=r"trace\.closing: is empty"):
        resolve(TraceFormatConfig(closing=""))
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no EOS token.*set eos_token"):
        resolve(tokenizer=tokenizer)


def test_eos_cannot_be_the_delimiter():
    with pytest.raises(UserError, match=r"trace\.closing: '</s>' is the EOS token.*expected"):
        resolve(TraceFormatConfig(closing="</s>"))
