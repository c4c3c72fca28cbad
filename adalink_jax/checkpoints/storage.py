"""Folders of checkpoints, read alike on this machine and in Google Cloud Storage (``gs://``).

What is in the cloud is read through TensorStore, which the checkpoints need anyway; it takes
Google's application default credentials, and reads public buckets without any. Nothing is
written there.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from adalink_jax.errors import UserError

REMOTE = "gs://"

# TensorStore would try for a quarter of an hour to reach a cloud that is not there.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}
_ABSENT = "missing; the copy is truncated or unfinished"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder to read from; its methods raise `UserError` with the path where they fail.

    Attributes:
      path: absolute, or ``gs://bucket/path``; without a slash at its end.
    """

    path: str

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "Folder":
        """The folder of a path as a user gives it, ``~`` and relative ones allowed."""
        text = os.fspath(path)
        if text.startswith(REMOTE):
            bucket, *parts = text.removeprefix(REMOTE).split("/")
            if not bucket:
                raise UserError(f"{text}: no bucket; expected gs://BUCKET/PATH")
            return cls(REMOTE + "/".join([bucket, *(part for part in parts if part)]))
        if "://" in text:
            raise UserError(f"{text}: expected a local folder or gs://BUCKET/PATH")
        return cls(os.path.abspath(os.path.expanduser(text)))

    def __str__(self) -> str:
        return self.path

    def __truediv__(self, name: str) -> "Folder":
        """The folder `name` in it."""
        return Folder(f"{self.path}/{name}")

    @property
    def local(self) -> bool:
        """Whether it is on this machine."""
        return not self.path.startswith(REMOTE)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def children(self) -> list[str]:
        """Names of the files and folders in it, sorted; of a remote folder that is not: none."""
        if not self.local:
            return sorted({name.partition("/")[0] for name in self.files()})
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise UserError(f"{self} cannot be read: {error}") from error

    def files(self) -> frozenset[str]:
        """Paths, relative to it, of all files in it and in the folders below."""
        if not self.local:
            return frozenset(self._cloud(lambda store: store.list().result()))
        found: list[str] = []
        pending: list[tuple[str, tuple[str, ...]]] = [("", ())]
        while pending:
            place, above = pending.pop()
            real = os.path.realpath(f"{self.path}/{place}")
            if real in above:
                raise UserError(f"{self.path}/{place}: a loop of symbolic links")
            try:
                with os.scandir(f"{self.path}/{place}") as entries:
                    for entry in entries:
                        if entry.is_dir():
                            pending.append((f"{place}{entry.name}/", (*above, real)))
                        else:
                            found.append(place + entry.name)
            except OSError as error:
                raise UserError(f"{self.path}/{place} cannot be read: {error}") from error
        return frozenset(found)

    def holds_file(self, name: str) -> bool:
        """Whether there is a file `name` directly in it."""
        if self.local:
            return os.path.isfile(f"{self.path}/{name}")
        answer = self._cloud(lambda store: store.read(name, byte_range=slice(0, 0)).result(), name)
        return answer.state == "value"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes ``[start, stop)`` of a file, all of them; an error where it is shorter."""
        where = f"{self.path}/{name}"
        if self.local:
            try:
                with open(where, "rb") as file:
                    file.seek(start)
                    found = file.read(-1 if stop is None else stop - start)
            except FileNotFoundError as error:
                raise UserError(f"{where}: {_ABSENT}") from error
            except (OSError, OverflowError, MemoryError) as error:
                raise UserError(f"{where} cannot be read: {error}") from error
        else:
            part = None if (start, stop) == (0, None) else slice(start, stop)
            answer = self._cloud(lambda store: store.read(name, byte_range=part).result(), name)
            if answer.state != "value":
                raise UserError(f"{where}: {_ABSENT}")
            found = answer.value
        if stop is not None and len(found) != stop - start:
            raise UserError(f"{where}: truncated: {start + len(found)} bytes, expected {stop}")
        return found

    def check_size(self, name: str, size: int) -> None:
        """Checks that a file has exactly `size` bytes."""
        where = f"{self.path}/{name}"
        if self.local:
            try:
                found = os.stat(where).st_size
            except OSError as error:
                raise UserError(f"{where} cannot be read: {error}") from error
            if found != size:
                change = "truncated" if found < size else "damaged"
                raise UserError(f"{where}: {change}: {found} bytes, expected {size}")
            return
        # TensorStore does not say a file's size; it can be asked for the bytes at the end.
        self.read(name, size - 1, size)
        try:
            self.read(name, size, size + 1)
        except UserError:
            return
        raise UserError(f"{where}: damaged: more than the {size} bytes that are expected")

    def kvstore(self, name: str = "") -> dict[str, Any]:
        """TensorStore's description of the folder `name` in it."""
        below = f"/{name}/" if name else "/"
        if self.local:
            return {"driver": "file", "path": self.path + below}
        bucket, _, prefix = (self.path + below).removeprefix(REMOTE).partition("/")
        return {
            "driver": "gcs",
            "bucket": bucket,
            "path": prefix,
            "gcs_request_retries": _RETRIES,
        }

    def _cloud(self, ask: Callable[[Any], Any], name: str = "") -> Any:
        import tensorstore  # Costly; needed only where there is a checkpoint to read.

        try:
            answer = ask(tensorstore.KvStore.open(self.kvstore()).result())
        except Exception as error:  # TensorStore has no class of its own.
            where = f"{self.path}/{name}" if name else self.path
            cut = "truncated: " if "OUT_OF_RANGE" in str(error) else ""
            raise UserError(f"{where} cannot be read: {cut}{reason(error)}") from error
        if isinstance(answer, list):
            return [key.decode(errors="replace") for key in answer]
        return answer


def reason(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
