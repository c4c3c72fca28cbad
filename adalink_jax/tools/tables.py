"""Formats tables and numbers for the tools' output."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Returns a table in Markdown, without a line break at the end.

    Args:
      header: the column names.
      rows: the cells of each row.
      text_columns: number of leading columns with text. The others hold numbers and are aligned
        right.
    """
    numbers = len(header) - text_columns
    rule = [*["---"] * text_columns, *["---:"] * numbers]
    lines = [_escaped(header), rule, *map(_escaped, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a table as CSV; a cell is empty if its row has no value for the column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def in_bytes(count: float) -> str:
    """Formats a number of bytes in the largest binary unit that is at most that: 15.75 GiB."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.2f} {unit}"
    raise AssertionError


def in_thousands(count: float) -> str:
    """Formats a number with a decimal unit: 12.3 M."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if abs(count) < 1000 or unit == " P":
            return f"{count:.4g}{unit}"
        count /= 1000
    raise AssertionError
