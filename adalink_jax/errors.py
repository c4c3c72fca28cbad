"""A user's mistake, said in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: what was given, what is expected, where it was set. Command lines
    print it as ``error: …`` and exit with code 2; no traceback is shown.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name nearest to `name`, or ``""``."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def check_counts(**counts: int) -> None:
    """Raises `UserError` unless each is a whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"{name} is {count!r}; it must be a whole number ≥ 1")
