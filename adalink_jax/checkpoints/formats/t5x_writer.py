"""Writes T5X's native checkpoints, which T5X's Checkpointer can restore.

A base with relative position biases in each layer is written as an unscanned ``scalable_t5``
(``T5Config.scan_layers=False``), all others as the minimal T5.

Only parameters are written, and the step, 0. T5X initializes the optimizer state
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
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

_VERSION = 3
_CHUNK_BYTES = 1 << 26  # Chunks of at most 64 MiB, as in T5X.
_COMPRESSOR = {"id": "gzip", "level": 1}


def write(folder: pathlib.Path, base: StoredBase) -> None:
    """Writes a base as a native T5X checkpoint in float32, one array at a time.

    Args:
      folder: an empty folder; T5X expects its final name to be ``checkpoint_N``.
      base: the base to write.

    Raises:
      UserError: T5X cannot compute the architecture, or an array cannot be read.
      OSError: the folder cannot be written.
    """
    if "gelu_exact" in base.config.mlp_activations:
        raise UserError(
            f"{base.where}: T5X has no exact GELU, and would compute another function; write format"
            " native"
        )
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
    """Splits the axis of heads if the base is written as ``scalable_t5``, which stores it so."""
    heads = (config.num_heads, config.head_dim)
    layer = name.rpartition("/")[0].rpartition("/")
    if not config.relpos_bias_per_layer or not layer[0].endswith("attention"):
        return array
    return array.reshape((*heads, -1) if layer[2] == "out" else (-1, *heads))


def _write_array(folder: pathlib.Path, name: str, array: np.ndarray) -> dict[str, Any]:
    import tensorstore  # Slow to import; needed only to write a checkpoint.

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
        for row in range(0, array.shape[0], rows):  # Compresses one chunk at a time.
            end = min(row + rows, array.shape[0])
            stored[row:end].write(array[row:end]).result()
    except Exception as error:  # TensorStore has no error class of its own.
        raise OSError(f"{name}: {error}") from error
    return {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }
