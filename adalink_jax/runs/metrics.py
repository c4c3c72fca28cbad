"""The metrics of a run: ``metrics.jsonl``, a line of JSON for each measurement."""

import contextlib
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from adalink_jax import files
from adalink_jax.errors import UserError

logger = logging.getLogger(__name__)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns all lines of a finished run's metrics.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: a line is damaged.
    """
    return [line for _, line in _lines(path, path.read_bytes())]


def _lines(path: pathlib.Path, content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each complete line with its values; a kill can leave a last one that is not."""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            raise UserError(
                f"{path}, line {number}: damaged; delete the file to go on without its lines"
            )
        yield line, values


class Metrics:
    """The metrics of a run that begins or goes on.

    Args:
      path: the file.
      digest: its `files.digest` when it was last known to be right; None if nobody knows.
      step: lines of later steps are left out; at step 0 the run begins anew, without lines.

    Raises:
      UserError: it was damaged or altered.
    """

    def __init__(self, path: pathlib.Path, digest: Mapping[str, Any] | None, step: int):
        self._path = path
        self._file: io.FileIO | None = None
        content = path.read_bytes() if path.exists() else b""
        if digest is not None and not path.exists():
            logger.warning("%s is missing: it begins anew after step %d", path, step)
        elif digest is not None:
            try:
                files.check_digests(path.parent, {path.name: digest})
            except UserError as error:
                raise UserError(f"{error}; delete it to go on without its lines") from error
            # Later lines are those of steps that are not in any checkpoint.
            content = content[: digest["bytes"]]
        self._kept = b""
        for line, values in _lines(path, content):
            if values["step"] > step or step == 0:
                break
            self._kept += line
        self._sha256, self._bytes = hashlib.sha256(self._kept), len(self._kept)

    def digest(self) -> dict[str, Any]:
        """Returns the `files.digest` of all lines."""
        return {"bytes": self._bytes, "sha256": self._sha256.hexdigest()}

    def open(self) -> None:
        """Cuts the file back to the lines that are kept; then it can be written."""
        with files.replaced_file(self._path) as file:
            file.write(self._kept)
        with files.writing(self._path):
            # Without a buffer: closing the file then has nothing to write, and cannot fail.
            self._file = self._path.open("ab", buffering=0)

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        line = json.dumps(values).encode() + b"\n"
        left = line
        assert self._file is not None  # Since `open`.
        with files.writing(self._path):
            while left:
                left = left[self._file.write(left) :]
        self._sha256.update(line)
        self._bytes += len(line)

    def sync(self) -> None:
        """Flushes all lines to disk."""
        assert self._file is not None  # Since `open`.
        with files.writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # All that matters is on disk since `sync`.
                self._file.close()
