"""Files of arrays, packed tightly: they are carried from one machine to another."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from adalink_jax import files


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
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
