"""Reads JSON and JSON Lines strictly: a fault is said with its file, line and field."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tasks import tsv
from tasks.errors import DataError

# JSON can escape half of a character ("\\ud83d"), which no file of UTF-8 holds.
_LONE = re.compile("[\ud800-\udfff]")
_KINDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


class Record:
    """A JSON object, and where in which file it stands.

    Attributes:
      where: the file as the user wrote it, with the line, if the file is of JSON Lines.
    """

    def __init__(self, where: str, content: Any, place: str = ""):
        """Takes an object.

        Args:
          where: see the class.
          content: what the file holds there.
          place: the field that holds the object, "passage.questions[2]"; "" for a whole line.

        Raises:
          DataError: it is no object.
        """
        self.where, self._place = where, place
        self._content = content
        if not isinstance(content, dict):
            raise self._fault(place, content, _KINDS[dict])

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def text(self, name: str) -> str:
        """Returns a field that is a text; raises `DataError` if it is missing or something else."""
        found = self._of_kind(name, str)
        if not found.isascii() and _LONE.search(found):
            raise self.fault(name, "a text without halves of characters")
        return found

    def integer(self, name: str) -> int:
        """Returns a field that is a whole number of 32 bits; raises as `text` does."""
        found = self._of_kind(name, int)
        if not -(2**31) <= found < 2**31:
            raise self.fault(name, "a whole number of 32 bits")
        return found

    def record(self, name: str) -> "Record":
        """Returns a field that is an object; raises as `text` does."""
        return Record(self.where, self._of_kind(name, dict), self._full(name))

    def records(self, name: str) -> list["Record"]:
        """Returns a field that is a list of objects; raises as `text` does."""
        found = self._of_kind(name, list)
        return [Record(self.where, one, f"{self._full(name)}[{i}]") for i, one in enumerate(found)]

    def label(self, labels: Sequence[str], name: str = "label") -> int:
        """Returns the index of a field that is a label: its name, its index, or a truth value.

        Args:
          labels: the names by index; ("False", "True") also takes false and true.
          name: the field.

        Raises:
          DataError: it is missing, or none of these.
        """
        given = self._get(name)
        if isinstance(given, bool) and tuple(labels) != ("False", "True"):
            given = str(given).lower()
        if isinstance(given, int) and 0 <= given < len(labels):
            return int(given)
        if given not in labels:
            allowed = ", ".join(f"{label} ({i})" for i, label in enumerate(labels))
            raise self._fault(self._full(name), given, f"one of {allowed}")
        return labels.index(given)

    def fault(self, name: str, expected: str) -> DataError:
        """Returns the error that a field is not what is expected."""
        return self._fault(self._full(name), self._content.get(name), expected)

    def _full(self, name: str) -> str:
        return f"{self._place}.{name}" if self._place else name

    def _get(self, name: str) -> Any:
        if name not in self._content:
            found = ", ".join(self._content) or "nothing"
            raise DataError(f"{self.where}: no field '{self._full(name)}'; found {found}")
        return self._content[name]

    def _of_kind(self, name: str, kind: type) -> Any:
        found = self._get(name)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self._fault(self._full(name), found, _KINDS[kind])
        return found

    def _fault(self, name: str, given: Any, expected: str) -> DataError:
        shown = json.dumps(given, ensure_ascii=False).encode(errors="backslashreplace").decode()
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        subject = f"field '{name}'" if name else "the line"
        return DataError(f"{self.where}: {subject} is {shown}; expected {expected}")


def read_lines(path: str) -> Iterator[Record]:
    """Yields the objects of a file of JSON Lines.

    Raises:
      DataError: the file cannot be read, has no lines, or a line is no JSON object.
    """
    lines = tsv.read_lines(path)
    if not lines:
        raise DataError(f"{path}: no lines")
    for number, line in enumerate(lines, start=1):
        yield Record(f"{path}:{number}", _parsed(f"{path}:{number}", line))


def read_object(path: str) -> Record:
    """Returns the one object of a JSON file; raises `DataError` as `read_lines` does."""
    return Record(path, _parsed(path, "\n".join(tsv.read_lines(path))))


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
