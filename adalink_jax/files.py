"""Atomic writes of local files and folders, locks of folders, digests of files, and records.

A file or folder is written under a hidden name next to its path, flushed to disk (fsync), then
renamed. If the process is killed at any time, the path holds either the old content or the new one,
never a part. At most a hidden file or folder is left next to it, until the next write.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from adalink_jax import locks
from adalink_jax.errors import UserError

# A URL's scheme, also if `pathlib` has removed one of the two slashes. Windows drives have only
# one letter, so they do not match.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")

_LOCK, _SEAL = ".lock", "record_sha256"

# What helps where a disk refuses.
_ADVICE = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of your quota on its disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
}


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path to write to, with ``~`` expanded.

    Raises:
      UserError: the path is a URL, such as ``gs://bucket/run``.
    """
    text = os.fspath(path)
    if url := _URL.match(text):
        raise UserError(
            f"{text} cannot be written: files and run folders are on this machine's file system "
            f"only; give a local path, and copy it to {url[1]}://… afterwards"
        )
    return pathlib.Path(os.path.expanduser(text))


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an `OSError` inside the block into a `UserError` with the path and the reason.

    Args:
      path: the path that is written.

    Raises:
      UserError: no space, no permission, a file where a folder is needed, and so on.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        blocking = error.filename
        if isinstance(blocking, str) and pathlib.Path(blocking) in pathlib.Path(path).parents:
            reason += f": {blocking}"
        if error.errno in _ADVICE:
            reason += f"; {_ADVICE[error.errno]}"
        for link in (pathlib.Path(path), *pathlib.Path(path).parents):
            if os.path.islink(link) and not os.path.exists(link):
                reason = f"{link} is a link to {os.readlink(link)}, which is not there"
        raise UserError(f"{path} cannot be written: {reason}") from error


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file to write to. It replaces `path` if the block ends without an error.

    Several processes may write the same path at once; the last one to end wins.

    Args:
      path: a local path; parent folders are created, an existing file is replaced.

    Raises:
      UserError: as in `local_path` and `writing`.
    """
    path = local_path(path)
    partial = path.with_name(f".{path.name}.{locks.process()}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_partials(path)
        try:
            # `tempfile` is not used, because only the owner could read its files.
            with partial.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()


def _remove_partials(path: pathlib.Path) -> None:
    """Removes what killed processes of this machine left of a file that `replaced_file` writes."""
    partial = re.compile(rf"\.{re.escape(path.name)}\.(\w+-\d+-\d+)\.[0-9a-f]{{8}}")
    for name in os.listdir(path.parent):
        if (left := partial.fullmatch(name)) and locks.runs(left[1]) is False:
            with contextlib.suppress(OSError):
                path.with_name(name).unlink()


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes a file of UTF-8 text with `replaced_file`."""
    with replaced_file(path) as file:
        file.write(content.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `path` if the block ends without an error.

    Args:
      path: a local path that does not exist; parent folders are created.

    Raises:
      UserError: `path` exists, and is never overwritten; another process writes it; or as in
        `local_path` and `writing`.
    """
    path = local_path(path)
    _check_free(path)
    with _folder_beside(path) as partial:
        yield partial
        _sync_tree(partial)
        _check_free(path)
        partial.rename(path)
        _sync(path.parent)


@contextlib.contextmanager
def replaced_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder that replaces `path` if the block ends without an error.

    An existing folder stays until then. Readers get the folder's path from `present_folder`.

    Args:
      path: a local path; parent folders are created.

    Raises:
      UserError: another process writes it; or as in `local_path` and `writing`.
    """
    path = local_path(path)
    previous = _previous(path)
    with _folder_beside(path) as partial:
        yield partial
        _sync_tree(partial)
        # A folder cannot be renamed onto one that is not empty.
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(previous, ignore_errors=True)


def present_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a folder written by `replaced_folder`.

    That is `path`, or the previous folder if a replacement was killed between its two renames.
    """
    path = pathlib.Path(path)
    previous = _previous(path)
    return previous if previous.is_dir() and not path.exists() else path


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], what: str) -> Iterator[Callable[[], None]]:
    """Holds a folder for this process with a lock, the file ``.lock`` in it; see `locks.locked`.

    Args:
      folder: a local folder; created if it does not exist, and removed again if nothing was
        written.
      what: its name in errors, such as "MODEL_DIR".

    Yields:
      A function that raises `UserError` if the lock was lost. Call it before you write.

    Raises:
      UserError: another process holds the folder; or as in `local_path` and `writing`.
    """
    folder = local_path(folder)
    new = not os.path.lexists(folder)
    try:
        with contextlib.ExitStack() as open_:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                check = open_.enter_context(locks.locked(folder / _LOCK, f"{what} {folder}"))
            yield check
    finally:
        if new:
            with contextlib.suppress(OSError):  # Something was written.
                folder.rmdir()


@contextlib.contextmanager
def _folder_beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    partial = path.with_name(f".{path.name}.partial")
    lock = path.with_name(f".{path.name}{_LOCK}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(lock, str(path)):
            shutil.rmtree(partial, ignore_errors=True)  # Left by a process that was killed.
            partial.mkdir()
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def _previous(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.previous")


def _check_free(path: pathlib.Path) -> None:
    if os.path.lexists(path):
        raise UserError(f"{path} exists and is not overwritten; give the path of a new folder")


def _sync_tree(folder: pathlib.Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot fsync folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def digest(path: str | os.PathLike[str], size: int | None = None) -> dict[str, Any]:
    """Returns {"bytes": …, "sha256": …} of a file, or of its first `size` bytes.

    Raises:
      UserError: it is missing, shorter than `size`, or cannot be read.
    """
    total, left = hashlib.sha256(), sys.maxsize if size is None else size
    count = 0
    try:
        with open(path, "rb") as file:
            while left and (block := file.read(min(left, 1 << 20))):
                total.update(block)
                count, left = count + len(block), left - len(block)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if size is not None and left:
        raise UserError(f"{path} is truncated: {count} bytes, expected {size}")
    return {"bytes": count, "sha256": total.hexdigest()}


def check_digests(folder: str | os.PathLike[str], digests: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the files below a folder are those of some digests.

    Args:
      folder: the folder.
      digests: results of `digest` by relative path. Bytes after those of the digest are ignored.
    """
    for name, expected in digests.items():
        path = pathlib.Path(folder, name)
        if digest(path, expected["bytes"]) != expected:
            raise UserError(f"{path} was damaged or altered: its SHA-256 is not the recorded one")


def write_sealed(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes a JSON object with `replaced_file`, sealed: with its own SHA-256 in it."""
    content = json.dumps({**record, _SEAL: _sha256(record)}, indent=1, sort_keys=True)
    write_text(path, content + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a JSON object; returns it without its seal, which is checked if there is one.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it cannot be read, is no JSON object, or is not what was sealed.
    """
    try:
        record = json.loads(pathlib.Path(path).read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no JSON") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: no JSON object")
    # Digests of files are believed, so they never stand without a seal.
    if (_SEAL in record or "files" in record) and record.pop(_SEAL, None) != _sha256(record):
        raise UserError(f"{path} was damaged or altered: it has another SHA-256 than it says")
    return record


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
