"""The unit of data: a question, its reference answer and, where the data has one, a reasoning trace."""

import dataclasses

from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """One question-answer pair.

    Attributes:
        question: The prompt x, without any chat template; of a chat, its last user turn.
        answer: The reference answer y*, without EOS.
        trace: A demonstration z. NRT never reads it; pretraining, SFT and hints do.
        history: (role, content) of the turns before the question; a part of x.
        pair: The chosen and the rejected completion of the prompt, as `dpo` learns from them; each may hold a trace and
            the delimiter. An answer that equals the chosen one is what follows the delimiter in it.
    """

    question: str
    answer: str
    trace: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    pair: tuple[str, str] | None = None

    @property
    def conversation(self) -> str:
        """The question with the turns before it, as one text: what a judge is told was asked."""
        return "\n".join([*(content for _, content in self.history), self.question])


class BadRow(UserError):
    """A row that is no example.

    Attributes:
        reason: By which such rows are counted, such as `answer is missing`.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or reason)
        self.reason = reason
