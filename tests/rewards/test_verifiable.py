"""Verifiers judge what is there: values, not spellings, and nothing that a policy writes to please them."""

import decimal
import fractions
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax import tasks
from nrt_jax.data import Example
from nrt_jax.errors import UserError
from nrt_jax.rewards.verifiable import (
    MAX_ANSWER,
    VERIFIERS,
    Completion,
    VerifierConfig,
    get_verifier,
    last_number,
    normalise,
    parse_completion,
)
from nrt_jax.tasks import judging


def judge(name: str, reference: str, answer: str | None) -> float | None:
    return get_verifier(name)(Example("?", reference), Completion("", answer, well_formed=True))


def parse(trace: str, answer: str | None, *, finished=True, tag="answer") -> Completion:
    return parse_completion(trace, answer, finished, ("<think>", "</think>"), tag)


@pytest.mark.parametrize("name", VERIFIERS)
def test_the_reference_is_right_another_answer_wrong_and_none_is_not_judged(name):
    reference, other = ("17", "71") if name != "verdict" else map(judging.verdict, (0, 1))
    assert judge(name, reference, reference) == 1.0
    assert judge(name, reference, other) == 0.0
    assert judge(name, reference, None) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
def test_a_number_is_found_however_it_is_written(value):
    for text in (f"{value}", f"{value:,}", f"so it is {value:e}.", f"{value:+} apples, as 3 < 5 says: {value}"):
        assert last_number(text) == fractions.Fraction(value), text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3/4", "3/4"),
        ("$1,234.50", "1234.5"),
        ("5 - 3 is 2", "2"),
        (".5", "1/2"),
        ("x=5.", "5"),
        ("50%", "50"),
        ("10km", "10"),
        ("-18kg.", "-18"),
        ("the 12th", "12"),
        ("1,250m each", "1250"),
        ("3/4cup", "3/4"),
        ("1e3m", "1000"),
    ],
)
def test_numbers_among_other_characters(text, value):
    assert last_number(text) == fractions.Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "none", "NaN", "inf", "\u0663", "a1b", "1e9999", "0x10", "2x3", "9" * 500, "1" * (MAX_ANSWER + 1)]
)
def test_what_is_no_number(text):
    assert last_number(text) is None


@pytest.mark.parametrize("minus", ["-", "\u2212", "\u2013", "\uff0d"])
@pytest.mark.parametrize("name", ["number", "normalised"])
def test_a_sign_counts_however_it_is_written(name, minus):
    for reference, answer, verdict in (
        ("-5", f"{minus}5", 1.0),
        (f"{minus}5", "-5", 1.0),
        ("5", f"{minus}5", 0.0),
        (f"{minus}5", "5", 0.0),
    ):
        assert judge(name, reference, answer) == verdict
    assert last_number(f"3{minus}5") == 5


@pytest.mark.parametrize("pattern", ["1", "1a", "1+", "1,", ",111", "-+", "1.", "1e", "1/", "(", "\\frac{"])
@pytest.mark.parametrize("name", ["exact", "normalised", "number"])
def test_answers_made_to_take_long_are_judged_at_once_and_oversized_ones_not_at_all(name, pattern):
    hostile = (pattern * MAX_ANSWER)[:MAX_ANSWER]
    started = time.process_time()
    assert judge(name, "17", hostile) != 1.0
    assert time.process_time() - started < 5  # quadratic regular expressions would take minutes
    assert parse("", hostile + "x", tag="").answer is None


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9",
        "9^9^9",
        "$9^{9^{9^{9}}}$",
        "10^99999999",
        "(9!)!",
        "99999!",
        "2**(3**(4**5))",
        "x" * 5000,
        "9^{(9^{(9)})}",
        r"9^{\left(9^{\left(9\right)}\right)}",
        "(((9^{999})^{999})^{999})",
        "((10)!)!",
    ],
)
def test_formulas_that_explode_are_not_read(answer):
    pytest.importorskip("math_verify")
    started = time.process_time()
    assert judge("math", "17", answer) is None
    assert time.process_time() - started < 1


@pytest.mark.parametrize("answer", ["exp(exp(exp(exp(9))))", "pi^{pi^{pi^{pi^{pi}}}}", "sqrt(" * 160, "\u221a" * 999])
def test_hostile_formulas_in_plain_text_end_soon_and_are_not_right(answer):
    pytest.importorskip("math_verify")
    started = time.process_time()
    assert judge("math", "17", answer) in (0.0, None)
    assert time.process_time() - started < 5


def test_powers_of_no_powers_are_read():
    pytest.importorskip("math_verify")
    for reference, answer in (("x^2y^2", "$(xy)^2$"), ("x^2+y^2", "y^2 + x^2"), ("2^{10}", "1024"), ("3!", "6")):
        assert judge("math", reference, answer) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("1,000", "1000"),
        ("an  apple,\n a pear", "Apple pear"),
        ("(5)", "5"),
        ("(A)", "a."),
        ("a well-known\u2013or unknown\u2013man", "well known or unknown man"),
        ("the **big** cat", "big cat"),
        ("Paris - a city and/or town", "Paris, city and or town"),
        ("x<3", "X < 3"),
        ("f(x)=2*(3 + y)", "f(x) = 2 * 3+y"),
        ("1 / 2", "1/2"),
        ("a - b", "a-b"),
    ],
)
def test_normalised_forgets_case_articles_and_punctuation(one, other):
    assert normalise(one) == normalise(other) and judge("normalised", one, other) == 1.0


@pytest.mark.parametrize(
    ("one", "others"),
    [
        ("-5", ["5"]),
        ("-.5", [".5"]),
        ("3.5", ["35"]),
        ("1/2", ["12"]),
        ("10:30", ["1030"]),
        ("cat", ["act"]),
        ("A", [".", "the", "an", "", "B"]),
        ("the", ["a"]),
        ("?", ["!", ""]),
        ("option A", ["option", "option the"]),
        ("x < 3", ["x > 3", "x <= 3", "x = 3", "x 3"]),
        ("x = 5", ["x != 5", "x 5", "x = -5"]),
        ("2 + 3", ["2 * 3", "2 - 3", "2 / 3", "2 3", "2 ^ 3"]),
        ("2*3", ["2**3"]),
        ("a - b", ["a + b", "a b", "a * b", "a / b"]),
        ("-x", ["x"]),
    ],
)
def test_normalised_keeps_what_changes_a_value(one, others):
    for other in others:
        assert normalise(one) != normalise(other), other
        assert judge("normalised", one, other) == judge("normalised", other, one) == 0.0


@given(st.text(max_size=30) | st.text(alphabet="a3x -+*/<>=!.:,()", max_size=12))
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("\\frac{1}{2}", "0.5", 1.0),
        ("$x^2-1$", "$(x-1)(x+1)$", 1.0),
        ("3", "$\\sqrt{10}$", 0.0),
        ("7", "who knows", None),
    ],
)
def test_math_compares_values(reference, answer, verdict):
    pytest.importorskip("math_verify")
    assert judge("math", reference, answer) == verdict


@pytest.mark.parametrize(
    ("reference", "plain", "wrong"),
    [
        (
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            r"$\begin{pmatrix}1\\2\end{pmatrix}$",
            r"\begin{pmatrix}2\\1\end{pmatrix}",
        ),
        (r"\text{east}", "East", r"\text{west}"),
        (r"\text{(A)}", "A", "B"),
        (r"\sqrt{2}", "sqrt(2)", "sqrt(3)"),
        (r"3\sqrt{13}", "3*sqrt(13)", "2*sqrt(13)"),
        (r"3\sqrt{13}", "3\u221a13", "3\u221a31"),
        (r"\frac{1+\sqrt{5}}{2}", "(1+sqrt(5))/2", "(1-sqrt(5))/2"),
        (r"\sqrt{2+\sqrt{3}}", "sqrt(2 + \u221a(3))", "sqrt(2 - \u221a(3))"),
        (r"\pi", "pi", "2pi"),
        (r"\frac{2\pi}{3}", "2*pi/3", "3pi/2"),
        (r"\frac{2\pi}{3}", "2\u03c0/3", "\u03c0/3"),
        (r"\sin x", "sin(x)", "cos(x)"),
        (r"\tan^2 x", "tan(x)^2", "tan(x)"),
        (r"\log_2 3", "log_2(3)", "log_3(2)"),
        (r"\ln 2", "ln(2)", "ln(3)"),
        ("x^2", "x**2", "x**3"),
        ("e^2", "exp(2)", "exp(3)"),
        (r"\sqrt[3]{5}", "5^(1/3)", "5^(1/2)"),
        (r"-\frac{7}{4}", "\u22127/4", "7/4"),
        (r"3\frac{1}{2}", "3 1/2", "3 1/3"),
        (r"\dfrac{7}{2}", "3.5", "3.6"),
        (r"\{1,2\}", "{2, 1}", "{1, 3}"),
        ("(1,2)", "(1, 2)", "(2, 1)"),
        (r"\left(-\infty,3\right]", "(-infinity, 3]", "(-infinity, 3)"),
        (r"x \in [-2,7]", "[-2, 7]", "[-2, 6]"),
        ("x=5", "5", "-5"),
        (r"\$12.50", "$12.5", "$12.05"),
        (r"12.5\%", "12.5%", "15%"),
        (r"30^\circ", "30 degrees", "60 degrees"),
        (r"12\text{ cm}^2", "12", "13"),
        ("1+2i", "1 + 2*i", "1 - 2*i"),
        ("x^2-5x+6", "(x-2)*(x-3)", "(x-1)*(x-6)"),
        (r"\frac{3}{4}", "The answer is \\frac{3}{4}.", "The answer is \\frac{4}{3}."),
    ],
)
def test_math_reads_latex_and_plain_text_alike(reference, plain, wrong):
    pytest.importorskip("math_verify")
    assert judge("math", reference, reference) == judge("math", reference, plain) == 1.0
    assert judge("math", plain, reference) == 1.0
    assert judge("math", reference, wrong) == judge("math", plain, wrong) == 0.0


def test_a_busy_machine_loses_answers_but_no_references(monkeypatch):
    math_verify = pytest.importorskip("math_verify")
    read = []

    def parse(text, parsing_timeout):
        read.append(text)
        return [17] if parsing_timeout > 2 else []  # as if reading took two seconds

    monkeypatch.setattr(math_verify, "parse", parse)
    assert [judge("math", "16.5 + .5", answer) for answer in ("16.5 + .5 ", "17", "18")] == [1.0, None, None]
    assert read.count("$16.5 + .5$") == 1, "a reference is read once"


def test_a_reference_that_cannot_be_compared_is_the_users_mistake():
    with pytest.raises(UserError, match=r"verifier.name: 'number' compares numbers.*'none'"):
        judge("number", "none", "4")
    with pytest.raises(UserError, match="cannot read the reference answer"):
        judge("math", "who knows", "4")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_judges_answers_to_its_own_questions(name):
    example, *others = tasks.get(name).examples(8, seed=1)
    verify = get_verifier(name)
    assert verify(example, Completion("", f" {example.answer}\n", well_formed=True)) == 1.0
    assert verify(example, Completion("", None, well_formed=False)) is None
    wrong = {other.answer for other in others} - {example.answer}
    assert wrong
    for answer in (*wrong, "no idea"):
        assert verify(example, Completion("", answer, well_formed=True)) in (0.0, None)


def half(example, completion):
    """A user's function."""
    return decimal.Decimal("0.5") if completion.answer else None


def test_a_users_function_is_found_by_its_import_path():
    assert get_verifier(f"{__name__}:half") is half
    for name, message in (
        ("exakt", "did you mean 'exact'"),
        ("no_such_module:f", "cannot import 'no_such_module:f'"),
        (f"{__name__}:nothing", "cannot import"),
        ("tests.broken_verifier:f", "cannot import .*NameError"),
        ("string:digits", "is a str; expected a function"),
    ):
        with pytest.raises(UserError, match=message):
            get_verifier(name)


def test_scores_of_verdicts():
    config = VerifierConfig(right=2.0, wrong=-1.5, unparseable=-2.0)  # meta-abilities alignment, arXiv 2505.10554
    assert [config.score(verdict) for verdict in (1.0, 0.0, None, 0.5)] == [2.0, -1.5, -2.0, 0.25]


def test_a_well_formed_completion():
    found = parse("3 and 4 make 7", " <answer> 7 </answer>\n")
    assert found.well_formed and found.answer.strip() == "7" and found.trace == "3 and 4 make 7"
    assert parse("", "7", tag="").well_formed


@pytest.mark.parametrize(
    ("trace", "answer"),
    [
        ("so", None),  # no delimiter
        ("so", ""),
        ("so", "<answer> </answer>"),
        ("so", "7"),  # no tags
        ("so", "<answer>7"),
        ("so", "7</answer>"),
        ("so", "</answer>7<answer>"),
        ("so", "<answer>6</answer><answer>7</answer>"),  # both are offered
        ("so", "<answer><answer>7</answer></answer>"),
        ("so", "<answer>7</answer></answer>"),
        ("it is <answer>7</answer>", "<answer>7</answer>"),  # inside the thought
        ("it is </think>", "<answer>7</answer>"),  # spelt in pieces
        ("<think> so", "<answer>7</answer>"),
        ("so", "<answer>7</think></answer>"),
        ("so", "<think>hm</think><answer>7</answer>"),
    ],
)
def test_tags_repeated_nested_missing_or_in_the_thought_are_no_answer(trace, answer):
    assert parse(trace, answer) == Completion(trace, None, well_formed=False)


def test_words_around_the_tags_and_a_missing_end_cost_the_format_alone():
    for found in (parse("so", "It is <answer>7</answer>."), parse("so", "<answer>7</answer>", finished=False)):
        assert found.answer == "7" and not found.well_formed


@given(st.text(alphabet="7 <>/answerthik", max_size=40), st.text(alphabet="7 <>/answerthik", max_size=60))
def test_no_text_breaks_the_reader_and_what_it_finds_holds_no_tag(trace, answer):
    found = parse(trace, answer)
    if found.answer is not None:
        assert not any(tag in found.answer for tag in ("<answer>", "</answer>", "<think>", "</think>"))
        assert f"<answer>{found.answer}</answer>" in answer
    assert found.answer is not None or not found.well_formed
