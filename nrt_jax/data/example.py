"""The unit of data: a question, its reference answer and, where the data has one, a reasoning trace."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Example:
    """One question-answer pair.

    Attributes:
        question: The prompt x, without any chat template.
        answer: The reference answer y*, without EOS.
        trace: A demonstration z. NRT never reads it; pretraining, SFT and hints do.
    """

    question: str
    answer: str
    trace: str | None = None
