"""This project's own bases: the ``adapter`` folder of a full fine-tuning run.

Full fine-tuning trains the whole model, so its adapter file is a base: ``adapter.safetensors`` has
every parameter by its T5X name, and ``adapter.json`` the architecture.
"""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from adalink_jax.checkpoints import adapters, architecture
from adalink_jax.checkpoints.fingerprint import combined_fingerprint, leaf_digest, streamed_sha256
from adalink_jax.checkpoints.formats.safetensors_files import open_tensors, write_tensors
from adalink_jax.checkpoints.lazy import StoredBase, open_arrays
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

_FILES = {adapters.TENSORS, adapters.RECORD}
_BLOCK_BYTES = 1 << 24


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns the adapter folder: `folder` itself, or the one in a run's folder; else None."""
    if _FILES & set(children):
        return folder
    if "adapter" in children and _FILES & set((folder / "adapter").children()):
        return folder / "adapter"
    return None


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens a model that full fine-tuning wrote; its file's hash is checked before it is read.

    Args:
      folder: the folder with ``adapter.safetensors`` and ``adapter.json``.
      configured: the expected architecture, or None.

    Raises:
      UserError: the files are damaged, belong to another method, or hold other arrays than their
        architecture; or the architecture is not the configured one.
    """
    record = adapters.parse_record(folder.read(adapters.RECORD), f"{folder}/{adapters.RECORD}")
    if record["method"] != "full":
        raise UserError(
            f"{folder}: an adapter of method '{record['method']}', not a base: load the base"
            " it was trained on and give this as its adapter"
        )
    config = architecture.config_from(record["architecture"], f"{folder}/{adapters.RECORD}")
    tensors = open_tensors(folder, adapters.TENSORS)
    # What the record says may be absurd, so the arrays come first.
    known = config.mlp_activations, config.image_positions
    base = open_arrays(tensors, str(folder), configured, *known)
    for name, (said, found) in architecture.differing_fields(config, base.config).items():
        raise UserError(
            f"{folder}: {name} is {said} in {adapters.RECORD}, and {found} by the arrays"
        )
    where = f"{folder}/{adapters.TENSORS}"
    entries = {name: _entry(t.dtype.name, t.shape) for name, t in tensors.items()}
    adapters.check_listed(entries, record, where)
    adapters.check_digest(record, f"{folder}/{adapters.RECORD}")
    size = max(tensor.stop for tensor in tensors.values())

    def verify() -> None:
        blocks = (
            folder.read(adapters.TENSORS, start, min(start + _BLOCK_BYTES, size))
            for start in range(0, size, _BLOCK_BYTES)
        )
        adapters.check_sha256(streamed_sha256(blocks), record, where)

    return dataclasses.replace(base, verify=verify)


def write(folder: pathlib.Path, base: StoredBase) -> None:
    """Writes a base in the format of full fine-tuning, one array at a time.

    Args:
      folder: an empty folder.
      base: the base to write.

    Raises:
      UserError: an array cannot be read.
      OSError: the folder cannot be written.
    """
    digests: list[bytes] = []

    def read(name: str) -> np.ndarray:
        array = base.read(name)
        digests.append(leaf_digest(name, array))
        return array

    shapes = dict(sorted(base.shapes.items()))
    sha256 = write_tensors(folder / adapters.TENSORS, shapes, read)
    record = {
        "format_version": adapters.FORMAT_VERSION,
        "method": "full",
        "settings": {},
        "architecture": architecture.describe_architecture(base.config),
        "base_fingerprint": combined_fingerprint(digests),
        "route_names": ["all"],
        "metadata": {},
        "tensors": {name: _entry("float32", shape) for name, shape in shapes.items()},
        "sha256": sha256,
    }
    adapters.write_record(folder, record)


def _entry(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}
