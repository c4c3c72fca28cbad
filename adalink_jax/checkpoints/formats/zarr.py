"""zarr arrays (version 2 and 3) in any of TensorStore's key-value stores.

TensorStore reads a missing chunk as zeros, so each chunk's presence is checked first.
"""

import dataclasses
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
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
      grid: number of chunks along each axis.
      separator: between a chunk's numbers in its name.
      prefix: before them, or "".
    """

    where: str
    driver: str
    kvstore: Mapping[str, Any]
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    separator: str
    prefix: str

    def chunks(self) -> Iterator[str]:
        """Names, relative to the array, of the files that hold its contents."""
        for place in itertools.product(*map(range, self.grid)):
            numbers = [self.prefix] if self.prefix else []
            yield self.separator.join([*numbers, *map(str, place)]) or "0"

    def check_chunks(self, files: Collection[str], below: str) -> None:
        """Checks that each chunk is among the files of a store, under the prefix `below`."""
        for chunk in self.chunks():
            if below + chunk not in files:
                raise UserError(
                    f"{self.where}/{chunk}: a part of the array is missing; the copy is truncated"
                    " or unfinished"
                )

    def __getitem__(self, index: Index) -> np.ndarray:
        import tensorstore  # Costly; needed only where there is a checkpoint to read.

        spec = {"driver": self.driver, "kvstore": dict(self.kvstore)}
        try:
            array = tensorstore.open(spec, open=True, read=True).result()
            return np.asarray(array[index].read().result())
        except Exception as error:  # TensorStore has no class of its own for damaged data.
            raise UserError(
                f"{self.where}: cannot be read; damaged or truncated ({reason(error)})"
            ) from error


def describe_zarr(layout: bytes, driver: str, where: str, kvstore: Mapping[str, Any]) -> ZarrArray:
    """Returns the array that a layout (``.zarray`` or ``zarr.json``) describes.

    Args:
      layout: the file's content.
      driver: "zarr" or "zarr3".
      where: the array's path, for errors.
      kvstore: TensorStore's description of the array's place.

    Raises:
      UserError: it is no layout, or of another dtype than float32 or bfloat16.
    """
    prefix, separator = "", "."
    try:
        described = json.loads(layout)
        shape = tuple(described["shape"])
        if driver == "zarr":
            chunks, dtype = tuple(described["chunks"]), described["dtype"]
            separator = str(described.get("dimension_separator", "."))
        else:
            chunks = tuple(described["chunk_grid"]["configuration"]["chunk_shape"])
            dtype, encoding = described["data_type"], described["chunk_key_encoding"]
            prefix = "c" if encoding["name"] == "default" else ""
            separator = encoding.get("configuration", {}).get("separator", "/" if prefix else ".")
        if not all(type(size) is int and size > 0 for size in (*shape, *chunks)):
            raise ValueError("sizes")
        grid = tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        name = next(name for name, known in LAYOUTS.items() if known == driver)
        raise UserError(f"{where}/{name}: not the layout of a zarr array") from error
    if dtype not in _DTYPES:
        raise UserError(f"{where}: dtype {dtype!r}; expected float32 ('<f4') or bfloat16")
    return ZarrArray(where, driver, kvstore, shape, grid, separator, prefix)
