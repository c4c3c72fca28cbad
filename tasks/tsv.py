"""Reads the tab-separated files of the official GLUE layout, strictly.

The files have no quoting: a quotation mark is text. A line ends only at a line feed (sentences
contain U+2028 and other characters at which `str.splitlines` would break). Spaces are text, too.
QQP's official files have quoted cells and some rows that lack columns. T5 was trained on the cells
as they stand and without these rows, as TFDS reads them. So both are read that way, with a warning.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from tasks.errors import DataError

# A cell as pandas and spreadsheets write one that has quotation marks: these are doubled.
_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')

logger = logging.getLogger(__name__)


def read_bytes(path: str) -> bytes:
    """Returns the content of a file, local or remote.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with tf.io.gfile.GFile(os.path.expanduser(path), "rb") as file:
            return file.read()
    except tf.errors.OpError as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from error


def read_lines(path: str) -> list[str]:
    """Returns the lines of a UTF-8 file, which end at line feeds only, without empty last ones.

    Raises:
      DataError: the file cannot be read, or is not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")  # Microsoft's files start with a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def count_rows(path: str, *, columns: int | None = None) -> int:
    """Returns the number of rows that `read_rows` yields, without parsing them.

    Args:
      path: the file.
      columns: the number of columns of a file without a header line; else the header says it.
    """
    lines = read_bytes(path).rstrip(b"\r\n").split(b"\n")
    tabs = columns - 1 if columns else lines[0].count(b"\t")
    return sum(line.count(b"\t") >= tabs for line in lines[0 if columns else 1 :] if line)


def header_of(path: str) -> tuple[str, ...]:
    """Returns the cells of a file's first line."""
    return tuple((read_lines(path) or [""])[0].split("\t"))


def read_rows(
    path: str,
    columns: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    whole: bool = False,
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields the given columns of every row with its line number.

    Rows with fewer columns than the header are left out, and counted in a warning. Cells that look
    quoted are text, with a warning, too.

    Args:
      path: the file, as the user wrote it (it appears in errors).
      columns: names of the columns to yield, in this order.
      header: the file's column names, if it has no header line.
      whole: whether a row that lacks columns is an error.

    Yields:
      (line number counted from 1, texts of the columns).

    Raises:
      DataError: the file is unreadable or empty, a column is missing, or every row (with `whole`,
        a row) has fewer columns than the header. Extra columns are ignored, as in TFDS.
    """
    lines = read_lines(path)
    first = 1 if header else 2
    if len(lines) < first:
        raise DataError(f"{path}: no rows")
    header = tuple(header or lines[0].split("\t"))
    for column in columns:
        if column not in header:
            raise DataError(f"{path}:1: no column '{column}'; found {', '.join(header)}")
    positions = [header.index(column) for column in columns]
    short, quoted = [], []
    for number, line in enumerate(lines[first - 1 :], start=first):
        cells = line.split("\t")
        if len(cells) >= len(header):
            chosen = tuple(cells[position] for position in positions)
            if '""' in line and any(map(_QUOTED.fullmatch, chosen)):
                quoted.append(number)
            yield number, chosen
            continue
        short.append(number)
        if whole or len(short) == len(lines) - first + 1:
            raise DataError(
                f"{path}:{number}: {len(cells)} columns; expected {len(header)} "
                f"({', '.join(header)})"
            )
    if short:
        logger.warning(
            "%s: %d of %d rows lack columns and are left out, the first in line %d",
            path, len(short), len(lines) - first + 1, short[0],
        )  # fmt: skip
    if quoted:
        logger.warning(
            "%s: cells in %d lines look quoted, the first in line %d; quotation marks are read as "
            "text, as T5 read GLUE's own (QQP has such cells); what pandas or a spreadsheet wrote "
            "must be written again without quoting",
            path, len(quoted), quoted[0],
        )  # fmt: skip


def class_parser(labels: Sequence[str]):
    """Returns a parser of class labels: the name or its index, as in TFDS, to the index."""
    known = {str(i): i for i in range(len(labels))} | {name: i for i, name in enumerate(labels)}

    def parse(text: str) -> int:
        if text not in known:
            allowed = ", ".join(f"{name} ({i})" for i, name in enumerate(labels))
            raise ValueError(f"expected one of {allowed}")
        return known[text]

    return parse


def score_parser(lowest: float, highest: float):
    """Returns a parser of scores in a closed range."""

    def parse(text: str) -> float:
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not lowest <= score <= highest:
            raise ValueError(f"expected a number from {lowest:g} to {highest:g}")
        return score

    return parse


def read_examples(
    path: str, fields: Mapping[str, str], label_column: str | None, parse_label, *, header=None
) -> dict[str, list]:
    """Reads a file into columns: the text fields, `label` and `idx`.

    Without labels, every row must be whole, because predictions of them are wanted by row.

    Args:
      path: the file, as the user wrote it.
      fields: field name → the name of its column.
      label_column: name of the label's column; None for a file without labels.
      parse_label: turns a label's text into its value; raises ValueError that says what is
        expected. For a file without labels, it gets "".
      header: see `read_rows`.

    Returns:
      Lists of equal length: each field's texts, the labels' values, and row numbers from 0, in
      which rows that are left out count.

    Raises:
      DataError: see `read_rows`; also for an invalid label, with its line.
    """
    result: dict[str, list] = {name: [] for name in (*fields, "label", "idx")}
    wanted = (*fields.values(), *([] if label_column is None else [label_column]))
    rows = read_rows(path, wanted, header=header, whole=label_column is None)
    for number, cells in rows:
        text = "" if label_column is None else cells[-1]
        try:
            label = parse_label(text)
        except ValueError as error:
            raise DataError(f"{path}:{number}: label '{text}'; {error}") from error
        for name, cell in zip(fields, cells, strict=False):
            result[name].append(cell)
        result["label"].append(label)
        result["idx"].append(number - (1 if header else 2))
    return result
