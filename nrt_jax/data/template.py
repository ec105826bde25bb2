"""Templates: the text of a prompt, from the turns of a chat or one question."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nrt_jax.data.example import BadRow, Example
from nrt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How questions and answers become tokens.

    Attributes:
        template: Text of the prompt with `{question}` in it; empty for a chat template or, if there is none (a base
            model), for PLAIN_TEMPLATE. Earlier turns are written before the question, each on lines of its own. BOS is
            put before it if the tokenizer has one.
        chat_template: Jinja file with a chat template to use instead of the tokenizer's own.
        max_prompt_length: Questions longer than this many tokens, template included, are left out and counted.
        max_answer_length: Likewise for answers, EOS included.
    """

    template: str = ""
    chat_template: str = ""
    max_prompt_length: int = 1024
    max_answer_length: int = 1024


PLAIN_TEMPLATE = "{question}\n"
_PLACE = "\N{OBJECT REPLACEMENT CHARACTER}turn %d\N{OBJECT REPLACEMENT CHARACTER}"

#: A prompt's text in pieces: (text, whether special tokens are meant where it spells them).
Pieces = list[tuple[str, bool]]


class Template:
    """Writes prompts. `text.template` goes before `text.chat_template`, the tokenizer's own, and PLAIN_TEMPLATE."""

    def __init__(self, tokenizer: "Tokenizer", config: TextConfig):
        """Raises UserError if the template cannot be read or rendered, or has no place for the question."""
        if config.template and config.chat_template:
            raise UserError(
                f"text.chat_template: {config.chat_template!r} and text.template are both given; expected one of them"
            )
        if config.template and "{question}" not in config.template:
            raise UserError(f"text.template: {config.template!r} has no {{question}}; expected e.g. {PLAIN_TEMPLATE!r}")
        self._tokenizer = tokenizer
        self._text = config.template
        self._file = _read(config.chat_template)
        self._is_chat = not config.template and bool(self._file or tokenizer.chat_template)
        self._special_texts = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._check(f"text.chat_template: {config.chat_template!r}" if config.chat_template else "")

    def render(self, example: Example) -> Pieces:
        """The prompt in pieces: one, unless a turn spells a special token, which stays text.

        Raises:
            BadRow: The chat template refuses the turns.
        """
        contents = [*(content for _, content in example.history), example.question]
        if not (self._text or self._is_chat):
            return [(PLAIN_TEMPLATE.replace("{question}", "\n".join(contents)), False)]
        if not any(text in content for content in contents for text in self._special_texts):
            return [(self._fill(example.history, contents), True)]
        return self._split(self._fill(example.history, [_PLACE % i for i in range(len(contents))]), contents)

    def _fill(self, history: Sequence[tuple[str, str]], contents: Sequence[str]) -> str:
        """The template with the given contents of all turns, the question last."""
        if self._text:
            return self._text.replace("{question}", "\n".join(contents))
        roles = [*(role for role, _ in history), "user"]
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self._file or None, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # A template may raise whatever it likes.
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise BadRow("chat template refuses it", f"the chat template fails on its turns ({reason})") from error

    @staticmethod
    def _split(text: str, contents: Sequence[str]) -> Pieces:
        """The rendered text with each place taken by its turn's content."""
        pieces: Pieces = [(text, True)]
        for i, content in enumerate(contents):
            cut = [(piece.split(_PLACE % i) if meant else [piece], meant) for piece, meant in pieces]
            pieces = []
            for parts, meant in cut:
                for number, part in enumerate(parts):
                    pieces += [(content, False)] * (number > 0) + [(part, meant)]
        return [piece for piece in pieces if piece[0]]

    def _check(self, given: str) -> None:
        """Raises UserError if a question alone cannot be rendered, or is not there afterwards."""
        if not self._is_chat:
            return
        field = given or "tokenizer: its chat template"
        mend = "mend it, or pass --text.chat-template FILE or --text.template TEXT"
        try:
            text = self._fill((), [_PLACE % 0])
        except BadRow as error:
            raise UserError(f"{field}: cannot be rendered, {error}; {mend}") from error
        if _PLACE % 0 not in text:
            raise UserError(f"{field}: drops the question of a user's turn; {mend}")


def _read(path: str) -> str:
    """A chat template file; empty for none."""
    if not path:
        return ""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise UserError(f"text.chat_template: cannot read {path!r}: {reason}; expected a Jinja file") from error
    if not text.strip():
        raise UserError(f"text.chat_template: {path!r} is empty; expected a Jinja template")
    return text
