"""The error for a user's mistake, with a one-line message."""

import difflib
import pathlib
import shlex
import sys
from collections.abc import Iterable

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: what was given, what is expected, and where it was set. Commands print
    it as ``error: …`` without a traceback, and exit with code 2.
    """


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name closest to `name`, or ``""``.

    Args:
      name: what was written.
      known: the names that there are.
      cutoff: how alike the two must be, from 0 to 1.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def without_environment(package: str) -> str:
    """Returns the message for a Python that lacks the packages of this project.

    Args:
      package: one that it lacks.
    """
    made = _ROOT / ".venv/bin/adalink"
    run = f"run {made}, or " if made.is_file() else ""
    return f"{package} is not installed for {sys.executable}; {run}{install()}"


def install(extra: str = "") -> str:
    """Returns the command that installs this package for this Python, or an extra of it.

    In a checkout it is installed as it lies there: a copy would not follow the checkout.
    """
    checkout = (_ROOT / "setup.py").is_file()
    what = f"{_ROOT if checkout else 'adalink_jax'}{f'[{extra}]' if extra else ''}"
    return f"{sys.executable} -m pip install {'-e ' * checkout}{shlex.quote(what)}"
