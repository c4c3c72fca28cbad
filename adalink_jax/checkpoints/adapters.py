"""Adapters on disk: a small folder that describes itself and the base it fits.

``adapter.safetensors`` holds the trained arrays as float32, under their ``"/"``-joined names; those
of a compressed adapter in two bits a number (`ternary`).
``adapter.json`` holds everything else: method and settings, the base's architecture and
fingerprint, route names, metadata (resolved configuration, data identity, metrics), shape and
dtype of every array, the SHA-256 of the safetensors file, and the SHA-256 of all these fields
(`record_digest`). Neither file contains a time or a path, so equal runs write equal bytes.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from adalink_jax import files
from adalink_jax.checkpoints import ternary
from adalink_jax.checkpoints.adapter_record import (
    FORMAT_VERSION,
    RECORD,
    SHOWN_DIGITS,
    TERNARY_VERSION,
    AdapterRecord,
    check_digest,
    checked_record,
    parse_record,
    write_record,
)
from adalink_jax.checkpoints.architecture import (
    Shapes,
    check_shapes,
    describe_architecture,
)
from adalink_jax.checkpoints.fingerprint import as_float32, check_finite, file_sha256
from adalink_jax.checkpoints.formats.safetensors_files import write_tensors
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

TENSORS = "adapter.safetensors"
_TERNARY = "ternary"
# So many files below a folder that is no adapter are looked at for one.
_LOOKED_AT = 10_000


@dataclasses.dataclass(frozen=True)
class Adapter(AdapterRecord):
    """A loaded adapter: its record and its arrays.

    Attributes:
      tree: the method's own tree, nested dicts of float32 NumPy arrays.
    """

    tree: dict[str, Any]


def save_adapter(
    folder: str | os.PathLike[str],
    adapter_tree: Mapping[str, Any],
    *,
    method_name: str,
    settings: Mapping[str, Any],
    architecture: T5Config,
    base_fingerprint: str,
    route_names: Sequence[str] = ("all",),
    metadata: Mapping[str, Any] = types.MappingProxyType({}),
    compressed: bool = False,
    halved: bool = False,
) -> None:
    """Writes an adapter atomically; equal arguments give equal bytes.

    If the folder already holds an adapter, that one stays loadable until the new one replaces it.
    Only one process may write. In a run with several processes, call this on one of them, with
    arrays that are fully addressable there.

    Args:
      folder: the adapter's folder; parent folders are created.
      adapter_tree: nested dicts of floating-point arrays of any shape.
      method_name: a name in ``METHODS``.
      settings: the method's fields; JSON values, tuples allowed.
      architecture: the base's configuration.
      base_fingerprint: `fingerprint` of the base.
      route_names: what each of the K routes is for.
      metadata: JSON values, without times or paths.
      compressed: whether arrays that hold −s, 0 and s alone are stored in two bits a number.
      halved: whether the arrays of a base, which have bfloat16's values, are stored as such;
        `load_base` reads them.

    Raises:
      UserError: the folder cannot be written (permission, space), or the record could not be
        read: the method is unknown, or has other settings or another number of routes.
      TypeError: an array is not floating point, or settings or metadata are not JSON values.

    Examples:
      >>> al.save_adapter(
      ...     folder / "mine",
      ...     adapter,
      ...     method_name="adalink",
      ...     settings={"rank": 4},
      ...     architecture=config,
      ...     base_fingerprint=al.fingerprint(base),
      ... )
    """
    flat = traverse_util.flatten_dict(adapter_tree, sep="/")
    arrays = {name: _as_stored(name, flat[name]) for name in sorted(flat)}
    if halved:
        arrays = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    entries = {name: _tensor_entry(array) for name, array in arrays.items()}
    packed: dict[str, list[float]] = {}
    if compressed:
        packed = {name: s for name, array in arrays.items() if (s := ternary.scales(array))}
        for name, values in packed.items():
            entries[name] = {**entries[name], "dtype": _TERNARY, "scales": values}
            arrays[name] = ternary.encoded(arrays[name])
    record = {
        "format_version": TERNARY_VERSION if compressed else FORMAT_VERSION,
        "method": method_name,
        "settings": dict(settings),
        "architecture": describe_architecture(architecture),
        "base_fingerprint": base_fingerprint,
        "route_names": list(route_names),
        "metadata": dict(metadata),
        "tensors": entries,
    }
    # Bytes come last, so that all float32 numbers are aligned.
    ordered = sorted(arrays, key=lambda name: (name in packed, name))
    shapes = {name: arrays[name].shape for name in ordered}
    with files.replaced_folder(folder) as partial:
        record["sha256"] = write_tensors(
            partial / TENSORS, shapes, arrays.__getitem__, packed=packed, halved=halved
        )
        # What would not be read is not written over what is there.
        checked_record(parse_record(json.dumps(record).encode(), str(folder)), str(folder))
        write_record(partial, record)


def _as_stored(name: str, leaf: Any) -> np.ndarray:
    array = as_float32(np.asarray(leaf))
    if array.dtype != np.float32:
        raise TypeError(
            f"{name} is {array.dtype}; adapters hold floating-point arrays up to 32 bit"
        )
    return array


def load_adapter(
    folder: str | os.PathLike[str],
    *,
    architecture: T5Config | None = None,
    base_fingerprint: str | None = None,
    method_name: str | None = None,
) -> Adapter:
    """Loads an adapter and checks that it is complete and fits.

    Args:
      folder: the folder that `save_adapter` wrote.
      architecture: the base's architecture; None skips the comparison.
      base_fingerprint: the base's `fingerprint`; None skips the comparison.
      method_name: the expected method; None allows any.

    Returns:
      The adapter. The shapes of its arrays are those in the file; use `check_tensors` to compare
      them with the method's.

    Raises:
      UserError: a file is missing, truncated or altered; the format version is unknown; the
        arrays are not those in the JSON's list, not float32, or hold NaN or infinity; the method
        is unknown, is not `method_name` or has no such settings; or the adapter belongs to another
        base.

    Examples:
      >>> al.load_adapter(folder / "mine", base_fingerprint=al.fingerprint(base)).method.rank
      4
    """
    record, raw = _read_record(folder)
    where = files.present_folder(folder)
    if method_name is not None and record.method_name != method_name:
        raise UserError(
            f"adapter {where}: of method '{record.method_name}', expected '{method_name}'"
        )
    record.check_base(where, architecture=architecture, base_fingerprint=base_fingerprint)
    path = where / TENSORS
    try:
        if not path.is_file():
            raise UserError(f"adapter {folder}: no file {TENSORS} in it")
        check_sha256(file_sha256(path), raw, str(path))
        tree = _tree(lambda: safetensors.numpy.load_file(path), raw, str(path))
    except OSError as error:
        raise UserError(f"adapter {folder} cannot be read: {error}") from error
    check_digest(raw, where / RECORD)  # Last, because the others say more.
    return Adapter(**vars(record), tree=tree)


def adapter_of(
    record: bytes,
    tensors: Callable[[], bytes],
    where: str,
    *,
    architecture: T5Config | None = None,
    base_fingerprint: str | None = None,
) -> Adapter:
    """Returns an adapter from the content of its two files, checked as `load_adapter` does.

    Args:
      record: the content of its record.
      tensors: returns the content of its arrays' file.
      where: what to call it in errors.
      architecture: the base's architecture; None skips the comparison.
      base_fingerprint: the base's `fingerprint`; None skips the comparison.

    Raises:
      UserError: as in `load_adapter`.
    """
    raw = parse_record(record, where)
    adapter = checked_record(raw, where)
    adapter.check_base(where, architecture=architecture, base_fingerprint=base_fingerprint)
    content = tensors()
    check_sha256(hashlib.sha256(content).hexdigest(), raw, where)
    tree = _tree(lambda: safetensors.numpy.load(content), raw, where)
    check_digest(raw, where)
    return Adapter(**vars(adapter), tree=tree)


def read_record(folder: str | os.PathLike[str]) -> AdapterRecord:
    """Reads an adapter's record without its arrays, which can be as large as a whole model.

    Args:
      folder: the folder that `save_adapter` wrote.

    Raises:
      UserError: as in `load_adapter`, for what concerns the record.
    """
    record, raw = _read_record(folder)
    check_digest(raw, files.present_folder(folder) / RECORD)
    return record


def _below(folder: pathlib.Path) -> str:
    """Returns what to give in the place of a folder that is no adapter's."""
    below = itertools.islice(folder.rglob("*"), _LOOKED_AT)
    found = next((path.parent for path in below if path.name == RECORD), None)
    return "; give an adapter's folder or its run's" + (f", such as {found}" if found else "")


def _read_record(folder: str | os.PathLike[str]) -> tuple[AdapterRecord, dict[str, Any]]:
    """Returns the record, and the raw fields of the file."""
    path = files.present_folder(folder) / RECORD
    try:
        if not path.parent.exists():
            raise UserError(f"adapter {folder}: no such folder")
        if not path.is_file():
            raise UserError(f"adapter {folder}: no file {RECORD} in it{_below(path.parent)}")
        raw = parse_record(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"adapter {folder} cannot be read: {error}") from error
    return checked_record(raw, str(path.parent), str(path)), raw


def check_tensors(found: Shapes, expected: Shapes, where: str = "the adapter") -> None:
    """Checks that an adapter's arrays are those of its method on this base.

    Args:
      found: name → shape in the file (`shapes_of` its tree).
      expected: name → shape by the method (`shapes_of` the ``jax.eval_shape`` of its tree).
      where: the adapter's path, for the error.

    Raises:
      UserError: one line with the missing, unexpected and mismatched arrays.
    """
    check_shapes(expected, found, where)


def check_sha256(digest: str, record: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` unless the tensors' file at `where` has the SHA-256 in its record."""
    if digest != record["sha256"]:
        raise UserError(
            f"{where}: truncated or altered: its SHA-256 is {digest[:SHOWN_DIGITS]}…,"
            f" {RECORD} says {record['sha256'][:SHOWN_DIGITS]}…"
        )


def _tree(
    read: Callable[[], dict[str, np.ndarray]], record: Mapping[str, Any], path: str
) -> dict[str, Any]:
    try:
        arrays = read()
        traverse_util.unflatten_dict(arrays, sep="/")
    except Exception as error:  # The hash matches, so the writer was wrong; any class can occur.
        raise UserError(f"{path}: no safetensors file ({type(error).__name__})") from error
    found = {}
    for name, array in arrays.items():
        listed = record["tensors"].get(name)
        if isinstance(listed, dict) and listed.get("dtype") == _TERNARY:
            try:
                arrays[name], found[name] = ternary.decoded(array, listed), listed
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise UserError(f"{path}: {name!r} is damaged: {error}") from error
            continue
        if array.dtype != np.float32:
            raise UserError(f"{path}: {name!r} is {array.dtype}; adapters hold float32")
        check_finite(array, f"{path}: {name!r}")
        found[name] = _tensor_entry(array)
    check_listed(found, record, path)
    return traverse_util.unflatten_dict(arrays, sep="/")


def check_listed(
    found: Mapping[str, Mapping], record: Mapping[str, Any], path: str | pathlib.Path
) -> None:
    """Raises `UserError` unless the file at `path` holds exactly the arrays its record lists.

    Args:
      found: name → ``{"dtype": "float32", "shape": [...]}``, as in the record.
      record: the result of `parse_record`.
      path: the file's path.
    """
    if found != record["tensors"]:
        names = sorted(
            name
            for name in found.keys() | record["tensors"].keys()
            if found.get(name) != record["tensors"].get(name)
        )
        raise UserError(
            f"{path}: {len(names)} arrays are not as {RECORD} lists them, such as {names[0]!r}"
        )


def _tensor_entry(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}
