"""The error for a user's mistake, with a one-line message."""

import difflib
import pathlib
import sys
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


def without_environment(package: str) -> str:
    """Returns the message for a Python that lacks the packages of this project.

    Args:
      package: one that it lacks.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    checkout, made = (root / "setup.py").is_file(), root / ".venv/bin/adalink"
    install = f"{sys.executable} -m pip install {f'-e {root}' if checkout else 'adalink_jax'}"
    run = f"run {made}, or " if made.is_file() else ""
    return f"{package} is not installed for {sys.executable}; {run}{install}"
