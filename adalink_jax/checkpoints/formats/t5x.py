"""Reads T5X's native checkpoints, as Google published T5 1.0, 1.1, LM-adapted T5 and FLAN-T5.

A folder ``checkpoint_N`` holds a msgpack index named ``checkpoint`` (version 3; parameters under
``optimizer/target``) and a zarr v2 array ``target.a.b.c/`` for each parameter. Small arrays may be
in the index itself. A TensorStore spec gives each array's path, relative to the folder or in the
bucket the checkpoint was written to; only the path's last component is used. Optimizer state
(``optimizer/state``) is not read.

Source of the format: t5x/checkpoints.py.
"""

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization

from adalink_jax.checkpoints.formats.scalable_t5 import as_minimal
from adalink_jax.checkpoints.formats.zarr import ZarrArray, check_sizes, describe_zarr
from adalink_jax.checkpoints.lazy import Array, StoredBase, open_arrays
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

INDEX = "checkpoint"

_VERSION = 3
# Such as model.ckpt-1000000.data-00000-of-00002.
_TENSORFLOW = re.compile(r".*ckpt.*\.(data-\d+-of-\d+|index|meta)")
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")


@dataclasses.dataclass(frozen=True)
class _Referred:
    """An array that the index refers to: its folder's name, and its shape in the index."""

    name: str
    shape: tuple[int, ...]


def latest_step(folder: Folder, children: Collection[str]) -> Folder:
    """Returns the ``checkpoint_N`` with the highest N among the children, or else the folder."""
    steps = {int(match[1]): name for name in children if (match := _STEP_FOLDER.fullmatch(name))}
    return folder / steps[max(steps)] if steps else folder


def find_checkpoint(folder: Folder, children: Collection[str]) -> Folder | None:
    """Returns the T5X checkpoint in `folder`: itself, or its ``checkpoint_N`` with the highest N.

    Args:
      folder: an existing folder.
      children: the names in it.

    Returns:
      The folder that holds the index file, or None if `folder` is not a native T5X checkpoint.

    Raises:
      UserError: the latest ``checkpoint_N`` is empty or unfinished; or it is TensorFlow's, in
        which T5 was first published, and which has a file of the same name as T5X's index.
    """
    if parts := [name for name in children if _TENSORFLOW.fullmatch(name)]:
        raise UserError(
            f"{folder}: a checkpoint of Mesh TensorFlow ({parts[0]}), which is not read; T5X's "
            "versions of the published ones are in gs://t5-data/pretrained_models/t5x/"
        )
    if folder.holds_file(INDEX):
        return folder
    latest = latest_step(folder, children)
    if latest == folder:
        return None
    if not latest.holds_file(INDEX):
        raise UserError(f"{latest}: no index file '{INDEX}' in it; the copy is empty or unfinished")
    return latest


def open_base(folder: Folder, configured: T5Config | None = None) -> StoredBase:
    """Opens a T5X checkpoint: checks that every array exists, and reads none.

    If a part of an array is missing, the error comes when that part is read.

    Args:
      folder: the folder that holds the index file.
      configured: the expected architecture; its MLP activations are used, because arrays do not
        show them. None expects nothing and assumes the published activations.

    Raises:
      UserError: the index is unreadable; an array is missing, unexpected, of another shape than the
        architecture's, or neither float32 nor bfloat16; or the architecture is not the configured
        one.
    """
    leaves = _read_index(folder)
    check_sizes({name: leaf.shape for name, leaf in leaves.items()}, folder)
    # Checks the architecture before the arrays, so that one error lists everything missing.
    open_arrays(as_minimal(leaves, str(folder)), str(folder), configured)
    files = folder.files()
    _check_all_referred_to(folder, leaves, files)
    arrays = {
        name: _open_array(leaf, folder, files) if isinstance(leaf, _Referred) else leaf
        for name, leaf in leaves.items()
    }
    chunks = {name: a.chunks for name, a in arrays.items() if isinstance(a, ZarrArray)}
    check_sizes(chunks, folder)
    return open_arrays(as_minimal(arrays, str(folder)), str(folder), configured)


def _read_index(folder: Folder) -> dict[str, Any]:
    path = folder / INDEX
    content = folder.read(INDEX)
    try:
        index = serialization.msgpack_restore(content)
    except Exception as error:  # Truncated or altered bytes raise many unrelated classes.
        raise UserError(
            f"{path}: the index of a T5X checkpoint is truncated or damaged"
            f" ({type(error).__name__})"
        ) from error
    version = index.get("version") if isinstance(index, Mapping) else None
    known = isinstance(version, int | np.integer) and 1 <= version <= _VERSION
    if not isinstance(index, Mapping) or not known:
        raise UserError(
            f"{path}: no T5X index of a known version (found version {version!r},"
            f" expected {_VERSION})"
        )
    optimizer = index.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, Mapping) else None
    if not isinstance(target, Mapping):
        raise UserError(f"{path}: the index has no 'optimizer/target', where T5X keeps parameters")
    leaves: dict[str, _Referred | np.ndarray] = {}
    nodes: list[tuple[str, Any]] = [("", target)]
    while nodes:
        name, node = nodes.pop()
        if isinstance(node, Mapping) and not {"driver", "metadata"} <= node.keys():
            nodes += [(f"{name}/{key}" if name else str(key), child) for key, child in node.items()]
        elif name in leaves or not name.isprintable():
            raise UserError(
                f"{path}: damaged index: a parameter named {name!r}, or two of that name"
            )
        else:
            leaves[name] = _leaf(node, f"{path}: {name}")
    return dict(sorted(leaves.items()))


def _leaf(node: Any, where: str) -> _Referred | np.ndarray:
    if isinstance(node, Mapping):
        return _referred(node, where)
    if isinstance(node, np.ndarray | np.generic):
        if node.dtype not in (jnp.bfloat16, np.float32):
            raise UserError(f"{where}: dtype {node.dtype}; expected float32 or bfloat16")
        return np.asarray(node)
    raise UserError(f"{where} is no array but {type(node).__name__}")


def _referred(spec: Mapping, where: str) -> _Referred:
    try:
        store = spec["kvstore"]
        # TensorStore specs from before 2022 have the path next to the store, not in it.
        path = store.get("path") or spec["path"]
        shape = tuple(int(size) for size in spec["metadata"]["shape"])
        base_name = pathlib.PurePosixPath(path).name
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{where} has no path and shape in its TensorStore spec") from error
    if base_name in ("", ".."):
        raise UserError(f"{where} points to {path!r}, which names no array")
    return _Referred(base_name, shape)


def _check_all_referred_to(folder: Folder, leaves: Mapping[str, Any], files: frozenset) -> None:
    referred = [leaf.name for leaf in leaves.values() if isinstance(leaf, _Referred)]
    twice = sorted({name for name in referred if referred.count(name) > 1})
    if twice:
        raise UserError(f"{folder}: two parameters of the index share the array {twice[0]}")
    there = {name.partition("/")[0] for name in files if name.startswith("target.")}
    spare = sorted(there - set(referred))
    if spare:
        raise UserError(f"{folder}: {len(spare)} arrays that the index lacks, such as {spare[0]}")


def _open_array(leaf: _Referred, folder: Folder, files: frozenset[str]) -> Array:
    place = folder / leaf.name
    if not any(name.startswith(f"{leaf.name}/") for name in files):
        raise UserError(f"{place}: the array is missing; the copy is truncated or unfinished")
    layout = place.read(".zarray")
    array = describe_zarr(layout, "zarr", str(place), folder.kvstore(leaf.name))
    if array.shape != leaf.shape:
        raise UserError(
            f"{place}: shape {list(array.shape)}, but the index says {list(leaf.shape)}"
        )
    return array
