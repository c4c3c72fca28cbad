"""Which cases of a test run in the short tier."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], short: Container[Any]) -> list[Any]:
    """Returns the cases of a parameter, those that are not in `short` marked as slow.

    Args:
      cases: the values, tuples for several parameters.
      short: the values that stand for the others in the short tier.
    """
    return [case if case in short else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
