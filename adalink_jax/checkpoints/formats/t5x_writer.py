"""Writes T5X's native checkpoints, which T5X's own Checkpointer restores.

A base whose layers have biases of their own is written as ``scalable_t5`` without scan
(``T5Config.scan_layers=False``); all others are the minimal T5's.

Parameters only: of the optimizer there is the step, 0, and nothing else; T5X starts one afresh
(``fallback_to_scratch``).

Source of the format: t5x/checkpoints.py, Checkpointer.save.
"""

import math
import pathlib
from typing import Any

import numpy as np
from flax import serialization, traverse_util

from adalink_jax.checkpoints.formats.t5x import INDEX
from adalink_jax.checkpoints.lazy import StoredBase
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.models.t5 import T5Config

_VERSION = 3
_CHUNK_BYTES = 1 << 26  # As T5X: chunks of at most 64 MiB.
_COMPRESSOR = {"id": "gzip", "level": 1}


def write(folder: pathlib.Path, base: StoredBase) -> None:
    """Writes a base as T5X's native checkpoint, float32, one array at a time.

    Args:
      folder: an empty folder; for T5X, one named ``checkpoint_N`` in the end.
      base: what to write.

    Raises:
      UserError: an array cannot be read.
      OSError: the folder cannot be written.
    """
    target: dict[str, Any] = {}
    for name in base.arrays:
        stored = f"target.{name.replace('/', '.')}"
        target[name] = _write_array(folder, stored, _as_t5x(base.read(name), name, base.config))
    index = {
        "version": _VERSION,
        "optimizer": {
            "target": traverse_util.unflatten_dict(target, sep="/"),
            "state": {"step": np.int32(0)},
        },
    }
    (folder / INDEX).write_bytes(serialization.msgpack_serialize(index))


def _as_t5x(array: np.ndarray, name: str, config: T5Config) -> np.ndarray:
    """With biases in each layer it is T5X's ``scalable_t5``, which keeps heads apart."""
    heads = (config.num_heads, config.head_dim)
    layer = name.rpartition("/")[0].rpartition("/")
    if not config.relpos_bias_per_layer or not layer[0].endswith("attention"):
        return array
    return array.reshape((*heads, -1) if layer[2] == "out" else (-1, *heads))


def _write_array(folder: pathlib.Path, name: str, array: np.ndarray) -> dict[str, Any]:
    import tensorstore  # Costly; needed only where there is a checkpoint to write.

    row_bytes = 4 * math.prod(array.shape[1:])
    rows = min(array.shape[0], max(1, _CHUNK_BYTES // row_bytes))
    metadata = {
        "chunks": [rows, *array.shape[1:]],
        "compressor": _COMPRESSOR,
        "shape": list(array.shape),
    }
    spec = {
        "driver": "zarr",
        "kvstore": Folder(str(folder)).kvstore(name),
        "metadata": {**metadata, "dtype": "<f4"},
        "store_data_equal_to_fill_value": True,
    }
    try:
        stored = tensorstore.open(spec, create=True).result()
        for row in range(0, array.shape[0], rows):  # One chunk at a time is compressed.
            end = min(row + rows, array.shape[0])
            stored[row:end].write(array[row:end]).result()
    except Exception as error:  # TensorStore has no class of its own.
        raise OSError(f"{name}: {error}") from error
    return {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }
