"""Errors that a user can mend: one line that names the field, the value, what was expected and what to do."""

import difflib
from collections.abc import Iterable

#: Characters of a printed error.
MAX_LINE = 2000


class UserError(ValueError):
    """Bad input. Every command prints it as one line and exits with code 2, without a traceback."""


class Stopped(Exception):
    """A run was asked to stop, and did where it can go on. Every command prints it as one line and exits with 0."""


def one_line(error: Exception) -> str:
    """What is printed of an error.

    What it quotes may come from a hostile file: line ends and terminal codes are spelt out, and a long middle is left
    out, since values stand at the start of a message and the cure at its end.
    """
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split()))
    half = MAX_LINE // 2
    return text if len(text) <= MAX_LINE else f"{text[:half]} ... {text[-half:]}"


def unknown_name(field: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest known one as a suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"{field}: unknown value {value!r}; expected one of {', '.join(known)}{hint}")
