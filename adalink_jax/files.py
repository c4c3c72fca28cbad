"""Files and folders of this machine, written whole.

They are written beside their place, brought onto the disk (fsync), then put there in one step. A
process that is killed at any moment leaves what was there before, or the new one, never a part; at
most a hidden file or folder beside it stays behind.
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

# A scheme, also after `pathlib` has made one slash of its two. Drives of Windows are one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path to write to, ``~`` expanded.

    Raises:
      UserError: it is a URL, such as ``gs://bucket/run``.
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
    """Within it, a refusal of the operating system is a `UserError` with the path and the reason.

    Args:
      path: what is written.

    Raises:
      UserError: an `OSError` was raised: no space, no permission, a file where a folder is needed.
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
    """Yields a file to write to; it takes its place at `path` when the block ends without error.

    Several processes may write the same path at once: the last one to end stays, whole.

    Args:
      path: a local path; folders above are made, a file there is replaced.

    Raises:
      UserError: as `local_path` and `writing`.
    """
    path = local_path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not by `tempfile`: only their owner can read its files.
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
    """Writes a file of UTF-8 text, as `replaced_file`."""
    with replaced_file(path) as file:
        file.write(content.encode("utf-8"))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `path` when the block ends without error.

    Args:
      path: a local path at which nothing is yet; folders above are made.

    Raises:
      UserError: something is at `path`, which is never overwritten; or as `local_path` and
        `writing`.
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
    """Yields an empty folder that takes the place of `path` when the block ends without error.

    A folder that is already there stays until then. One process at a time writes; readers ask
    `present_folder` where it is.

    Args:
      path: a local path; folders above are made.

    Raises:
      UserError: as `local_path` and `writing`.
    """
    path = local_path(path)
    previous = _previous(path)
    with _folder_beside(path) as partial:
        yield partial
        _sync_tree(partial)
        # No folder can be renamed onto a full one.
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.rename(previous)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(previous, ignore_errors=True)


def present_folder(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns where a folder of `replaced_folder` is.

    That is `path`, or what it was before where a replacement was killed between its two renames.
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
        # Some network file systems have no fsync of folders.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
