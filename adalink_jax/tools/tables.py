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


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as CSV, whose cells are the ones that are given."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def latex(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    text_columns: int = 1,
    notes: Sequence[str] = (),
) -> str:
    """Returns a table as LaTeX, with the rules of booktabs.

    Args:
      header: the column names.
      rows: the cells of each row.
      text_columns: number of leading columns with text; the others are aligned right.
      notes: lines to write below the table.
    """
    columns = "l" * text_columns + "r" * (len(header) - text_columns)
    header, *lines = (" & ".join(map(_latex, row)) + r" \\" for row in (header, *rows))
    table = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines]
    below = [rf"\par\footnotesize {_latex(note)}" for note in notes]
    return "\n".join([*table, r"\bottomrule", r"\end{tabular}", *below]) + "\n"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "×": r"$\times$", "−": "--", "…": r"\dots{}",
    **{mark: f"$^{{{letter}}}$" for mark, letter in zip("ᵃᵇᶜᵈᵉᶠᵍʰ", "abcdefgh", strict=True)},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


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
