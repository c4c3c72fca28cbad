"""Describes an adapter, checks that it is active on its base, and compares two adapters."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from adalink_jax.adapters.load import adapter_folder, largest, load_adaptation, logits
from adalink_jax.checkpoints import (
    fingerprint,
    load_adapter,
    shapes_of,
)
from adalink_jax.checkpoints.adapters import TENSORS
from adalink_jax.checkpoints.architecture import describe_architecture
from adalink_jax.errors import UserError

# Smaller changes of the logits, relative to the largest logit, are rounding.
_ROUNDING = 1e-6
# The number of a layer in a tensor's name, and the longest entry of an adapter's metadata.
_NUMBER = re.compile(r"(?<=_)\d+(?=/)")
_LONG = "configuration"


def info(adapter: str, as_json: bool) -> int:
    """Prints what an adapter is. Needs no base."""
    folder = adapter_folder(adapter)
    loaded = load_adapter(folder)
    tensors = shapes_of(loaded.tree)
    record = {
        "method": loaded.method_name,
        "settings": loaded.settings,
        "routes": list(loaded.route_names),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.tree)),
        "bytes": (folder / TENSORS).stat().st_size,
        "fingerprint": fingerprint(loaded.tree),
        "base": {
            "fingerprint": loaded.base_fingerprint,
            "architecture": describe_architecture(loaded.architecture),
        },
        "metadata": loaded.metadata,
        "tensors": {name: list(shape) for name, shape in tensors.items()},
    }
    if as_json:
        print(json.dumps(record, indent=1, sort_keys=True))
    else:
        for name, value in _lines(_short(record)):
            print(f"{name}: {value:,}" if name in ("parameters", "bytes") else f"{name}: {value}")
        print("(--json says all: the run's configuration, and each layer's tensors)")
    return 0


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `info`'s record for people: no configuration, and tensors of alike layers as one."""
    architecture = dict(_lines(record["base"]["architecture"]))
    alike = collections.Counter(
        (_NUMBER.sub("*", name), " × ".join(map(str, shape)))
        for name, shape in record["tensors"].items()
    )
    tensors: dict[str, list[str]] = {}
    for (name, shape), count in alike.items():
        tensors.setdefault(name, []).append(f"{count} of {shape}" if count > 1 else shape)
    base = {
        "fingerprint": record["base"]["fingerprint"],
        "architecture": ", ".join(f"{name} {value}" for name, value in architecture.items()),
    }
    metadata = {key: record["metadata"][key] for key in record["metadata"] if key != _LONG}
    return {**record, "base": base, "metadata": metadata, "tensors": tensors}


def _lines(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields a nested record as (dotted name, value) pairs; a list is one value, text one line."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            key = key if key.isprintable() else repr(key)
            yield from _lines(value, f"{name}.{key}" if name else key)
        return
    if isinstance(record, list | tuple):
        record = ", ".join(map(str, record))
    yield name, repr(record) if isinstance(record, str) and not record.isprintable() else record


def verify(adapter: str, base: str) -> int:
    """Prints how much each route changes the base's logits on the fixed inputs, at most.

    Raises:
      UserError: the adapter does not fit the base, or a route changes nothing.
    """
    adaptation = load_adaptation(adapter, base)
    plain = logits(adaptation.config, adaptation.base)
    print(f"{adapter} fits {base}; the base's logits reach {largest(plain):.4g}")
    inactive = []
    for route, name in enumerate(adaptation.routes):
        change = largest(adaptation.logits(route) - plain)
        print(f"route {name}: largest change of a logit {change:.4g}")
        if not np.isfinite(change):
            raise UserError(f"{adapter}: on route '{name}' the logits are not finite")
        if change <= _ROUNDING * largest(plain):
            inactive.append(name)
    if inactive:
        raise UserError(f"{adapter} changes nothing on route {', '.join(inactive)}: not active")
    return 0


def diff(first: str, second: str) -> int:
    """Prints the differences between two adapters; returns 0 if there are none, else 1."""
    adapters = [load_adapter(adapter_folder(path)) for path in (first, second)]
    records, trees = [], []
    for adapter in adapters:
        record = dataclasses.asdict(adapter)
        del record["tree"]
        record["architecture"] = describe_architecture(adapter.architecture)
        record["fingerprint"] = fingerprint(adapter.tree)
        records.append(dict(_lines(record)))
        trees.append(traverse_util.flatten_dict(adapter.tree, sep="/"))
    absent = "(absent)"
    differences = [
        f"{name}: {one} | {other}"
        for name, one, other in _paired(records[0], records[1], absent)
        if one != other
    ]
    for name, one, other in _paired(trees[0], trees[1], absent):
        if one is absent or other is absent or one.shape != other.shape:
            shapes = [x if x is absent else list(np.shape(x)) for x in (one, other)]
            differences.append(f"{name}: {shapes[0]} | {shapes[1]}")
        elif not np.array_equal(one, other):
            differences.append(f"{name}: differs by at most {largest(one - other):.4g}")
    for line in differences or [f"{first} and {second} hold the same"]:
        print(line)
    return 1 if differences else 0


def _paired(first: Mapping, second: Mapping, absent: str) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*first, *second]):
        yield name, first.get(name, absent), second.get(name, absent)
