"""Which template writes the prompt, how earlier turns get in, and which templates are refused."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data import Example
from nrt_jax.data.example import BadRow
from nrt_jax.errors import UserError
from tests.data.common import encoder
from tests.fixtures_run import CHAT_TEMPLATE, tokenizer

MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
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


def test_the_system_turn_is_that_of_questions_without_their_own(jinja):
    made = encoder(chatty(), chat_template=jinja, system="5 plus")
    assert text_of(made) == "<system>5 plus<user>4>"
    assert text_of(made, history=HISTORY[1:]) == "<system>5 plus<user>2 plus<assistant>3 plus<user>4>"
    assert text_of(made, history=HISTORY) == "<system>1 plus<user>2 plus<assistant>3 plus<user>4>"
    assert text_of(encoder(system="5 plus")) == "5 plus\n4\n"  # without a chat template, a line


def test_a_chat_template_that_takes_no_system_turn_is_refused_at_the_start():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    assert text_of(encoder(chatty(strict))) == "[user] 4\n[assistant] "
    with pytest.raises(
        UserError, match=r"cannot be rendered.*no system role.*--text.template TEXT, or no --text.system"
    ):
        encoder(chatty(strict), system="5 plus")


contents = st.lists(
    st.sampled_from([*"  \n01a", "<eos>", "<|response_start|>", "<e", "os>", MARK, f"{MARK}0{MARK}", "{question}"]),
    max_size=9,
).map("".join)


@pytest.mark.parametrize(
    "template",
    [FILE, "<eos>" + FILE + "<bos>", FILE.replace("m.content", "(m.content ~ '|' ~ m.content)"), CHAT_TEMPLATE],
)
@given(turns=st.lists(contents, min_size=1, max_size=3))
def test_prompt_reads_as_the_template_alone_would_write_it_and_only_its_own_special_tokens_are_meant(template, turns):
    """Whether a turn spells a special token decides what is a token, and nothing else: not what is trimmed."""
    made = encoder(chatty(template))
    messages = [{"role": "user", "content": turn} for turn in turns]
    plain = made.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pieces = made._template.render(Example(turns[-1], "1", None, tuple(("user", turn) for turn in turns[:-1])))
    assert "".join(text for text, _ in pieces) == plain
    meant = [text for text, meant in pieces if meant]  # not joined: "<e" and "os>" have a spelt token between them
    assert sum(text.count("<eos>") for text in meant) == template.count("<eos>")
    assert not any("<|response_start|>" in text for text in meant)


@given(turns=st.lists(contents, min_size=1, max_size=3))
def test_text_template_with_spelt_special_tokens_reads_as_written(turns):
    made = encoder(template="<eos> {question}|")
    example = Example(turns[-1], "1", None, tuple(("user", turn) for turn in turns[:-1]))
    assert "".join(text for text, _ in made._template.render(example)) == "<eos> " + "\n".join(turns) + "|"
    assert made.encode(example).prompt.count(made.format.eos) == 1


@pytest.mark.parametrize("change", ["upper", "reverse", "replace('<', '(')", "truncate(3, true, '')", "length"])
def test_turn_whose_special_token_the_template_changes_is_refused(change):
    made = encoder(chatty(FILE.replace("trim", f"string | {change}") + "{{ messages[-1].content | trim | trim }}"))
    assert text_of(made, "4")
    with pytest.raises(BadRow, match=r"changes a special token that its turns spell \(<eos>\); expected them to stay"):
        made.prompt("1 <eos> plus <eos> 12")


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
