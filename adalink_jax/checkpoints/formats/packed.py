"""Bases in few bytes, for those that are shipped: rounded matrices, compressed, in small files.

A folder has ``packed.json`` (architecture, arrays, digest) and ``packed.0``, ``packed.1`` …, parts
of one LZMA stream. A large matrix is integers of 6 bits times one float32 scale a row; what is
small is float32. Whoever reads gets the rounded values, always the same.
"""

import dataclasses
import functools
import hashlib
import json
import lzma
import math
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints import architecture
from adalink_jax.checkpoints.lazy import Index, StoredBase, open_arrays
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

RECORD = "packed.json"
_VERSION = 1
_LARGEST = 31  # Of the integers.
_ROUNDED = 1 << 14  # Numbers that a matrix has at least if it is rounded.
_PART_BYTES = 4_500_000


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns `folder` if it is one of these, else None."""
    return folder if RECORD in children else None


@dataclasses.dataclass(frozen=True)
class _Packed:
    """An array in the uncompressed stream."""

    content: Callable[[], bytes]
    start: int
    shape: tuple[int, ...]

    @property
    def rounded(self) -> bool:
        return _is_rounded(self.shape)

    @property
    def stop(self) -> int:
        size = math.prod(self.shape)
        return self.start + (size + 4 * self.shape[0] if self.rounded else 4 * size)

    def __getitem__(self, index: Index) -> np.ndarray:
        content, size = self.content(), math.prod(self.shape)
        if not self.rounded:
            return np.frombuffer(content, "<f4", size, self.start).reshape(self.shape)[index]
        values = np.frombuffer(content, np.int8, size, self.start).reshape(self.shape)
        scales = np.frombuffer(content, "<f4", self.shape[0], self.start + size)
        return (values * scales[:, None])[index]


def _is_rounded(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and math.prod(shape) >= _ROUNDED


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens a base; its digest is checked before the first array is read.

    Args:
      folder: the folder with ``packed.json``.
      configured: the expected architecture, or None.

    Raises:
      UserError: a file is missing or damaged, or the arrays are not those of the architecture.
    """
    where = f"{folder}/{RECORD}"
    try:
        record = json.loads(folder.read(RECORD))
        version, parts, sha256 = record["version"], range(record["parts"]), record["sha256"]
        shapes = {name: tuple(map(int, shape)) for name, shape in record["tensors"].items()}
        described = record["architecture"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} is damaged: {error!r}") from error
    if version != _VERSION:
        raise UserError(f"{where}: version {version}, but this release reads {_VERSION}")
    config = architecture.config_from(described, where)

    @functools.cache
    def content() -> bytes:
        stream = b"".join(folder.read(f"packed.{i}") for i in parts)
        if hashlib.sha256(stream).hexdigest() != sha256:
            raise UserError(f"{folder}: truncated or altered: {RECORD} has another SHA-256")
        try:
            found = lzma.decompress(stream)
        except lzma.LZMAError as error:
            raise UserError(f"{folder}: {error}") from error
        if len(found) != start:
            raise UserError(f"{folder}: {len(found)} bytes of arrays, but {RECORD} lists {start}")
        return found

    arrays: dict[str, _Packed] = {}
    start = 0
    for name, shape in shapes.items():
        arrays[name] = _Packed(content, start, shape)
        start = arrays[name].stop
    base = open_arrays(arrays, str(folder), configured, config.mlp_activations)
    for name, (said, found) in architecture.differing_fields(config, base.config).items():
        raise UserError(f"{folder}: {name} is {said} in {RECORD}, and {found} by the arrays")

    def verify() -> None:
        content()

    return dataclasses.replace(base, verify=verify)


def write(
    folder: pathlib.Path, params: Mapping[str, Any], config: T5Config, metadata: Mapping[str, Any]
) -> None:
    """Writes a base; equal arguments give equal bytes.

    Args:
      folder: an empty folder.
      params: nested dicts of arrays.
      config: its architecture.
      metadata: JSON values, without times or paths.

    Raises:
      OSError: the folder cannot be written.
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    arrays = {name: np.asarray(flat[name], "<f4") for name in sorted(flat)}
    content = []
    for array in arrays.values():
        if _is_rounded(array.shape):
            scales = np.maximum(np.abs(array).max(1, keepdims=True) / _LARGEST, 1e-12)
            content += [np.round(array / scales).astype(np.int8).tobytes()]
            content += [scales.astype("<f4").tobytes()]
        else:
            content += [array.tobytes()]
    stream = lzma.compress(b"".join(content), preset=9)
    parts = range(0, len(stream), _PART_BYTES)
    for i, start in enumerate(parts):
        (folder / f"packed.{i}").write_bytes(stream[start : start + _PART_BYTES])
    record = {
        "version": _VERSION,
        "architecture": architecture.describe_architecture(config),
        "metadata": dict(metadata),
        "parts": len(parts),
        "sha256": hashlib.sha256(stream).hexdigest(),
        "tensors": {name: list(array.shape) for name, array in arrays.items()},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
