"""New checkpoints on this machine: written beside their place, then put there whole."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from adalink_jax.errors import UserError


@contextlib.contextmanager
def new_folder(target: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields an empty folder beside `target`, which becomes it when the block ends without error.

    Args:
      target: a local path at which nothing is yet; folders above are made.

    Raises:
      UserError: something is at `target`, which is never overwritten, or it cannot be written.
    """
    if "://" in os.fspath(target):
        raise UserError(f"{target}: folders are written on this machine only; copy it there after")
    target = pathlib.Path(target).expanduser().absolute()
    partial = target.with_name(f".{target.name}.partial")
    _check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # Left by a process that was killed.
        partial.mkdir()
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        _check_free(target)
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_free(target: pathlib.Path) -> None:
    if os.path.lexists(target):
        raise UserError(f"{target} exists and is not overwritten; give the path of a new folder")


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
