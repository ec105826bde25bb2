"""The clock problems: what the base is pretrained on and what NRT is judged by must be right."""

import re

import pytest

from nrt_jax import tasks
from nrt_jax.errors import UserError
from nrt_jax.hf.tokenizer_training import TRACE_TOKENS, train_tokenizer
from nrt_jax.tasks import clock, puzzle

TASK = tasks.get("clock")
LEVELS = sorted(clock.LEVELS)


def solve(question: str) -> list[tuple[str, int, int]]:
    """(activity, hours, hour at its end) read off the words of the question alone."""
    hour = int(re.search(r"(\d+) o'clock", question)[1])
    steps = []
    for activity, hours in re.findall(r"(\w+) for (\d+) hours?", question):
        for _ in range(int(hours)):
            hour = 1 if hour == 12 else hour + 1
        steps.append((activity, int(hours), hour))
    return steps


@pytest.mark.parametrize("level", LEVELS)
def test_trace_and_answer_follow_from_the_words_of_the_question(level):
    for example in TASK.examples(300, seed=3, level=level):
        steps = solve(example.question)
        written = re.findall(r"(\w+) (\d+) to (\d+)", example.trace)
        assert [(activity, int(n), int(hour)) for activity, n, hour in written] == steps
        asked = re.search(r"stop (\w+),", example.question)[1]
        (stop,) = [hour for activity, _, hour in steps if clock.ACTIVITIES[activity] == asked]
        assert re.findall(r"\d+", example.answer) == [str(stop), str(steps[-1][2])]
        assert len(steps) in clock.LEVELS[level]


def test_verifier_accepts_the_reference_and_nothing_else():
    for example in TASK.examples(50, seed=0):
        assert TASK.is_correct(example, example.answer)
        assert TASK.is_correct(example, f" {example.answer}\n")
        hour = re.findall(r"\d+", example.answer)[-1]
        wrong_hour = example.answer.replace(f"done at {hour} ", f"done at {int(hour) % 12 + 1} ")
        for wrong in (wrong_hour, example.answer[:-1], example.answer * 2, example.trace, ""):
            assert not TASK.is_correct(example, wrong)


def test_trace_kinds_tell_useful_working_from_the_rest():
    example = clock.Problem("Mia", 3, ("reads", "walks", "sleeps"), (5, 4, 5), phrasing=0)
    gold = clock.Example(example.question(), example.answer(), example.trace())
    assert gold.trace == "From 3, reads 5 to 8, walks 4 to 12, sleeps 5 to 5."
    assert gold.answer == "Mia stops walking at 12 o'clock and is done at 5 o'clock."
    kinds = {
        gold.trace: "useful",
        "From 3, reads 5 to 8, walks 4 to 12.": "lazy",
        "From 3, reads 5 to 9, walks 4 to 12, sleeps 5 to 5.": "wrong",
        gold.trace + gold.trace: "wrong",
        "From 3, reads 5, walks 4, sleeps 5.": "sloppy",
        "Let me think about this.": "other",
        " ": "empty",
    }
    assert {trace: TASK.trace_kind(gold, trace) for trace in kinds} == kinds
    assert [trace for trace in kinds if TASK.is_useful(gold, trace)] == [gold.trace]


@pytest.mark.parametrize("level", LEVELS)
def test_splits_are_disjoint_in_their_numbers_for_any_seeds(level):
    def numbers(split, seed):
        stories = (e.question for e in TASK.examples(1000, seed, split, level))
        return {tuple((n, hour) for _, n, hour in solve(q)) for q in stories}

    train = numbers("train", 0) | numbers("train", 1)
    heldout = numbers("heldout", 0) | numbers("heldout", 2)
    assert not train & heldout


def test_same_seed_same_texts_and_other_seed_other_texts():
    mixture = dict.fromkeys(puzzle.KINDS, 1.0)
    assert TASK.examples(20, 5) == TASK.examples(20, 5) == TASK.examples(40, 5)[:20]
    assert TASK.documents(20, 5, mixture) == TASK.documents(20, 5, mixture)
    assert TASK.examples(20, 5) != TASK.examples(20, 6)


def test_documents_keep_the_mixture_and_the_right_answer():
    documents = TASK.documents(2000, 0, {"useful": 1, "empty": 3})
    gold = TASK.documents(2000, 0, {"useful": 1})
    assert {d.trace for d in documents if d.trace} <= {e.trace for e in gold}
    assert all(d.answer == e.answer for d, e in zip(documents, gold, strict=True))
    assert 0.2 < sum(d.trace != "" for d in documents) / len(documents) < 0.3


@pytest.mark.parametrize("kind", puzzle.KINDS)
def test_a_document_of_a_kind_is_seen_as_that_kind(kind):
    seen = {"filler": "other", "irrelevant": "other"}.get(kind, kind)
    documents = TASK.documents(200, 0, {kind: 1.0})
    kinds = [TASK.trace_kind(e, d.trace) for e, d in zip(TASK.documents(200, 0, {"useful": 1}), documents, strict=True)]
    assert kinds.count(seen) == 200


def test_unknown_names_are_one_clear_line():
    for call in (
        lambda: tasks.get("clocks"),
        lambda: TASK.examples(1, 0, split="test"),
        lambda: TASK.examples(1, 0, level="defualt"),
        lambda: TASK.documents(1, 0, {"usefull": 1.0}),
    ):
        with pytest.raises(UserError, match="unknown value"):
            call()


@pytest.fixture(scope="module")
def tokenizer():
    documents = TASK.documents(2000, 0, dict.fromkeys(puzzle.KINDS, 1.0))
    return train_tokenizer([s for d in documents for s in (d.question, d.trace, d.answer)], 512)


def test_every_hour_and_every_word_is_one_token(tokenizer):
    words = [f" {n}" for n in range(1, 13)] + list(clock.PEOPLE) + [f" {name}" for name in clock.PEOPLE]
    words += [f" {word}" for pair in clock.ACTIVITIES.items() for word in pair]
    for word in words:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word


def test_any_other_text_survives_the_tokenizer(tokenizer):
    text = "Grüße, 世界! def f(x):\n\treturn x**2  # 🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_special_tokens_are_single_ids(tokenizer):
    for token in ("<pad>", "<bos>", "<eos>", *TRACE_TOKENS):
        ids = tokenizer(token, add_special_tokens=False).input_ids
        assert ids == [tokenizer.convert_tokens_to_ids(token)]


def test_the_tokenizer_is_the_same_every_time(tokenizer):
    documents = TASK.documents(2000, 0, dict.fromkeys(puzzle.KINDS, 1.0))
    again = train_tokenizer([s for d in documents for s in (d.question, d.trace, d.answer)], 512)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_training_questions_are_not_pretraining_documents():
    documents = {d.question for d in TASK.documents(3000, 0, {"useful": 1})}
    questions = [e.question for e in TASK.examples(3000, 0)]
    assert sum(q in documents for q in questions) < 0.02 * len(questions)
