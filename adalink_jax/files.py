"""Atomic writes of local files and folders.

A file or folder is written under a hidden name next to its path, flushed to disk (fsync), then
renamed. If the process is killed at any time, the path holds either the old content or the new one,
never a part. At most a hidden file or folder is left next to it.
"""

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from adalink_jax.errors import UserError

# A URL's scheme, also if `pathlib` has removed one of the two slashes. Windows drives have only
# one letter, so they do not match.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


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
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
      UserError: `path` exists, and is never overwritten; or as in `local_path` and `writing`.
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

    An existing folder stays until then. Only one process may write at a time. Readers get the
    folder's path from `present_folder`.

    Args:
      path: a local path; parent folders are created.

    Raises:
      UserError: as in `local_path` and `writing`.
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
def _folder_beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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
