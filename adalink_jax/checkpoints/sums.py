"""SHA256SUMS: the digest of each file in a folder, in the form that ``sha256sum -c`` reads.

Disks flip bits and copies stop early. Files that hold numbers cannot show it: any bits are numbers.
So training checkpoints and written bases have this file beside their contents.
"""

import concurrent.futures
import pathlib
import re

import jax

from adalink_jax import files
from adalink_jax.checkpoints.fingerprint import file_sha256
from adalink_jax.errors import UserError

NAME = "SHA256SUMS"

# "*" marks binary files. sha256sum writes a backslash first if a path has unusual characters.
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([^/\\\0][^\\\0]*)")


class Damaged(UserError):
    """A folder does not hold the files that were written."""


def write(folder: pathlib.Path) -> None:
    """Writes ``SHA256SUMS`` into a folder, with a line for each file in it and below.

    Raises:
      UserError: the file cannot be written.
      OSError: a file cannot be read.
    """
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    lines = zip(_digests(folder, paths), paths, strict=True)
    text = "".join(f"{digest}  {path}\n" for digest, path in lines)
    files.write_text(folder / NAME, text)


def are_in(folder: pathlib.Path) -> bool:
    """Returns whether a folder on this machine has a ``SHA256SUMS``."""
    return (folder / NAME).is_file()


def check(folder: pathlib.Path) -> None:
    """Checks that the files in a folder are those of its ``SHA256SUMS``; others may lie beside.

    With several hosts, each checks its share of the files, and raises for these only.

    Raises:
      Damaged: a file is missing or has other contents, or ``SHA256SUMS`` itself is damaged.
      UserError: a file cannot be read.
    """
    where = folder / NAME
    try:
        matches = [_LINE.fullmatch(line) for line in where.read_text("utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error}") from error
    except ValueError as error:
        raise Damaged(f"{where} is truncated or damaged") from error
    listed = {match[2]: match[1] for match in matches if match}
    odd = [path for path in listed if ".." in path.split("/") or not path.isprintable()]
    if not listed or None in matches or odd:
        raise Damaged(f"{where} is truncated or damaged")
    first, hosts = 0, 1
    if jax.distributed.is_initialized():  # Asking JAX for its processes would start its devices.
        first, hosts = jax.process_index(), jax.process_count()
    paths = sorted(listed)[first::hosts]
    missing = [path for path in paths if not (folder / path).is_file()]
    if missing:
        raise Damaged(f"{folder / missing[0]}: missing, but {NAME} lists it")
    try:
        for path, digest in zip(paths, _digests(folder, paths), strict=True):
            if digest != listed[path]:
                raise Damaged(
                    f"{folder / path}: truncated or altered: its SHA-256 is {digest[:12]}…,"
                    f" {NAME} says {listed[path][:12]}…"
                )
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _digests(folder: pathlib.Path, paths: list[str]) -> list[str]:
    # Hashing releases Python's lock, so threads share the work among cores.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: file_sha256(folder / path), paths))
