"""Errors that a user can mend: one line that names the field, the value, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Every command prints it as one line and exits with code 2, without a traceback."""


class Stopped(Exception):
    """A run was asked to stop, and did where it can go on. Every command prints it as one line and exits with 0."""


def unknown_name(field: str, value: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a table, with the nearest known one as a suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"{field}: unknown value {value!r}; expected one of {', '.join(known)}{hint}")
