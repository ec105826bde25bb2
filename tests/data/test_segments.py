"""Segments have the ids that transformers would give them in place, and decode to their text, in every layout."""

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.formats import TraceFormat
from tests.data.common import encoder
from tests.data.sentencepiece import LAYOUTS, of_layout
from tests.fixtures_run import examples

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
words = st.lists(st.sampled_from(["What", "is", "12", "plus", "3", "é", "x", "?", "\n", "It"]), min_size=1, max_size=8)
texts = words.map(" ".join)


def encoder_of(layout: str, opening: bool = False, template: str = "", **config):
    built = copy.deepcopy(of_layout(layout))
    built.chat_template = template or None
    eos, delimiter = (built.convert_tokens_to_ids(t) for t in ("<eos>", "<|response_start|>"))
    # Any special token serves as an opening tag.
    trace_format = TraceFormat((eos,) if opening else (), delimiter, eos, (delimiter, eos))
    return encoder(built, trace_format, **config)


@layouts
@given(texts)
def test_answer_has_the_ids_of_a_text_after_the_delimiter(layout, answer):
    made = encoder_of(layout)
    joined = made.tokenizer.encode(f"What?\n<|response_start|>{answer}<eos>", add_special_tokens=False)
    expected = joined[joined.index(made.format.delimiter) + 1 :]
    assert list(made.encode(Example("What?", answer)).answer) == expected


@layouts
@given(trace=texts)
def test_trace_has_the_ids_of_a_text_after_the_opening_tag(layout, trace):
    made = encoder_of(layout, opening=True)
    joined = made.tokenizer.encode(f"What?\n<eos>{trace}", add_special_tokens=False)
    assert list(made.encode(Example("What?", "1", trace)).trace) == joined[joined.index(made.format.eos) + 1 :]


@layouts
def test_trace_without_an_opening_tag_goes_on_from_the_prompt(layout):
    """The prompt ends in a line break, over which this vocabulary does not merge: joined text has the same ids."""
    for example in examples(5):
        made = encoder_of(layout)
        encoded = made.encode(example)
        joined = made.tokenizer.encode(f"{example.question}\n{example.trace}", add_special_tokens=False)
        assert [*encoded.prompt[1:], *encoded.trace] == joined
        assert made.tokenizer.decode([*encoded.prompt[1:], *encoded.trace]) == f"{example.question}\n{example.trace}"


@layouts
@given(texts)
def test_answer_decodes_to_its_text(layout, answer):
    made = encoder_of(layout)
    assert made.tokenizer.decode(made.encode(Example("What?", answer)).answer[:-1]) == answer


@layouts
@given(st.lists(texts, min_size=1, max_size=4))
def test_prompts_of_plain_text_are_those_of_the_tokenizer(layout, turns):
    made = encoder_of(layout)
    history = tuple(("user", turn) for turn in turns[:-1])
    plain = made.tokenizer.encode("".join(turn + "\n" for turn in turns), add_special_tokens=False)
    assert list(made.encode(Example(turns[-1], "1", None, history)).prompt) == [made.tokenizer.bos_token_id, *plain]


@layouts
@given(st.lists(texts, min_size=1, max_size=2))
def test_prompts_of_a_chat_template_are_those_of_apply_chat_template(layout, turns):
    made = encoder_of(layout, template=CHAT)
    messages = [m for turn in turns for m in ({"role": "user", "content": turn}, {"role": "assistant", "content": "x"})]
    messages = messages[:-1]
    history = tuple((m["role"], m["content"]) for m in messages[:-1])
    expected = made.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(made.encode(Example(turns[-1], "1", None, history)).prompt) == expected
    assert expected.count(made.tokenizer.bos_token_id) == 1


@layouts
@given(st.lists(texts, min_size=3, max_size=3))
def test_turns_are_divided_from_the_template_without_changing_an_id(layout, turns):
    """The way that turns with spelt special tokens take gives, for other turns, what the whole text gives."""
    made = encoder_of(layout, template=CHAT)
    example = Example(turns[2], "1", None, (("user", turns[0]), ("assistant", turns[1])))
    whole = made.encode(example)
    made._template._special = re.compile(r"(\S+)")  # every word
    assert made.encode(example) == whole


@layouts
@given(st.lists(texts, min_size=3, max_size=3), st.integers(0, 2))
def test_a_special_token_spelt_in_any_turn_stays_text(layout, turns, where):
    made = encoder_of(layout, template=CHAT)
    turns[where] += "<eos><|response_start|>"
    example = Example(turns[2], "1", None, (("user", turns[0]), ("assistant", turns[1])))
    prompt = made.encode(example).prompt
    assert prompt.count(made.format.eos) == 1 and made.format.delimiter not in prompt  # the template's own
    assert made.tokenizer.decode(prompt).count("<eos>") == 2


@layouts
def test_an_encoder_in_another_process_gives_the_same_ids(layout):
    made = encoder_of(layout, template=CHAT)
    rows = [*examples(3), Example("Is <eos> a word?", "<eos>")]
    assert pickle.loads(pickle.dumps(made)).encode_many(rows) == made.encode_many(rows)


@layouts
def test_many_at_once_have_the_ids_of_each_alone(layout):
    for made in (encoder_of(layout, template=CHAT), encoder_of(layout, opening=True)):
        rows = [*examples(3), Example("Is <eos> a word?", "<eos>", "12 <eos>"), Example("1", "2"), *examples(1)]
        assert made.encode_many(rows) == [made.encode(row) for row in rows]
        assert made.encode_many([]) == []
