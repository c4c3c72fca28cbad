"""What an adapter is, whether it fits a base and does anything there, and how two differ."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints import (
    Adapter,
    check_tensors,
    fingerprint,
    load_adapter,
    load_base,
    save_adapter,
    shapes_of,
)
from adalink_jax.checkpoints.adapters import TENSORS
from adalink_jax.checkpoints.architecture import describe_architecture
from adalink_jax.checkpoints.peft import load_peft
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Array, Method, Params, merge, split
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training.state import abstract_params
from adalink_jax.verification import fixed_inputs

# A change of the logits by less than this share of the largest is rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """An adapter and the base it belongs to, checked against each other.

    Attributes:
      adapter: as it was loaded.
      method: of the adapter's settings.
      config: the base's architecture.
      base: the base's tree.
    """

    adapter: Adapter
    method: Method
    config: T5Config
    base: Params

    @property
    def routes(self) -> tuple[str, ...]:
        """The name of each of the K routes."""
        return self.adapter.route_names

    @property
    def params(self) -> Params:
        """Base and adapter in one tree."""
        tree = self.adapter.tree
        return tree if self.method.trains_base else merge(self.base, tree)

    def route(self, name: str | None) -> int:
        """The number of a route; without a name, that of the only one.

        Raises:
          UserError: there is no such route, or none is named and there are several.
        """
        if name is None and len(self.routes) == 1:
            return 0
        if name not in self.routes:
            what = "needs one of its routes" if name is None else f"has no route '{name}'"
            raise UserError(
                f"the adapter {what}{nearest(name or '', self.routes)}; its routes are "
                f"{', '.join(self.routes)}"
            )
        return self.routes.index(name)

    def logits(self, route: int) -> np.ndarray:
        """The adapted network's logits on the fixed inputs, [B,L,V], on one route."""
        return logits(self.config, self.params, self.method, route)

    def folded(self, route: int) -> tuple[T5Config, Params]:
        """Base and adapter as a plain base, with its architecture.

        Raises:
          UserError: the method cannot be folded.
        """
        tree = self.method.fold(self.base, self.adapter.tree, route)
        own_table = "token_embedder" in tree["encoder"]
        return dataclasses.replace(self.config, separate_encoder_embedding=own_table), tree


def adapter_folder(path: str) -> pathlib.Path:
    """The adapter's folder, given itself or its run's."""
    inner = pathlib.Path(path) / "adapter"
    return inner if inner.is_dir() else pathlib.Path(path)


def load(adapter_path: str, base_path: str) -> Adaptation:
    """Loads an adapter and its base, strictly.

    Args:
      adapter_path: the adapter's folder or its run's.
      base_path: the base it was trained on, in any format that `load_base` reads.

    Raises:
      UserError: one of them is damaged; or the base's architecture or fingerprint is not what
        the adapter says; or the adapter's arrays are not those of its method on this base.
    """
    folder = adapter_folder(adapter_path)
    # The adapter says which functions an MLP uses, which arrays do not tell.
    architecture = load_adapter(folder).architecture
    config, base = load_base(base_path, architecture)
    adapter = load_adapter(folder, architecture=config, base_fingerprint=fingerprint(base))
    method = adapter.method
    check_adapter(config, method, adapter.tree, str(folder))
    if len(adapter.route_names) != getattr(method, "routes", 1):
        raise UserError(
            f"adapter {folder}: {len(adapter.route_names)} names of routes, but its settings say "
            f"{getattr(method, 'routes', 1)} routes"
        )
    return Adaptation(adapter, method, config, base)


def check_adapter(
    config: T5Config, method: Method, tree: Mapping[str, Any], where: str = "the adapter"
) -> None:
    """Raises `UserError` unless the tree is just what the method has in this architecture."""
    params, _ = abstract_params(config, method)
    expected, _ = split(params, method)
    check_tensors(shapes_of(tree), shapes_of(expected), where)


@functools.cache
def _forward(config: T5Config, method: Method) -> Callable[..., Array]:
    model = Transformer(config, method)

    @jax.jit
    def forward(params: Params, inputs: Array, targets: Array, route: int) -> Array:
        return model.apply(
            {"params": params},
            inputs,
            targets,
            targets,
            enable_dropout=False,
            encoder_routes=jnp.full_like(inputs, route),
            decoder_routes=jnp.full_like(targets, route),
        )

    return forward


def logits(
    config: T5Config, params: Params, method: Method | None = None, route: int = 0
) -> np.ndarray:
    """Float32 logits [B,L,V] on `verification.fixed_inputs`.

    Args:
      config: the architecture.
      params: base and adapter.
      method: of the adapter; None for a base alone.
      route: which of the method's modules adapts every token.
    """
    forward = _forward(config, method or Method())
    with jax.default_matmul_precision("float32"):
        return np.asarray(forward(params, *fixed_inputs(config.vocab_size), route))


def largest(array: np.ndarray) -> float:
    """The largest magnitude in an array; NaN where one is, 0 where there is none."""
    return float(np.abs(array).max(initial=0.0))


def info(adapter: str, as_json: bool) -> int:
    """Prints what an adapter is; needs no base."""
    folder = adapter_folder(adapter)
    found = load_adapter(folder)
    tensors = shapes_of(found.tree)
    record = {
        "method": found.method_name,
        "settings": found.settings,
        "routes": list(found.route_names),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(found.tree)),
        "bytes": (folder / TENSORS).stat().st_size,
        "fingerprint": fingerprint(found.tree),
        "base": {
            "fingerprint": found.base_fingerprint,
            "architecture": describe_architecture(found.architecture),
        },
        "metadata": found.metadata,
        "tensors": {name: list(shape) for name, shape in tensors.items()},
    }
    if as_json:
        print(json.dumps(record, indent=1, sort_keys=True))
    else:
        for name, value in _lines(record):
            print(f"{name}: {value:,}" if name in ("parameters", "bytes") else f"{name}: {value}")
    return 0


def _lines(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A nested record as (dotted name, value) pairs; a list is one value, text one line."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            key = key if key.isprintable() else repr(key)
            yield from _lines(value, f"{name}.{key}" if name else key)
        return
    if isinstance(record, list | tuple):
        record = ", ".join(map(str, record))
    yield name, repr(record) if isinstance(record, str) and not record.isprintable() else record


def verify(adapter: str, base: str) -> int:
    """Prints each route's largest change of the base's logits on the fixed inputs.

    Raises:
      UserError: adapter and base do not fit, or a route changes nothing.
    """
    adaptation = load(adapter, base)
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
    """Prints what differs between two adapters; returns 0 where nothing does, else 1."""
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
        f"{name}: {one} | {other}" for name, one, other in _paired(*records, absent) if one != other
    ]
    for name, one, other in _paired(*trees, absent):
        if one is absent or other is absent or one.shape != other.shape:
            shapes = [x if x is absent else list(x.shape) for x in (one, other)]
            differences.append(f"{name}: {shapes[0]} | {shapes[1]}")
        elif not np.array_equal(one, other):
            differences.append(f"{name}: differs by at most {largest(one - other):.4g}")
    for line in differences or [f"{first} and {second} hold the same"]:
        print(line)
    return 1 if differences else 0


def _paired(first: Mapping, second: Mapping, absent: str) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*first, *second]):
        yield name, first.get(name, absent), second.get(name, absent)


def import_peft(peft: str, base: str, to: str) -> int:
    """Writes an adapter of Hugging Face's PEFT as an adapter of this project's.

    Args:
      peft: the folder that PEFT wrote.
      base: the base it was trained on.
      to: the folder to write, at which nothing is yet.

    Raises:
      UserError: the adapter is damaged, not of this base, or does what no method here does.
    """
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    config, params = load_base(base)
    method, tree = load_peft(peft, config)
    save_adapter(
        to,
        tree,
        method_name=method.scope,
        settings=dataclasses.asdict(method),
        architecture=config,
        base_fingerprint=fingerprint(params),
        route_names=("all",),
        metadata={"imported_from": "peft"},
    )
    print(f"{to}: {method}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "info": info,
    "verify": verify,
    "diff": diff,
    "import": import_peft,
}


def main(command: str, **arguments: Any) -> int:
    """Runs one of `COMMANDS`; returns the exit code, 2 for a user's mistake."""
    try:
        return COMMANDS[command](**arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
