"""Reads T5X's newer checkpoints, written by Orbax: zarr arrays in an OCDBT database, or plain.

``checkpoint_N/state/`` holds ``_METADATA`` (JSON that lists the arrays) and ``manifest.ocdbt``,
with data in ``d/`` and ``ocdbt.process_K/``. The arrays are named ``target.a.b.c`` in that
database; without OCDBT they are folders of that name. Older checkpoints keep parameters under
``optimizer.target``. The manifest is written last: a checkpoint without it is unfinished.
Optimizer state is not read. Neither Orbax nor the saved shardings are needed.

Source of the format: t5x/checkpoints.py, OrbaxCheckpointManagerInterface; Orbax 0.12.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from adalink_jax.checkpoints.formats.scalable_t5 import as_minimal
from adalink_jax.checkpoints.formats.t5x import latest_step
from adalink_jax.checkpoints.formats.zarr import LAYOUTS, ZarrArray, check_sizes, describe_zarr
from adalink_jax.checkpoints.lazy import StoredBase, open_arrays
from adalink_jax.checkpoints.storage import Folder, reason
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

METADATA = "_METADATA"
MANIFEST = "manifest.ocdbt"

_STATE = "state"
_PROCESS = "ocdbt.process_"
_TARGETS = ("target.", "optimizer.target.")


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns the Orbax checkpoint in `folder`: itself, its ``state``, or that of its latest step.

    Args:
      folder: an existing folder.
      children: the names in it.

    Returns:
      The folder that holds ``_METADATA``, or None if `folder` is not a T5X checkpoint of Orbax.

    Raises:
      UserError: the checkpoint is unfinished.
    """
    latest = latest_step(folder, children)
    names = set(children if latest == folder else latest.children())
    if _STATE in names and not names & {METADATA, MANIFEST}:
        latest, names = latest / _STATE, set((latest / _STATE).children())
    if not names & {METADATA, MANIFEST} and not any(n.startswith(_PROCESS) for n in names):
        return None
    if METADATA not in names or (MANIFEST not in names and _uses_ocdbt(latest)):
        lost = METADATA if METADATA not in names else MANIFEST
        raise UserError(f"{latest}: no {lost} in it; still being written, or the copy is truncated")
    return latest


def _uses_ocdbt(folder: Folder) -> bool:
    return bool(_metadata(folder).get("use_ocdbt", True))


def _metadata(folder: Folder) -> Mapping[str, Any]:
    try:
        content = json.loads(folder.read(METADATA))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / METADATA}: no JSON; truncated or damaged") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{folder / METADATA}: not the metadata of an Orbax checkpoint")
    return content


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens an Orbax checkpoint of T5X: checks that every array exists, and reads none.

    If a part of an array is missing, the error comes when that part is read.

    Args:
      folder: the folder that holds ``_METADATA``.
      configured: the expected architecture; its MLP activations are used, because arrays do not
        show them. None expects nothing and assumes the published activations.

    Raises:
      UserError: the database is damaged; an array is missing, unexpected, of another shape than the
        architecture's, or neither float32 nor bfloat16; or the architecture is not the configured
        one.
    """
    metadata = _metadata(folder)
    store: dict[str, Any] = folder.kvstore()
    database = folder.holds_file(MANIFEST)
    if database:
        store = {"driver": "ocdbt", "base": store}
    # Earlier versions of Orbax did not store chunks that are all zeros.
    sparse = database and not metadata.get("store_array_data_equal_to_fill_value")
    keys, read = _keys(store, folder)
    arrays: dict[str, ZarrArray] = {}
    for key in sorted(keys):
        name, _, file = key.rpartition("/")
        prefix = next((p for p in _TARGETS if name.startswith(p)), None)
        if prefix is None or file not in LAYOUTS:
            continue
        parameter = name.removeprefix(prefix).replace(".", "/")
        if parameter in arrays or not parameter.isprintable():
            raise UserError(f"{folder}: damaged: a parameter {parameter!r}, or two of that name")
        place = {**store, "path": _below(store, name)}
        arrays[parameter] = describe_zarr(
            read(key), LAYOUTS[file], f"{folder}: {name}", place, sparse
        )
    if not arrays:
        raise UserError(
            f"{folder}: an Orbax checkpoint without parameters under 'target', where T5X has them"
        )
    check_sizes({name: array.shape for name, array in arrays.items()}, folder)
    check_sizes({name: array.chunks for name, array in arrays.items()}, folder)
    return open_arrays(as_minimal(arrays, str(folder)), str(folder), configured)


def _below(store: Mapping[str, Any], name: str) -> str:
    return f"{store.get('path', '')}{name}/"


def _keys(store: Mapping[str, Any], folder: Folder):
    """Returns all keys of a store, and a function that reads one of them."""
    import tensorstore  # Slow to import; needed only to read a checkpoint.

    def read(key: str) -> bytes:
        try:
            return opened[key]
        except Exception as error:  # TensorStore has no error class for damaged data.
            raise UserError(f"{folder}: {key} cannot be read ({reason(error)})") from error

    try:
        opened = tensorstore.KvStore.open(dict(store)).result()
        keys = {key.decode(errors="replace") for key in opened.list().result()}
    except Exception as error:
        raise UserError(
            f"{folder}: cannot be read; damaged or truncated ({reason(error)})"
        ) from error
    return keys, read
