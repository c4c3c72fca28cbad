"""zarr arrays (version 2 and 3) in any of TensorStore's key-value stores."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.lazy import Index
from adalink_jax.checkpoints.storage import reason
from adalink_jax.errors import UserError

LAYOUTS = {".zarray": "zarr", "zarr.json": "zarr3"}

_DTYPES = ("<f4", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """A zarr array; indexing reads the chunks that hold the part.

    Attributes:
      where: its path, for errors.
      driver: TensorStore's driver, "zarr" or "zarr3".
      kvstore: TensorStore's description of the store that holds its files.
      shape: of the array.
      sparse: whether a chunk that is not there is one of zeros, and not lost.
    """

    where: str
    driver: str
    kvstore: Mapping[str, Any]
    shape: tuple[int, ...]
    sparse: bool

    def __getitem__(self, index: Index) -> np.ndarray:
        import tensorstore  # Costly; needed only where there is a checkpoint to read.

        spec = {
            "driver": self.driver,
            "kvstore": dict(self.kvstore),
            "fill_missing_data_reads": self.sparse,
        }
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
            return np.asarray(array[index].read().result())
        except Exception as error:  # TensorStore has no class of its own for damaged data.
            raise UserError(
                f"{self.where}: cannot be read; damaged or truncated ({reason(error)})"
            ) from error


def describe_zarr(
    layout: bytes, driver: str, where: str, kvstore: Mapping[str, Any], sparse: bool = False
) -> ZarrArray:
    """Returns the array that a layout (``.zarray`` or ``zarr.json``) describes.

    Args:
      layout: the file's content.
      driver: "zarr" or "zarr3".
      where: the array's path, for errors.
      kvstore: TensorStore's description of the array's place.
      sparse: whether chunks of nothing but zeros may be left out. Otherwise reading a part whose
        chunk is not there is a `UserError` that names the chunk.

    Raises:
      UserError: it is no layout, or of another dtype than float32 or bfloat16.
    """
    try:
        described = json.loads(layout)
        shape = tuple(described["shape"])
        dtype = described["dtype" if driver == "zarr" else "data_type"]
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError("sizes")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        name = next(name for name, known in LAYOUTS.items() if known == driver)
        raise UserError(f"{where}/{name}: not the layout of a zarr array") from error
    if dtype not in _DTYPES:
        raise UserError(f"{where}: dtype {dtype!r}; expected float32 ('<f4') or bfloat16")
    return ZarrArray(where, driver, kvstore, shape, sparse)
