"""safetensors files: reads parts of tensors in place, and writes tensors one by one.

The safetensors package reads only local files and writes only from memory. Here a base of many
gigabytes is neither copied nor held in memory. A file has eight bytes with the header's length, the
JSON header, and the tensors' contents without gaps.

Source of the format: github.com/huggingface/safetensors, README.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adalink_jax.checkpoints.formats.companions import read_settings
from adalink_jax.checkpoints.lazy import Index
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError

WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"

_DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("<f2")}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # The safetensors package has the same limit.


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file. Indexing reads only the rows that hold the part.

    Attributes:
      folder: the folder with the file.
      file: the file's name.
      dtype: the stored dtype: float32, bfloat16 or float16.
      shape: the stored shape.
      start: the tensor's first byte in the file.
    """

    folder: Folder
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        """The byte after the tensor's last one in the file."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Index) -> np.ndarray:
        rows, rest = (0, self.shape[0] if self.shape else 1), ...
        if index is not ...:
            rows, rest = index[0].indices(self.shape[0])[:2], (slice(None), *index[1:])
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        start, stop = (self.start + row * row_bytes for row in rows)
        content = self.folder.read(self.file, start, stop)
        array = np.frombuffer(content, self.dtype)
        array = array.reshape(rows[1] - rows[0], *self.shape[1:]) if self.shape else array[0]
        return array[rest]


def open_tensors(
    folder: Folder, file: str, unread: re.Pattern[str] | None = None
) -> dict[str, Tensor]:
    """Reads the header of a safetensors file and checks it against the file's size.

    Args:
      folder: the folder with the file.
      file: the file's name.
      unread: matches the names of tensors that nobody reads, which may have any dtype.

    Returns:
      Each tensor by its name, but those that are not read.

    Raises:
      UserError: the header is damaged, has wrong sizes or positions, or names a dtype other than
        float32, bfloat16 and float16.
    """
    where = f"{folder}/{file}"
    length = int.from_bytes(folder.read(file, 0, _LENGTH_BYTES), "little")
    if length > _LONGEST_HEADER:
        raise UserError(f"{where}: damaged: a header of {length} bytes")
    try:
        pairs = json.loads(
            folder.read(file, _LENGTH_BYTES, _LENGTH_BYTES + length).decode("utf-8"),
            object_pairs_hook=_once_each,
        )
        entries = {name: entry for name, entry in pairs.items() if name != "__metadata__"}
        layout = [_layout(name, entry) for name, entry in entries.items()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: no safetensors header; truncated or damaged") from error
    first, end = _LENGTH_BYTES + length, 0
    tensors = {}
    for start, stop, name, dtype, shape in sorted(layout):
        read = unread is None or not unread.match(name)
        if read and dtype not in _DTYPES:
            raise UserError(
                f"{where}: {name!r} has dtype {dtype!r}; expected float32, bfloat16 or float16"
            )
        size = math.prod(shape) * _DTYPES[dtype].itemsize if read else stop - start
        if start != end or stop - start != size:
            raise UserError(
                f"{where}: damaged: {name!r}, {dtype} of shape {list(shape)}, is said to lie at"
                f" bytes {start} to {stop}, after what ends at {end}"
            )
        if read:
            tensors[name] = Tensor(folder, file, _DTYPES[dtype], shape, first + start)
        end = stop
    folder.check_size(file, first + end)
    return tensors


def open_folder(folder: Folder, unread: re.Pattern[str] | None = None) -> dict[str, Tensor]:
    """Opens the tensors of a Hugging Face folder, in one file or in several with an index.

    Args:
      folder: the folder.
      unread: as in `open_tensors`.

    Raises:
      UserError: as in `open_tensors`; or the index and the files do not agree.
    """
    if folder.holds_file(WEIGHTS):
        return open_tensors(folder, WEIGHTS, unread)
    places = read_settings(folder, SHARD_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(f, str) and f.isprintable() and "/" not in f for f in places.values()
    ):
        raise UserError(f"{folder / SHARD_INDEX}: no 'weight_map' of tensors to files")
    if unread is not None:
        places = {name: file for name, file in places.items() if not unread.match(name)}
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        held = open_tensors(folder, file, unread)
        listed = {name for name, place in places.items() if place == file}
        if wrong := sorted(listed ^ held.keys()):
            what = "lacks" if wrong[0] in listed else "holds beside what the index says"
            raise UserError(f"{folder / file}: {what} {len(wrong)} tensors, such as {wrong[0]!r}")
        tensors |= held
    return tensors


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name twice")
    return unique


def _layout(name: str, entry: Mapping[str, Any]) -> tuple[int, int, str, str, tuple[int, ...]]:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
        raise ValueError("a place or size that is no whole number")
    if not isinstance(entry["dtype"], str):
        raise TypeError("dtype")
    return start, stop, name, entry["dtype"], shape


def write_tensors(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
    packed: Container[str] = (),
    halved: bool = False,
) -> str:
    """Writes float32 tensors to a safetensors file; only one is in memory at a time.

    Args:
      path: the file.
      shapes: name → shape of each tensor, in the order of writing.
      read: name → the tensor.
      metadata: strings for the header, or None.
      packed: names of tensors that are bytes, uint8, instead.
      halved: whether the others are stored, and given, as bfloat16.

    Returns:
      The file's SHA-256, 64 hexadecimal digits.

    Raises:
      OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    numbers = "BF16" if halved else "F32"
    kinds = {
        name: ("U8", np.dtype("u1")) if name in packed else (numbers, _DTYPES[numbers])
        for name in shapes
    }
    end = 0
    for name, shape in shapes.items():
        kind, dtype = kinds[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # Aligns the contents.
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(content: Any) -> None:
            file.write(content)
            digest.update(content)

        put(len(text).to_bytes(_LENGTH_BYTES, "little"))
        put(text)
        for name, shape in shapes.items():
            array, (kind, dtype) = read(name), kinds[name]
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise ValueError(f"{name}: {array.dtype} {array.shape}, expected {kind} {shape}")
            put(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
            del array  # Frees it before the next one is read.
    return digest.hexdigest()
