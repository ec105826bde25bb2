"""Rewards from rules: is the answer that the policy wrote right, and is it written as asked?

A verifier is a function of (example, completion) that returns 1.0 for a right answer, 0.0 for a wrong one, anything
between for a partly right one, and None where there is no answer to judge. To add one, name it in `VERIFIERS`, or give
its import path, `--verifier.name my_module:my_function`:

    def my_function(example: Example, completion: Completion) -> float | None:
        return None if completion.answer is None else float(example.answer in completion.answer)

What is judged comes from a policy that is rewarded for being judged right. So answers of more than `MAX_ANSWER`
characters are not read; formulas go to `math-verify` only if they are short and no towers of powers, with a second to
be compared in; and tags count only where the format puts them:

    z </think> answer EOS                            the answer is what follows the delimiter
    z </think> <answer> answer </answer> EOS         with verifier.answer_tag "answer": what the one pair of tags holds
    z <answer> 4 </answer> </think> .. EOS           a tag inside the trace: no answer
    z </think> <answer> 3 </answer> <answer> 4 ..    a second pair, or one inside the other: no answer
"""

import dataclasses
import functools
import importlib
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from types import ModuleType

from nrt_jax import tasks
from nrt_jax.data.example import Example
from nrt_jax.errors import UserError, unknown_name
from nrt_jax.tasks import judging
from nrt_jax.tasks.puzzle import MAX_ANSWER_CHARACTERS

#: Characters of an answer that is read; a longer one is not judged.
MAX_ANSWER = MAX_ANSWER_CHARACTERS
#: Characters of a formula that is read, and seconds that reading or comparing one may take.
MAX_FORMULA, MATH_SECONDS = 1000, 1
#: Seconds that reading a reference may take: nobody wrote it to take long, and a busy machine is not to lose its row.
REFERENCE_SECONDS = 60
#: Characters of a number that is read.
MAX_NUMBER = 100


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a policy wrote after a question.

    Attributes:
        trace: z as text.
        answer: What the verifier is to judge; None where the policy gave no answer.
        well_formed: The format is as asked: one delimiter, one answer that is not empty, the tags at their places and
            nowhere else, and EOS.
    """

    trace: str
    answer: str | None
    well_formed: bool


Verifier = Callable[[Example, Completion], float | None]


@dataclasses.dataclass(frozen=True)
class VerifierConfig:
    """How answers are judged, in evaluation and in the `verifiable` reward.

    Attributes:
        name: One of `nrt_jax.rewards.VERIFIERS`: `exact`, spaces at the ends aside; `normalised`, case, articles and
            punctuation aside (SQuAD); `number`, the last number of both; `math`, equal in value (`math-verify`);
            `verdict`, that of a judge (`nrt_jax.tasks.judging`), whose tags are given; a task, such as `deduction`,
            which judges answers to its own questions; or the import path of a function, `package.module:function`.
        answer_tag: Name of the tags that hold the answer, such as `answer`; empty where all after the delimiter is it.
        right: Score of a right answer.
        wrong: Score of a wrong one; partly right ones lie between.
        unparseable: Score where there is nothing to judge.
    """

    name: str = "exact"
    answer_tag: str = ""
    right: float = 1.0
    wrong: float = 0.0
    unparseable: float = 0.0

    def __post_init__(self):
        """Raises UserError for tags around tags."""
        if self.name == "verdict" and self.answer_tag:
            raise UserError(
                f"verifier.answer_tag: {self.answer_tag!r} cannot work with verifier.name 'verdict', which reads tags "
                "of its own; expected none"
            )

    def score(self, verdict: float | None) -> float:
        """The reward of what a verifier returned."""
        return self.unparseable if verdict is None else self.wrong + verdict * (self.right - self.wrong)


def exact(example: Example, completion: Completion) -> float | None:
    """The reference answer, spaces at the ends aside."""
    return _compare(example, completion, str.strip)


def normalised(example: Example, completion: Completion) -> float | None:
    """Equal after `normalise`."""
    return _compare(example, completion, normalise)


def number(example: Example, completion: Completion) -> float | None:
    """The last number of the answer has the value of the reference's last one (as GSM8K is scored).

    Raises:
        UserError: The reference has no number.
    """
    reference = last_number(example.answer)
    if reference is None:
        raise UserError(
            f"verifier.name: 'number' compares numbers, and the reference answer {example.answer[:100]!r} has none; "
            "expected answers with a number, or another verifier"
        )
    found = None if completion.answer is None else last_number(completion.answer)
    return None if found is None else float(found == reference)


def math(example: Example, completion: Completion) -> float | None:
    """Equal in value by `math-verify`, which reads LaTeX and plain expressions.

    Raises:
        UserError: The package is missing, or the reference is no mathematics.
    """
    math_verify = _math_verify()
    if completion.answer is None:
        return None
    reference = _parse_reference(example.answer)
    if not reference:
        raise UserError(
            f"verifier.name: 'math' cannot read the reference answer {example.answer[:100]!r}; expected mathematics, "
            "or another verifier"
        )
    if completion.answer.strip() == example.answer.strip():
        return 1.0
    found = _parse_math(completion.answer)
    return float(math_verify.verify(reference, found, timeout_seconds=MATH_SECONDS)) if found else None


def verdict(example: Example, completion: Completion) -> float | None:
    """The judge's verdict is that of the reference, one of two.

    Raises:
        UserError: The reference is no verdict.
    """
    reference = judging.parse_verdict("", example.answer)
    if reference is None:
        raise UserError(
            f"verifier.name: 'verdict' compares verdicts, and the reference answer {example.answer[:100]!r} is none; "
            f"expected {judging.verdict(1)} or {judging.verdict(0)}, as in --data judging:FILE"
        )
    found = judging.parse_verdict(completion.trace, completion.answer)
    return None if found is None else float(found == reference)


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "normalised": normalised,
    "number": number,
    "math": math,
    "verdict": verdict,
}


def get_verifier(name: str) -> Verifier:
    """The verifier of that name or import path.

    Raises:
        UserError: There is none, or the package that it needs is not installed.
    """
    if name == "math":
        _math_verify()
    if name in VERIFIERS:
        return VERIFIERS[name]
    if tasks.is_task(name):
        tasks.check_verifier(name)
        return functools.partial(_by_task, tasks.get(name))
    module, colon, attribute = name.partition(":")
    if not colon:
        raise unknown_name("verifier.name", name, (*VERIFIERS, *tasks.TASKS))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # of any kind: a user's module runs
        raise UserError(
            f"verifier.name: cannot import {name!r}: {type(error).__name__}: {error}; expected package.module:function "
            "on Python's path"
        ) from error
    if not callable(function):
        raise UserError(f"verifier.name: {name!r} is a {type(function).__name__}; expected a function")
    return function


def vote(name: str, answer: str) -> str | None:
    """What answers are compared by in a majority vote: an answer as the verifier of that name simplifies it.

    `math` votes by what `math-verify` reads, as SymPy writes it, so that 1/2 and 0.5 are two answers; tasks and
    functions of one's own, which simplify nothing that others can see, by the text without spaces at its ends.

    Returns:
        None where the verifier would find nothing to compare.
    """
    if name == "normalised":
        return normalise(answer)
    if name == "number":
        value = last_number(answer)
        return None if value is None else str(value)
    if name == "verdict":
        verdict = judging.parse_verdict("", answer)
        return None if verdict is None else judging.verdict(verdict)
    if name == "math":
        parsed = _parse_math(answer)
        return str(parsed[0]) if parsed else None
    return answer.strip()


def parse_completion(trace: str, answer: str | None, finished: bool, reserved: Sequence[str], tag: str) -> Completion:
    """Reads what stands around the delimiter.

    Args:
        trace: Text before the first delimiter.
        answer: Text after it, without EOS; None where there is no delimiter.
        finished: The completion ended with EOS, not at the limit.
        reserved: Texts that have no place in trace and answer: the tags of the trace format.
        tag: `VerifierConfig.answer_tag`.
    """
    opening, closing = tags = (f"<{tag}>", f"</{tag}>") if tag else ("", "")
    is_trace_clean = not _holds(trace, (*reserved, *tags))
    if answer is None or len(answer) > MAX_ANSWER or not is_trace_clean or _holds(answer, reserved):
        return Completion(trace, None, well_formed=False)
    before = after = ""
    if tag:
        if answer.count(opening) != 1 or answer.count(closing) != 1:
            return Completion(trace, None, well_formed=False)
        before, rest = answer.split(opening)
        answer, _, after = rest.partition(closing)
        if closing in before:
            return Completion(trace, None, well_formed=False)
    if not answer.strip():
        return Completion(trace, None, well_formed=False)
    return Completion(trace, answer, well_formed=finished and not before.strip() and not after.strip())


def _holds(text: str, parts: Sequence[str]) -> bool:
    return any(part and part in text for part in parts)


#: Hyphens and minus signs, and the dash that is used for one.
_MINUS = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_OPERATORS = "-+*/^<>=!"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_BRACKETS = re.compile(rf"[)\]}}]+(?=[{_OPERATORS}])|(?<=[{_OPERATORS}])[(\[{{]+")
_SEPARATORS = re.compile(rf"[{re.escape(''.join(sorted(set(string.punctuation) - set(_OPERATORS + '.:'))))}]")
# Hyphens and slashes join words, and stars and dashes stand around them: these are operators by what is beside them.
_MARKS = re.compile(
    r"(?<=\w) ?(?P<relation>[-*/!]*[+^<>=][-+*/^<>=!]*) ?(?=\w|-\d|-[^\W\d]\b)"
    r"|(?<=\w)( ?)(?P<times>\*\*?)\2(?=\w|-\d|-[^\W\d]\b)"
    r"|(?:(?<=\d)|(?<=\b[^\W\d]))( ?)(?P<minus>[-/])\4(?=-?\.?\d|-?[^\W\d]\b)"
    r"|(?P<sign>-(?=\.?\d)|[.:/](?=\d)|(?<!\w)-(?=[^\W\d]\b))"
    rf"|[{_OPERATORS}.:]"
)


def normalise(text: str) -> str:
    """Lower case, without articles and punctuation, one space between words (SQuAD, arXiv 1606.05250).

    Unlike there, what changes a value stays: a sign, point, colon or slash before a digit, so that -5 is not 5 and 3.5
    not 35; an operator between operands, as in x < 3, a - b and 2 * 3; an article that is the last word, which names
    something, as in (A); and all of a text that is nothing but punctuation.
    """
    text = unicodedata.normalize("NFKC", text).casefold().translate(_MINUS)
    folded = " ".join(text.split())
    text = _SEPARATORS.sub(" ", _BRACKETS.sub("", _THOUSANDS.sub("", folded)))
    text = _MARKS.sub(lambda found: found[found.lastgroup] if found.lastgroup else " ", " ".join(text.split()))
    *words, last = text.split() or [folded]
    return " ".join([*(word for word in words if word not in ("a", "an", "the")), last])


_NUMBER = re.compile(
    rf"(?<![\w.])[-+]?(?:\d{{1,3}}(?:,\d{{3}})+|\d{{1,{MAX_NUMBER}}})?(?:\.\d{{1,{MAX_NUMBER}}})?"
    r"(?<=\d)(?:e[-+]?\d{1,3})?(?:/[1-9]\d{0,30})?(?![\d_]|[a-z]+\d)",
    re.ASCII | re.IGNORECASE,
)


def last_number(text: str) -> Fraction | None:
    """The value of the last number: 1,234 and -0.5, 1.5e3 and 3/4, with a unit 10km and 12th.

    Returns:
        None if there is none, or the text is too long.
    """
    if len(text) > MAX_ANSWER:
        return None
    found = [match.group() for match in _NUMBER.finditer(text.translate(_MINUS))]
    if not found or len(found[-1]) > 2 * MAX_NUMBER:
        return None
    value, _, divisor = found[-1].replace(",", "").partition("/")
    return Fraction(value) / int(divisor or 1)


#: Powers of powers, exponents and factorials of many digits: a few characters, and more digits than memory holds.
_EXPLOSIVE = re.compile(r"(?:\^|\*\*)[\s{(]*-?(?:\d{4}|\d+[\s})]*(?:\*\*|\^))|\d{4}\s*!|!\s*[)}]*\s*!")
#: Names that LaTeX has commands for, as they are written without it, and what `math-verify` does not read as written.
_NAME = re.compile(r"(?<![\\A-Za-z])(?:arc)?(?:pi|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![A-Za-z])")
_MIXED = re.compile(r"(?<![\w./)])(\d+) +(\d+)/(\d+)(?![\w./(^])")
_IMAGINARY = re.compile(r"(?<=\d)\s*\*\s*(?=i(?![A-Za-z]))")
_SHORT_ROOT = re.compile(r"\u221a\s*(\d+|[A-Za-z])")
_ROOT = re.compile(r"(?:(?<![\\A-Za-z])sqrt|\u221a)\s*\(((?:[^()]|\([^()]*\))*)\)")
#: What has letters without being words: commands, with text in their braces, and names.
_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
    r"|(?<![A-Za-z])(?:sqrt|inf|infinity)(?![A-Za-z])"
)
_WORD = re.compile(r"[A-Za-z]{3}")
_LONE_WORD = re.compile(r"[A-Za-z]{3,}")


def _math_verify() -> ModuleType:
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            "verifier.name: 'math' needs the package math-verify, which is not installed; pip install 'nrt_jax[math]'"
        ) from error
    return math_verify


def _by_task(task: tasks.Task, example: Example, completion: Completion) -> float | None:
    if completion.answer is None:
        return None
    return {"exact": 1.0, "wrong": 0.0, "unparseable": None}[task.verdict(example, completion.answer)]


def _compare(example: Example, completion: Completion, simplify: Callable[[str], str]) -> float | None:
    if completion.answer is None:
        return None
    return float(simplify(completion.answer) == simplify(example.answer))


@functools.lru_cache(maxsize=2**14)
def _parse_reference(text: str) -> list:
    return _parse_math(text, REFERENCE_SECONDS)


def _parse_math(text: str, seconds: int = MATH_SECONDS) -> list:
    """Formulas may come without the dollar signs that `math-verify` looks for; words would be products of letters."""
    if len(text) > MAX_FORMULA or _EXPLOSIVE.search(re.sub(r"\\(?:left|right)", "", text)):
        return []
    read = functools.partial(_math_verify().parse, parsing_timeout=seconds)
    formula = _as_latex(text)
    return (read(f"${formula}$") if formula else []) or read(text)


def _as_latex(text: str) -> str:
    """A formula without dollar signs in LaTeX; empty where the text has dollar signs of its own, or words."""
    text = " ".join(text.translate(_MINUS).split())
    if re.search(r"(?<!\\)\$", text):
        return ""
    text = _NAME.sub(r"\\\g<0>", text.replace("**", "^"))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text, num_roots = _SHORT_ROOT.sub(r"\\sqrt{\1}", _IMAGINARY.sub("", text)), 1
    while num_roots:  # Roots in roots.
        text, num_roots = _ROOT.subn(r"\\sqrt{\1}", text)
    if _WORD.search(_COMMAND.sub(" ", text)):
        return rf"\text{{{text}}}" if _LONE_WORD.fullmatch(text) else ""
    return text
