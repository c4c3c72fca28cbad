"""Reads T5X's native checkpoints, as Google published T5 1.0, 1.1, LM-adapted T5 and FLAN-T5.

A folder ``checkpoint_N`` holds a msgpack index named ``checkpoint`` (version 3; parameters under
``optimizer/target``) and a zarr v2 array ``target.a.b.c/`` for each parameter; small arrays may
stand in the index itself. Where an array lies is said by a TensorStore spec whose path is
relative to the folder, or points into the bucket the checkpoint was written to: only its last
component counts. Optimizer state (``optimizer/state``) is not read.

Source of the format: t5x/checkpoints.py.
"""

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from adalink_jax.checkpoints import architecture
from adalink_jax.checkpoints.hashing import as_float32
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

INDEX = "checkpoint"

_VERSION = 3
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")
_ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A zarr array that the index refers to, and the shape that the index gives it."""

    folder: pathlib.Path
    shape: tuple[int, ...]


def find_checkpoint(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the T5X checkpoint in `folder`: itself, or its ``checkpoint_N`` of the highest N.

    Args:
      folder: an existing folder.

    Returns:
      The folder that holds the index file, or None where `folder` is nothing of T5X's.

    Raises:
      UserError: the latest ``checkpoint_N`` is empty, unfinished, or in T5X's newer Orbax form.
    """
    if (folder / INDEX).is_file():
        return folder
    steps = {
        int(match[1]): child
        for child in folder.iterdir()
        if (match := _STEP_FOLDER.fullmatch(child.name)) and child.is_dir()
    }
    latest = steps[max(steps)] if steps else folder
    if any((latest / name).exists() for name in _ORBAX_FILES):
        raise UserError(
            f"{latest}: a checkpoint in Orbax form; this version reads T5X's native form only"
            f" (a msgpack file named '{INDEX}' beside zarr arrays)"
        )
    if not steps:
        return None
    if not (latest / INDEX).is_file():
        raise UserError(f"{latest}: no index file '{INDEX}' in it; the copy is empty or unfinished")
    return latest


def load(folder: pathlib.Path, configured: T5Config | None = None) -> tuple[T5Config, dict]:
    """Reads the parameters of a T5X checkpoint, each used exactly once.

    Args:
      folder: the folder that holds the index file.
      configured: the architecture it is expected to have; also says which functions its MLP
        uses, which arrays do not tell. None: as published.

    Returns:
      The architecture and nested dicts of float32 NumPy arrays under T5X's names.

    Raises:
      UserError: the index is unreadable; an array or a part of one is missing, unexpected, of
        another shape than the architecture's, or neither float32 nor bfloat16; or the
        architecture is not the configured one.
    """
    leaves = _read_index(folder)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    activations = configured.mlp_activations if configured is not None else None
    config = architecture.infer_config(shapes, str(folder), activations)
    if configured is not None:
        architecture.check_architecture(configured, config, str(folder))
    _check_all_referred_to(folder, leaves)
    # Every array is checked before the first is read: the arrays may be many gigabytes.
    for leaf in leaves.values():
        if isinstance(leaf, _Stored):
            _check_complete(leaf)
    params = {name: _read(leaf, f"{folder}: {name}") for name, leaf in leaves.items()}
    return config, traverse_util.unflatten_dict(params, sep="/")


def _read_index(folder: pathlib.Path) -> dict[str, _Stored | np.ndarray]:
    path = folder / INDEX
    try:
        index = serialization.msgpack_restore(path.read_bytes())
    except Exception as error:  # Cut or altered bytes raise a dozen unrelated classes.
        raise UserError(
            f"{path}: the index of a T5X checkpoint is truncated or damaged"
            f" ({type(error).__name__})"
        ) from error
    version = index.get("version") if isinstance(index, Mapping) else None
    if not isinstance(version, int | np.integer) or not 1 <= version <= _VERSION:
        raise UserError(
            f"{path}: no T5X index of a known version (found version {version!r},"
            f" expected {_VERSION})"
        )
    optimizer = index.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, Mapping) else None
    if not isinstance(target, Mapping):
        raise UserError(f"{path}: the index has no 'optimizer/target', where T5X keeps parameters")
    leaves: dict[str, _Stored | np.ndarray] = {}
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
            leaves[name] = _leaf(node, name, folder)
    return dict(sorted(leaves.items()))


def _leaf(node: Any, name: str, folder: pathlib.Path) -> _Stored | np.ndarray:
    if isinstance(node, Mapping):
        return _stored(node, name, folder)
    if isinstance(node, np.ndarray | np.generic):
        return np.asarray(node)
    raise UserError(f"{folder / INDEX}: {name} is no array but {type(node).__name__}")


def _stored(spec: Mapping, name: str, folder: pathlib.Path) -> _Stored:
    where = f"{folder / INDEX}: {name}"
    try:
        store = spec["kvstore"]
        # TensorStore specs of before 2022 keep the array's path beside the store, not in it.
        path = store.get("path") or spec.get("path")
        shape = tuple(int(size) for size in spec["metadata"]["shape"])
        base_name = pathlib.PurePosixPath(path).name
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} has no path and shape in its TensorStore spec") from error
    if base_name in ("", ".."):
        raise UserError(f"{where} points to {path!r}, which names no array")
    return _Stored(folder / base_name, shape)


def _check_all_referred_to(folder: pathlib.Path, leaves: Mapping[str, Any]) -> None:
    referred = [leaf.folder.name for leaf in leaves.values() if isinstance(leaf, _Stored)]
    twice = sorted({name for name in referred if referred.count(name) > 1})
    if twice:
        raise UserError(f"{folder}: two parameters of the index share the array {twice[0]}")
    spare = sorted(p.name for p in folder.glob("target.*") if p.name not in set(referred))
    if spare:
        raise UserError(f"{folder}: {len(spare)} arrays that the index lacks, such as {spare[0]}")


def _check_complete(leaf: _Stored) -> None:
    """Checks that the files of an array are there; TensorStore reads missing ones as zeros."""
    if not leaf.folder.is_dir():
        raise UserError(f"{leaf.folder}: the array is missing; the copy is truncated or unfinished")
    path = leaf.folder / ".zarray"
    try:
        layout = json.loads(path.read_bytes())
        shape, chunks = tuple(layout["shape"]), tuple(layout["chunks"])
        dtype, separator = layout["dtype"], layout.get("dimension_separator", ".")
        grid = [range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True)]
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the copy is truncated or unfinished") from error
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: not the layout of a zarr v2 array") from error
    if shape != leaf.shape:
        raise UserError(
            f"{leaf.folder}: shape {list(shape)}, but the index says {list(leaf.shape)}"
        )
    if dtype not in ("<f4", "bfloat16"):
        raise UserError(f"{leaf.folder}: dtype {dtype!r}; expected float32 ('<f4') or bfloat16")
    for place in itertools.product(*grid):
        chunk = leaf.folder / (str(separator).join(map(str, place)) or "0")
        if not chunk.is_file():
            raise UserError(
                f"{chunk}: a part of the array is missing; the copy is truncated or unfinished"
            )


def _read(leaf: _Stored | np.ndarray, where: str) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        if leaf.dtype not in (jnp.bfloat16, np.float32):
            raise UserError(f"{where}: dtype {leaf.dtype}; expected float32 or bfloat16")
        return as_float32(leaf)
    import tensorstore  # Costly; needed only where there is a checkpoint to read.

    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{leaf.folder.absolute()}/"}}
    try:
        array = tensorstore.open(spec, open=True, read=True).result().read().result()
    except Exception as error:  # TensorStore has no class of its own for damaged data.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{leaf.folder}: cannot be read; damaged or truncated ({reason})"
        ) from error
    return as_float32(array)
