"""Templates: the text of a prompt, from the turns of a chat or one question."""

import dataclasses
import re
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
        system: System turn of questions whose chat begins with none; empty for none.
        max_prompt_length: Questions longer than this many tokens, template included, are left out and counted.
        max_answer_length: Likewise for answers, EOS included.
    """

    template: str = ""
    chat_template: str = ""
    system: str = ""
    max_prompt_length: int = 1024
    max_answer_length: int = 1024


PLAIN_TEMPLATE = "{question}\n"
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"  # Neither space nor letter: what templates trim and change.

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
        self._system = (("system", config.system),) if config.system else ()
        self._is_chat = not config.template and bool(self._file or tokenizer.chat_template)
        self._special = special_tokens(tokenizer)
        self._check(f"text.chat_template: {config.chat_template!r}" if config.chat_template else "")

    def render(self, example: Example) -> Pieces:
        """The prompt in pieces: one, unless a turn spells a special token, which stays text.

        Joined, the pieces are what the template makes of the turns, whether they spell special tokens or not.

        Raises:
            BadRow: The chat template refuses the turns, or changes a special token that they spell.
        """
        history = self._turns_before(example.history)
        contents = [*(content for _, content in history), example.question]
        if not (self._text or self._is_chat):
            return [(PLAIN_TEMPLATE.replace("{question}", "\n".join(contents)), False)]
        whole = self._fill(history, contents)
        if self._special is None or not any(map(self._special.search, contents)):
            return [(whole, True)]
        return self._split(history, contents, whole)

    def _turns_before(self, history: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """The history, after the configured system turn if it has none."""
        has_own = any(role == "system" for role, _ in history)
        return history if has_own else (*self._system, *history)

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

    def _split(self, history: Sequence[tuple[str, str]], contents: Sequence[str], whole: str) -> Pieces:
        """`whole`, what the template makes of `contents`, in pieces.

        Each special token that a turn spells is rendered as a place, and put back where its place came out. A place is
        a number between two runs of marks that are longer than any other, so that nothing else is taken for one.
        """
        mark = _MARK
        while any(mark in text for text in (whole, *contents)):
            mark += _MARK
        spelt: dict[str, str] = {}

        def place(found: re.Match) -> str:
            number = str(len(spelt))
            spelt[number] = found[0]
            return mark + number + mark

        rendered = self._fill(history, [self._special.sub(place, content) for content in contents])
        parts = re.split(f"{mark}([0-9]+){mark}", rendered)
        pieces = [(spelt.get(part, ""), False) if i % 2 else (part, True) for i, part in enumerate(parts)]
        if "".join(text for text, _ in pieces) != whole:
            tokens = ", ".join(dict.fromkeys(spelt.values()))[:200]
            raise BadRow(
                "chat template changes a special token of its turns",
                f"the chat template changes a special token that its turns spell ({tokens}); expected them to stay",
            )
        return [piece for piece in pieces if piece[0]]

    def _check(self, given: str) -> None:
        """Raises UserError if a question alone cannot be rendered, or is not there afterwards."""
        if not self._is_chat:
            return
        probe = f"{_MARK}0{_MARK}"
        field = given or "tokenizer: its chat template"
        mend = "mend it, or pass --text.chat-template FILE or --text.template TEXT" + ", or no --text.system" * bool(
            self._system
        )
        try:
            text = self._fill(self._system, [*(content for _, content in self._system), probe])
        except BadRow as error:
            raise UserError(f"{field}: cannot be rendered, {error}; {mend}") from error
        if probe not in text:
            raise UserError(f"{field}: drops the question of a user's turn; {mend}")


def special_tokens(tokenizer: "Tokenizer") -> re.Pattern | None:
    """Finds texts that spell a special token, the longest first, as one group; None if there are no such tokens."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else None


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
