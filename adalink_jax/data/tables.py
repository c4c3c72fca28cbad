"""Reads tables of any supported format into rows whose places can be named.

A file ends in ``.csv``, ``.tsv``, ``.jsonl`` (or ``.ndjson``, or ``.json``) or ``.parquet``. A
folder is what ``save_to_disk`` of Hugging Face's `datasets` writes; that package is not needed. The
same rows give the same texts in every format.
"""

import csv
import dataclasses
import functools
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.errors import UserError, nearest

# A suffix → the delimiter of its cells; None looks for one in the first line.
_DELIMITERS = {".csv": None, ".txt": None, ".tsv": "\t", ".tab": "\t"}
_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_JSON = (".jsonl", ".ndjson", ".json")
_KNOWN = ".csv, .tsv, .jsonl or .parquet, or a folder that save_to_disk of datasets wrote"
# Columns that are used if none are named; the first match wins.
INPUTS = ("text", "inputs", "input", "sentence", "question", "prompt")
PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "context"),
    ("question", "sentence"),
)
TARGETS = ("label", "labels", "target", "targets", "output", "answer")
_USUAL = {*INPUTS, *TARGETS, *(name for pair in PAIRS for name in pair)}
_SAVE_AS = ", but UTF-16: save it as CSV UTF-8"
# A message names so many places; the others are counted.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a table.

    Attributes:
      columns: column → its N values, all texts or None in tables of files.
      name: what the table is called, such as "reviews.csv"; "" for Python's objects.
      unit: what `numbers` count: "line", "row" or "example".
      numbers: where each of the N rows stands.
      form: how the file was understood, such as "cells between commas".
      classes: column of class ids → the classes' names.
    """

    columns: Mapping[str, Sequence[Any]]
    name: str = ""
    unit: str = "example"
    numbers: Sequence[int] = ()
    form: str = ""
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def of_file(self) -> bool:
        """Whether all values are texts, as those of files are."""
        return self.unit != "example"

    def at(self, rows: Iterable[int]) -> str:
        """Returns where rows stand: "reviews.csv:5", or "reviews.csv, lines 5, 9 and 3 more"."""
        numbers = [self.numbers[row] for row in rows]
        named = ", ".join(
            f"{number:,}" if self.unit == "row" else str(number) for number in numbers[:_NAMED]
        )
        if len(numbers) > _NAMED:
            named += f" and {len(numbers) - _NAMED:,} more"
        if len(numbers) == 1 and self.unit == "line":
            return f"{self.name}:{named}"
        where = f"{self.unit}{'s' * (len(numbers) > 1)} {named}"
        return f"{self.name}, {where}" if self.name else where


def read(
    path: str,
    split: str | None = None,
    *,
    delimiter: str | None = None,
    header: Sequence[str] | None = None,
    quotes: bool | None = None,
    known: Sequence[str] = (),
) -> Rows:
    """Reads a file or a folder.

    Args:
      path: the file or folder, as the user wrote it.
      split: the split of a folder that has several.
      delimiter: what stands between cells of a text file; None takes it from the name, or from the
        first line of a ``.csv``.
      header: the names of the columns of a text file without a header line; None looks whether the
        first line is one.
      quotes: whether quotation marks around a cell of a text file are none of its text; None takes
        them so, unless a tab-separated file has other marks too.
      known: columns that the user names; a first line with one of them is a header.

    Raises:
      UserError: no such file, an unknown format, or content that is not of its format, each with
        the line or row.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        return _folder(place, split)
    if not place.exists():
        there = place.parent if place.parent.is_dir() else pathlib.Path()
        guess = nearest(place.name, (file.name for file in there.iterdir()))
        raise UserError(f"{path}: no such file{guess}")
    suffix = place.suffix.lower()
    if suffix == ".parquet":
        return _parquet(place)
    if suffix in _JSON:
        return _json(place, _text(place))
    if suffix in _DELIMITERS:
        return _cells(place, _text(place), delimiter or _DELIMITERS[suffix], header, quotes, known)
    raise UserError(f"{path}: a table's name ends in {_KNOWN}")


def splits(path: str) -> tuple[str, ...]:
    """Returns the names of the splits of a folder; none for a file, or a folder of one table."""
    record = pathlib.Path(path) / "dataset_dict.json"
    return tuple(_record(record).get("splits", ())) if record.is_file() else ()


def _text(path: pathlib.Path) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # Spreadsheets write a byte order mark.
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise UserError(f"{path.name}:{line}: not UTF-8 text{_SAVE_AS if wide else ''}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path.name}:{line}: holds a zero byte, so it is no text")
    return text


def _cells(
    path: pathlib.Path,
    text: str,
    delimiter: str | None,
    header: Sequence[str] | None,
    quotes: bool | None,
    known: Sequence[str],
) -> Rows:
    """Reads cells between delimiters."""
    name, first = path.name, text.partition("\n")[0]
    if delimiter is None:
        delimiter = next((mark for mark in _WORDS if mark in first), ",")
    between = _WORDS.get(delimiter, repr(delimiter))
    lines, marks = _quoted_or_not(name, text, delimiter, quotes)
    if not lines:
        raise UserError(f"{name}: no rows")
    if (wrong := _ragged(lines)) is not None:
        number, cells = lines[wrong]
        hint = f"; a cell that holds {between} needs quotation marks" if not marks else ""
        raise UserError(
            f"{name}:{number}: {len(cells)} cells, where line {lines[0][0]} has "
            f"{len(lines[0][1])}{hint}"
        )
    if several := [number for number, cells in lines if any("\n" in cell for cell in cells)]:
        marks += (
            f" ({len(several):,} rows with a line break in a cell, the first in line {several[0]})"
        )
    head = [cell.strip() for cell in lines[0][1]]
    if header is not None:
        _check_header(name, lines[0], header)
        names, said = list(header), "no header line"
    elif reason := _no_header([cells for _, cells in lines], known):
        names = [str(i) for i in range(1, len(head) + 1)]
        said = f"no header line, as {reason}"
    else:
        names, lines, said = head, lines[1:], f"columns {', '.join(head)}"
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise UserError(f"{name}:1: two columns are named '{twice}'")
    if not lines:
        raise UserError(f"{name}: no rows below its header")
    columns = dict(
        zip(names, map(list, zip(*(cells for _, cells in lines), strict=True)), strict=True)
    )
    numbers = [number for number, _ in lines]
    return Rows(columns, name, "line", numbers, f"cells between {between}{marks}; {said}")


def _quoted_or_not(
    name: str, text: str, delimiter: str, quotes: bool | None
) -> tuple[list[tuple[int, list[str]]], str]:
    """Returns the cells of each line, and what is to be said of quotation marks."""
    lines, failed = [], None
    try:
        lines = _lines(name, text, delimiter, quotes is not False)
    except UserError as error:
        failed = error
    if quotes is None and delimiter == "\t" and '"' in text:
        # As in GLUE's files, where a quotation mark is a part of the text: one that opens a cell
        # would take the lines up to the next one with it.
        plain = _lines(name, text, delimiter, False)
        worse = failed or _ragged(lines) is not None or len(lines) < len(plain)
        if worse and _ragged(plain) is None:
            return plain, ", in which quotation marks are text"
    if failed:
        raise failed
    return lines, ""


def _lines(name: str, text: str, delimiter: str, quotes: bool) -> list[tuple[int, list[str]]]:
    """Returns the cells of each line that has some, with the number of the line it begins in."""
    if not quotes:
        found = (line.removesuffix("\r") for line in text.split("\n"))
        return [(n, line.split(delimiter)) for n, line in enumerate(found, 1) if line.strip()]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines, start = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        said = "a quotation mark opens a cell and none closes it where the cell ends"
        said = said if "field limit" not in str(error) else "a cell of more than 131,072 characters"
        raise UserError(
            f"{name}:{start}: {said}; Table.quotes=False takes quotation marks as text"
        ) from error
    return lines


def _ragged(lines: Sequence[tuple[int, list[str]]]) -> int | None:
    """Returns the first line with another number of cells than the first one."""
    return next((i for i, (_, cells) in enumerate(lines) if len(cells) != len(lines[0][1])), None)


def _check_header(name: str, first: tuple[int, list[str]], header: Sequence[str]) -> None:
    number, cells = first
    if len(cells) != len(header):
        raise UserError(
            f"{name}:{number}: {len(cells)} cells, but Table.header names {len(header)}"
        )
    if len({cell.strip().casefold() for cell in cells} & {*_USUAL, *map(str.casefold, header)}) > 1:
        raise UserError(
            f"{name}:{number}: this is a header line, no example; leave Table.header out"
        )


def _no_header(rows: Sequence[Sequence[str]], known: Iterable[str]) -> str:
    """Returns why the first row is no header; "" if it is one.

    It is one if two of its cells are names of columns that are known. Else a header's cells are
    names, of which none stands in its own column again, but where the whole header does.
    """
    cells = {cell.strip().casefold() for cell in rows[0]}
    if len(cells & _USUAL) > 1 or set(known) & {cell.strip() for cell in rows[0]}:
        return ""
    others = [row for row in rows if row != rows[0]]
    for column, cell in enumerate(rows[0]):
        if not cell.strip():
            return "a cell of line 1 is empty"
        if number(cell) is not None:
            return f"'{cell}' of line 1 is a number"
        if any(row[column] == cell for row in others):
            return f"'{cell}' of line 1 stands in other lines too"
    return ""


def number(text: str) -> float | None:
    """Returns a text as a finite number; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    if "_" in text:  # As Python writes numbers, and nobody else.
        return None
    return value if math.isfinite(value) else None


def _json(path: pathlib.Path, text: str) -> Rows:
    """Reads one object a line, or a list of objects."""
    found: list[tuple[int, Any]] = []
    unit, said = "line", "an object a line"
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        unit, said = "row", "a list of objects"
        found = list(enumerate(_loaded(path.name, text), 1))
    else:
        for line, content in enumerate(text.split("\n"), 1):
            if content.strip():
                found.append((line, _loaded(f"{path.name}:{line}", content)))
    if not found:
        raise UserError(f"{path.name}: no rows")
    for place, one in found:
        if not isinstance(one, dict) or not one:
            where = f"{path.name}:{place}" if unit == "line" else f"{path.name}, row {place}"
            raise UserError(f'{where}: expected an object such as {{"text": "…", "label": "…"}}')
    names = dict.fromkeys(name for _, one in found for name in one)
    columns = {name: [text_of(one.get(name)) for _, one in found] for name in names}
    return Rows(
        columns, path.name, unit, [place for place, _ in found], f"{said}; keys {', '.join(names)}"
    )


def _loaded(where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_object, where))
    except (ValueError, RecursionError) as error:
        message = getattr(error, "msg", type(error).__name__)
        raise UserError(f"{where}: not JSON: {message}") from error


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: '{twice}' stands in one object twice")
    return dict(pairs)


def text_of(value: Any) -> Any:
    """Returns a cell's value as the text that a CSV would have; None for a missing one.

    A value that no cell of a CSV has (a list, bytes) is returned as it is.
    """
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, bool | int | float) else value


def _parquet(path: pathlib.Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        _check_columns(parquet.read_schema(path).names, path.name)
        table = parquet.read_table(path)
        table.validate(full=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path.name}: not a Parquet file, or damaged") from error
    return _arrow(table, path.name, "Parquet", _features(table))


def _check_columns(names: Sequence[str], where: str) -> None:
    if twice := [one for one in names if names.count(one) > 1]:
        raise UserError(f"{where}: '{twice[0]}' is the name of two columns")


def _features(table: Any) -> Mapping[str, Any]:
    """Returns what `datasets` notes of the columns in the files that it writes."""
    try:
        noted = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        return noted.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}


def _folder(path: pathlib.Path, split: str | None) -> Rows:
    """Reads a folder of ``save_to_disk``: Arrow streams, with records of what they are."""
    import pyarrow

    several = splits(str(path))
    if several:
        if split not in several:
            wanted = f"no split '{split}'; it has" if split else "give one of its folders,"
            raise UserError(f"{path}: {wanted} {', '.join(several)}")
        path = path / split
    state_file = path / "state.json"
    if not state_file.is_file():
        raise UserError(f"{path}: a folder without state.json; a table's name ends in {_KNOWN}")
    state = _record(state_file)
    name = f"{path.parent.name}/{path.name}" if several else path.name
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{name}: saved with a selection of rows; save its flatten_indices()")
    parts = []
    for entry in state.get("_data_files") or ():
        file = path / str(entry["filename"])
        try:
            with pyarrow.memory_map(str(file)) as source:
                parts.append(pyarrow.ipc.open_stream(source).read_all())
                parts[-1].validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{name}/{file.name}: cannot be read, or is damaged") from error
    if not parts:
        raise UserError(f"{name}: no rows")
    features = _record(path / "dataset_info.json").get("features") or {}
    return _arrow(pyarrow.concat_tables(parts), name, "a folder of datasets", features)


def _record(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read, or is damaged") from error
    if not isinstance(record, Mapping):
        raise UserError(f"{path}: damaged: not an object")
    return record


def _arrow(table: Any, name: str, form: str, features: Mapping[str, Any]) -> Rows:
    if not table.num_rows:
        raise UserError(f"{name}: no rows")
    _check_columns(table.column_names, name)
    columns = {column: _Lazy(table.column(column)) for column in table.column_names}
    classes = {
        column: tuple(feature["names"])
        for column, feature in features.items()
        if isinstance(feature, Mapping)
        and feature.get("_type") == "ClassLabel"
        and feature.get("names")
    }
    said = f"{form}; columns {', '.join(table.column_names)}"
    return Rows(columns, name, "row", range(1, table.num_rows + 1), said, classes)


class _Lazy(Sequence):
    """An Arrow column, whose values are made into texts when the first of them is read."""

    def __init__(self, column: Any):
        self._column = column
        self._values: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        if self._values is None:
            make: Callable[[Any], Any] = text_of
            if str(self._column.type) in ("float", "halffloat"):  # 0.1, not 0.10000000149011612.
                make = _short
            self._values = [make(value) for value in self._column.to_pylist()]
        return self._values[index]


def _short(value: float | None) -> str | None:
    return None if value is None else text_of(float(str(np.float32(value))))
