"""zarr arrays (versions 2 and 3) in any of TensorStore's key-value stores."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.lazy import Index
from adalink_jax.checkpoints.storage import Folder, reason
from adalink_jax.errors import UserError

LAYOUTS = {".zarray": "zarr", "zarr.json": "zarr3"}

_DTYPES = ("<f4", "float32", "bfloat16")

# Compression makes arrays at most this many times smaller; for weights it is less than 3.
_SHRINKS = 100
# Small bases may be all zeros.
_FREE_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """A zarr array. Indexing reads the chunks that hold the part.

    Attributes:
      where: its path, for errors.
      driver: TensorStore's driver, "zarr" or "zarr3".
      kvstore: TensorStore's spec of the store that holds its files.
      shape: the array's shape.
      chunks: the shape of the parts that are stored.
      sparse: whether an absent chunk means zeros rather than lost data.
    """

    where: str
    driver: str
    kvstore: Mapping[str, Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    sparse: bool

    def __getitem__(self, index: Index) -> np.ndarray:
        import tensorstore  # Slow to import; needed only to read a checkpoint.

        spec = {
            "driver": self.driver,
            "kvstore": dict(self.kvstore),
            "fill_missing_data_reads": self.sparse,
        }
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
            return np.asarray(array[index].read().result())
        except Exception as error:  # TensorStore has no error class for damaged data.
            raise UserError(
                f"{self.where}: cannot be read; damaged or truncated ({reason(error)})"
            ) from error


def describe_zarr(
    layout: bytes, driver: str, where: str, kvstore: Mapping[str, Any], sparse: bool = False
) -> ZarrArray:
    """Returns the array that its metadata (``.zarray`` or ``zarr.json``) describes.

    Args:
      layout: the metadata file's content.
      driver: "zarr" or "zarr3".
      where: the array's path, for errors.
      kvstore: TensorStore's spec of the array's location.
      sparse: whether chunks that are all zeros may be absent. If not, reading an absent chunk
        raises a `UserError` that names it.

    Raises:
      UserError: the metadata is invalid, or its dtype is neither float32 nor bfloat16.
    """
    try:
        described = json.loads(layout)
        shape = tuple(described["shape"])
        dtype = described["dtype" if driver == "zarr" else "data_type"]
        grid = described if driver == "zarr" else described["chunk_grid"]["configuration"]
        chunks = tuple(grid["chunks" if driver == "zarr" else "chunk_shape"])
        if not all(type(size) is int and size > 0 for size in shape + chunks):
            raise ValueError("sizes")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        name = next(name for name, known in LAYOUTS.items() if known == driver)
        raise UserError(f"{where}/{name}: not the layout of a zarr array") from error
    if dtype not in _DTYPES:
        raise UserError(f"{where}: dtype {dtype!r}; expected float32 ('<f4') or bfloat16")
    return ZarrArray(where, driver, kvstore, shape, chunks, sparse)


def check_sizes(shapes: Mapping[str, tuple[int, ...]], folder: Folder) -> None:
    """Raises `UserError` if arrays are said to be far larger than the folder's files.

    TensorStore would allocate them, and end the process where it cannot. Not checked in the cloud.

    Args:
      shapes: name → shape of each array, or of its chunks.
      folder: the folder that holds all of them.
    """
    stored = folder.size()
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    if stored is not None and sum(sizes.values()) > _SHRINKS * stored + _FREE_BYTES:
        name = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"{folder}: damaged: {name} is said to have parts of shape {list(shapes[name])}, but"
            f" all files have {stored:,} bytes"
        )
