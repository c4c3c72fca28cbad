"""Rows of tokens in files, packed tightly: they are carried from one machine to another."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax import files

PIECE = 62  # Tokens of a piece at most.
EXTRA_IDS = 100
VOCABULARY_SIZE = 20480 - EXTRA_IDS


def write(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays of any shape as a file that `numpy.load` reads; LZMA packs it.

    Args:
      path: the file, .npz, which is replaced.
      arrays: arrays by name.
    """
    with (
        files.replaced_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array))


def ragged(name: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Makes two arrays of rows of ids: all ids one after another, and the rows' lengths."""
    lengths = np.array([len(row) for row in rows])
    return {name: np.concatenate(rows), f"{name}_lengths": lengths.astype(np.uint8)}


def read_ragged(arrays: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids and lengths that `ragged` made, of a file's arrays."""
    return arrays[name], arrays[f"{name}_lengths"].astype(np.int32)


def padded(flat: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Makes rows of one width, [N, width], of ids in a row; 0 behind each."""
    rows = np.zeros((len(lengths), width), flat.dtype)
    rows[np.arange(width) < lengths[:, None]] = flat
    return rows
