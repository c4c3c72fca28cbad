"""This project's own bases: what a run of full fine-tuning leaves in its ``adapter`` folder.

Full fine-tuning's adaptation is the whole model, so its file is a base: ``adapter.safetensors``
with every parameter under T5X's name, and ``adapter.json`` with the architecture.
"""

import json
import pathlib
from collections.abc import Collection
from typing import Any

import numpy as np

from adalink_jax.checkpoints import adapters, architecture
from adalink_jax.checkpoints.fingerprint import combined_fingerprint, leaf_digest, streamed_sha256
from adalink_jax.checkpoints.formats.safetensors_files import open_tensors, write_tensors
from adalink_jax.checkpoints.lazy import StoredBase
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

_FILES = {adapters.TENSORS, adapters.RECORD}
_BLOCK_BYTES = 1 << 24


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns the adapter folder that `folder` is, or (a run's folder) has inside; or None."""
    if _FILES & set(children):
        return folder
    if "adapter" in children and _FILES & set((folder / "adapter").children()):
        return folder / "adapter"
    return None


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens the model that full fine-tuning wrote, once the hash of its file is found right.

    Args:
      folder: the folder that holds ``adapter.safetensors`` and ``adapter.json``.
      configured: the architecture it is expected to have, or None.

    Raises:
      UserError: the files are damaged, of another method than full fine-tuning, or hold other
        arrays than their architecture has; or that is not the configured one.
    """
    record = adapters.parse_record(folder.read(adapters.RECORD), f"{folder}/{adapters.RECORD}")
    if record["method"] != "full":
        raise UserError(
            f"{folder}: an adapter of method '{record['method']}', not a base: load the base"
            " it was trained on and give this as its adapter"
        )
    config = architecture.config_from(record["architecture"], f"{folder}/{adapters.RECORD}")
    if configured is not None:
        architecture.check_architecture(configured, config, str(folder))
    tensors = open_tensors(folder, adapters.TENSORS)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    architecture.check_shapes(architecture.expected_shapes(config), shapes, str(folder))
    size = max(tensor.stop for tensor in tensors.values())
    blocks = (
        folder.read(adapters.TENSORS, start, min(start + _BLOCK_BYTES, size))
        for start in range(0, size, _BLOCK_BYTES)
    )
    where = f"{folder}/{adapters.TENSORS}"
    adapters.check_sha256(streamed_sha256(blocks), record, where)
    entries = {name: _entry(t.dtype.name, t.shape) for name, t in tensors.items()}
    adapters.check_listed(entries, record, where)
    return StoredBase(config, str(folder), tensors)


def write(folder: pathlib.Path, base: StoredBase) -> None:
    """Writes a base as full fine-tuning does, one array at a time.

    Args:
      folder: an empty folder.
      base: what to write.

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
    text = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / adapters.RECORD).write_text(text + "\n", encoding="utf-8")


def _entry(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape)}
