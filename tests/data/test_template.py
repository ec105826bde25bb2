"""Which template writes the prompt, how earlier turns get in, and which templates are refused."""

import copy

import pytest

from nrt_jax.data import Example
from nrt_jax.errors import UserError
from tests.data.common import encoder
from tests.fixtures_run import CHAT_TEMPLATE, tokenizer

BOS = tokenizer().bos_token_id
FILE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}>"
HISTORY = (("system", "1 plus"), ("user", "2 plus"), ("assistant", "3 plus"))


def chatty(template: str = CHAT_TEMPLATE):
    made = copy.deepcopy(tokenizer())
    made.chat_template = template
    return made


def text_of(made, question: str = "4", history=()) -> str:
    prompt = made.encode(Example(question, "1", None, tuple(history))).prompt
    assert prompt[0] == BOS and prompt.count(BOS) == 1
    return made.tokenizer.decode(prompt[1:])


@pytest.fixture
def jinja(tmp_path) -> str:
    (tmp_path / "chat.jinja").write_text(FILE)
    return str(tmp_path / "chat.jinja")


def test_template_goes_before_the_file_and_the_file_before_the_tokenizers_own(jinja):
    assert text_of(encoder(chatty(), template="{question}!")) == "4!"
    assert text_of(encoder(chatty(), chat_template=jinja)) == "<user>4>"
    assert text_of(encoder(tokenizer(), chat_template=jinja)) == "<user>4>"
    assert text_of(encoder(chatty())) == "[user] 4\n[assistant] "
    assert text_of(encoder(tokenizer())) == "4\n"


def test_earlier_turns_are_messages_of_a_chat_template_and_lines_before_the_question_elsewhere(jinja):
    assert text_of(encoder(chatty(), chat_template=jinja), history=HISTORY) == (
        "<system>1 plus<user>2 plus<assistant>3 plus<user>4>"
    )
    assert text_of(encoder(), history=HISTORY) == "1 plus\n2 plus\n3 plus\n4\n"
    assert text_of(encoder(template="Q: {question} A:"), history=HISTORY) == "Q: 1 plus\n2 plus\n3 plus\n4 A:"


@pytest.mark.parametrize("settings", [{"template": "<eos>{question}|"}, {}])
def test_a_turn_that_spells_the_places_of_other_turns_stays_as_it_is(settings):
    """Turns are put in by place when one spells a special token; what a turn says must not be taken for a place."""
    places = "".join(f"\N{OBJECT REPLACEMENT CHARACTER}turn {i}\N{OBJECT REPLACEMENT CHARACTER}" for i in range(3))
    for made in (encoder(**settings), encoder(chatty(), **settings)):
        found = text_of(made, f"{places} <eos>", (("user", "<eos> {question}"), ("assistant", places)))
        assert found.count(places) == 2 and found.count("<eos> {question}") == 1 and f"{places} <eos>" in found


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}", r"cannot be rendered.*for"),
        ("{{ raise_exception('not today') }}", "cannot be rendered.*not today"),
        ("{{ messages[7].content }}", "cannot be rendered"),
        ("Hello", "drops the question"),
        ("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "drops the question"),
    ],
)
def test_chat_template_that_cannot_work_is_refused_by_its_field(tmp_path, template, problem):
    (tmp_path / "chat.jinja").write_text(template)
    with pytest.raises(UserError, match=rf"text\.chat_template: '.*chat\.jinja': {problem}") as error:
        encoder(chat_template=str(tmp_path / "chat.jinja"))
    assert "\n" not in str(error.value) and "--text.template" in str(error.value)
    with pytest.raises(UserError, match=f"tokenizer: its chat template: {problem}"):
        encoder(chatty(template))
    assert text_of(encoder(chatty(template), template="{question}")) == "4"


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file or directory"), (b"\xff", "is not UTF-8 text"), (b" \n", "is empty")]
)
def test_chat_template_file_that_cannot_be_read_is_refused(tmp_path, content, problem):
    path = tmp_path / "chat.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"text\.chat_template: .*chat\.jinja'.*{problem}; expected a Jinja"):
        encoder(chat_template=str(path))


def test_both_templates_are_one_too_many(jinja):
    with pytest.raises(UserError, match=r"text\.chat_template: .* and text\.template are both given"):
        encoder(template="{question}", chat_template=jinja)
