"""Arrays in one file: written at once, memory-mapped, and checked when read. NumPy only.

A file is ``magic (8 bytes) | SHA-256 of all that follows (32) | header length (8) | JSON header |
arrays``, every array at a multiple of 64 bytes. One file, and not a folder, because a file can be
replaced in one step: whoever reads sees the old one or the new one, whole.
"""

import hashlib
import json
import mmap
import os
import pathlib
import secrets
import struct

import numpy as np

_MAGIC = b"ADALTOK1"
_PREAMBLE = len(_MAGIC) + 32
_ALIGNMENT = 64


class Damaged(Exception):
    """A cache file is truncated, was changed, or is something else."""


def folder(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    """Returns the cache folder: the argument, else ADALINK_CACHE_DIR, else ~/.cache/adalink_jax."""
    chosen = cache_dir or os.environ.get("ADALINK_CACHE_DIR") or "~/.cache/adalink_jax"
    return pathlib.Path(chosen).expanduser()


def digest(arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256, in hexadecimal, of arrays with their names, dtypes and shapes."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")
    return total.hexdigest()


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], about: dict) -> None:
    """Writes arrays to `path`, all or nothing; an existing file is replaced.

    Args:
      path: the file; its folder is made if need be.
      arrays: what to store.
      about: JSON-able facts to store with them.

    Raises:
      OSError: no permission, no space.
    """
    places, end = {}, 0
    for name, array in arrays.items():
        places[name] = {"dtype": array.dtype.str, "shape": array.shape, "offset": end}
        end += _padded(array.nbytes)
    header = json.dumps({"about": about, "arrays": places, "bytes": end}).encode()
    header += b" " * (-(_PREAMBLE + 8 + len(header)) % _ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's: a cache may be shared, and its files would be for their owner alone.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(_MAGIC + bytes(32))
            total = hashlib.sha256()
            for block in (struct.pack("<Q", len(header)), header, *_blocks(arrays)):
                file.write(block)
                total.update(block)
            file.seek(len(_MAGIC))
            file.write(total.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _blocks(arrays: dict[str, np.ndarray]):
    for array in arrays.values():
        if array.size:
            yield memoryview(np.ascontiguousarray(array)).cast("B")
        yield bytes(_padded(array.nbytes) - array.nbytes)


def _padded(size: int) -> int:
    """Returns the next multiple of the alignment, at least one."""
    return (max(size, 1) + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """Memory-maps what `write` wrote, after checking every byte (about 1 GB/s).

    Returns:
      The arrays, read-only, and the facts stored with them.

    Raises:
      FileNotFoundError: there is no such file.
      Damaged: it is not whole.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < _PREAMBLE + 8:
            raise Damaged("too short")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(data)
    if view[: len(_MAGIC)] != _MAGIC:
        raise Damaged("not a token cache of this version")
    if hashlib.sha256(view[_PREAMBLE:]).digest() != view[len(_MAGIC) : _PREAMBLE]:
        raise Damaged("its bytes do not match their SHA-256")
    (length,) = struct.unpack("<Q", view[_PREAMBLE : _PREAMBLE + 8])
    start = _PREAMBLE + 8 + length
    header = json.loads(bytes(view[_PREAMBLE + 8 : start]))
    arrays = {
        name: np.ndarray(
            place["shape"], np.dtype(place["dtype"]), buffer=data, offset=start + place["offset"]
        )
        for name, place in header["arrays"].items()
    }
    return arrays, header["about"]
