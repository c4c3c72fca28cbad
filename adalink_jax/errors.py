"""The error for a user's mistake, with a one-line message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: what was given, what is expected, and where it was set. Commands print
    it as ``error: …`` without a traceback, and exit with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name closest to `name`, or ``""``."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
