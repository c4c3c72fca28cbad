"""Arrays in one safetensors file: written atomically, memory-mapped, and checked when read.

The file's metadata holds facts about the arrays, and the SHA-256 of both.
"""

import hashlib
import json
import mmap
import os
import pathlib

import numpy as np
import safetensors.numpy

from adalink_jax import files

_DTYPES = {"U8": "|u1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}


class Damaged(Exception):
    """A cache file is missing, truncated, changed or unreadable, or is not a cache file."""


def folder(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the cache folder: the argument, else ADALINK_CACHE_DIR, else ~/.cache/adalink_jax."""
    chosen = cache_dir or os.environ.get("ADALINK_CACHE_DIR") or "~/.cache/adalink_jax"
    return files.local_path(chosen)


def digest(arrays: dict[str, np.ndarray]) -> str:
    """Returns the hexadecimal SHA-256 of arrays with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return total.hexdigest()


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], about: dict) -> None:
    """Writes arrays to `path` atomically; an existing file is replaced.

    Args:
      path: the file; its folder is created if needed.
      arrays: the arrays to store: uint8, int32, int64, float16 or float32.
      about: JSON-able facts to store with them.

    Raises:
      UserError: no permission, no space.
    """
    facts = json.dumps(about, sort_keys=True)
    # Only one entry, because safetensors writes several in an arbitrary order.
    metadata = {"cache": json.dumps({"about": facts, "sha256": _sha256(arrays, facts)})}
    content = safetensors.numpy.save(arrays, metadata)
    with files.replaced_file(path) as file:
        file.write(content)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """Memory-maps a file of `write`, after checking every byte (about 1 GB/s).

    The safetensors package would copy the arrays. Mapped pages are shared between processes, and
    the system can drop them.

    Returns:
      The arrays, read-only, and the facts stored with them.

    Raises:
      Damaged: the file is missing, incomplete or was changed.
    """
    arrays, facts, sha256 = _mapped(path)
    if _sha256(arrays, facts) != sha256:
        raise Damaged("its contents do not match their SHA-256")
    return arrays, json.loads(facts)


def glance(path: pathlib.Path, name: str) -> np.ndarray:
    """Memory-maps one array of a file of `write` without checking it; see `read`."""
    arrays, _, _ = _mapped(path)
    if name not in arrays:
        raise Damaged(f"it has no {name}")
    return arrays[name]


def _mapped(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str, str]:
    """Returns a file's arrays, memory-mapped, the facts stored with them, and their SHA-256."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Damaged(error.strerror or str(error)) from error
    except ValueError as error:
        raise Damaged("empty") from error
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        stored = json.loads(header.pop("__metadata__")["cache"])
        facts, sha256 = stored["about"], stored["sha256"]
        json.loads(facts)
        arrays = {
            name: np.ndarray(
                entry["shape"],
                _DTYPES[entry["dtype"]],
                buffer=data,
                offset=start + entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
        return arrays, facts, sha256
    except Exception as error:  # Changed bytes raise a dozen unrelated classes.
        raise Damaged(f"not a token cache ({type(error).__name__})") from error


def _sha256(arrays: dict[str, np.ndarray], facts: str) -> str:
    return hashlib.sha256(f"{facts}\n{digest(arrays)}".encode()).hexdigest()
