"""Folders of checkpoints, on this machine or in Google Cloud Storage (``gs://``).

Cloud storage is read through TensorStore, which checkpoints need anyway. It uses Google's
application default credentials; public buckets need none. Nothing is written there.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from adalink_jax.errors import UserError

REMOTE = "gs://"

# By default TensorStore retries for a quarter of an hour when the cloud cannot be reached.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}
_ABSENT = "missing; the copy is truncated or unfinished"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder to read from. Its methods raise `UserError` with the path on failure.

    Attributes:
      path: absolute, or ``gs://bucket/path``; without a slash at the end.
    """

    path: str

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "Folder":
        """Returns the folder of a user's path, which may be relative or start with ``~``."""
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
        """Returns the folder `name` in it."""
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
        """Returns the sorted names of files and folders in it; none for an absent remote one."""
        if not self.local:
            return sorted({name.partition("/")[0] for name in self.files()})
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise UserError(f"{self} cannot be read: {error}") from error

    def files(self) -> frozenset[str]:
        """Returns the relative paths of all files in it and in the folders below."""
        if not self.local:
            return frozenset(self._cloud(lambda store: store.list().result()))
        paths: list[str] = []
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
                            paths.append(place + entry.name)
            except OSError as error:
                raise UserError(f"{self.path}/{place} cannot be read: {error}") from error
        return frozenset(paths)

    def size(self) -> int | None:
        """Returns the bytes of all files in it and below; None in the cloud, which is not asked."""
        if not self.local:
            return None
        try:
            return sum(os.stat(f"{self.path}/{name}").st_size for name in self.files())
        except OSError as error:
            raise UserError(f"{self} cannot be read: {error}") from error

    def holds_file(self, name: str) -> bool:
        """Returns whether it directly contains a file `name`."""
        if self.local:
            return os.path.isfile(f"{self.path}/{name}")
        answer = self._cloud(lambda store: store.read(name, byte_range=slice(0, 0)).result(), name)
        return answer.state == "value"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Returns the bytes ``[start, stop)`` of a file; raises an error if it is shorter."""
        where = f"{self.path}/{name}"
        if self.local:
            try:
                with open(where, "rb") as file:
                    file.seek(start)
                    content = file.read(-1 if stop is None else stop - start)
            except FileNotFoundError as error:
                raise UserError(f"{where}: {_ABSENT}") from error
            except (OSError, OverflowError, MemoryError) as error:
                raise UserError(f"{where} cannot be read: {error}") from error
        else:
            part = None if (start, stop) == (0, None) else slice(start, stop)
            answer = self._cloud(lambda store: store.read(name, byte_range=part).result(), name)
            if answer.state != "value":
                raise UserError(f"{where}: {_ABSENT}")
            content = answer.value
        if stop is not None and len(content) != stop - start:
            raise UserError(f"{where}: truncated: {start + len(content)} bytes, expected {stop}")
        return content

    def check_size(self, name: str, size: int) -> None:
        """Checks that a file has exactly `size` bytes."""
        where = f"{self.path}/{name}"
        if self.local:
            try:
                actual = os.stat(where).st_size
            except OSError as error:
                raise UserError(f"{where} cannot be read: {error}") from error
            if actual != size:
                change = "truncated" if actual < size else "damaged"
                raise UserError(f"{where}: {change}: {actual} bytes, expected {size}")
            return
        # TensorStore does not report a file's size, but can read the bytes at the end.
        self.read(name, size - 1, size)
        try:
            self.read(name, size, size + 1)
        except UserError:
            return
        raise UserError(f"{where}: damaged: more than the {size} bytes that are expected")

    def kvstore(self, name: str = "") -> dict[str, Any]:
        """Returns TensorStore's spec of the folder `name` in it."""
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
        import tensorstore  # Slow to import; needed only to read a checkpoint.

        try:
            answer = ask(tensorstore.KvStore.open(self.kvstore()).result())
        except Exception as error:  # TensorStore has no error class of its own.
            where = f"{self.path}/{name}" if name else self.path
            cut = "truncated: " if "OUT_OF_RANGE" in str(error) else ""
            raise UserError(f"{where} cannot be read: {cut}{reason(error)}") from error
        if isinstance(answer, list):
            return [key.decode(errors="replace") for key in answer]
        return answer


def reason(error: Exception) -> str:
    """Returns an exception's message in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
