"""What an adapter is, whether it fits a base and does anything there, and how two differ."""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    open_base,
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
      base_path: the base it was trained on, in any format that `open_base` reads.

    Raises:
      UserError: one of them is damaged; or the base's architecture or fingerprint is not what
        the adapter says; or the adapter's arrays are not those of its method on this base.
    """
    folder = adapter_folder(adapter_path)
    functions = load_adapter(folder).architecture.mlp_activations
    stored = open_base(base_path)
    if len(functions) == len(stored.config.mlp_activations):
        # Arrays do not tell which functions an MLP uses; the adapter does.
        configured = dataclasses.replace(stored.config, mlp_activations=functions)
        stored = open_base(base_path, configured)
    config = stored.config
    load_adapter(folder, architecture=config)  # Before the base's arrays are read.
    base = stored.load()
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


def stack(adapters: Sequence[str], to: str) -> int:
    """Writes adapters of one method and base as the routes of one adapter, bit for bit.

    A route is named as in its adapter; where that is an adapter of one route, as its run's task,
    or else as its folder.

    Args:
      adapters: folders of adapters, or of their runs.
      to: the folder to write, at which nothing is yet.

    Raises:
      UserError: one is damaged; or they are not of one method, settings and base; or two routes
        have one name.
    """
    found = [load_adapter(adapter_folder(path)) for path in adapters]
    first, names, parts = found[0], [], []
    for path, adapter in zip(adapters, found, strict=True):
        if adapter.method.trains_base:
            raise UserError(f"{path} is a whole model (full fine-tuning), which has no routes")
        for what, one, other in (
            ("method", first.method_name, adapter.method_name),
            ("settings", _of_one_route(first), _of_one_route(adapter)),
            ("base", first.base_fingerprint[:12], adapter.base_fingerprint[:12]),
        ):
            if one != other:
                raise UserError(f"{path} is of {what} {other}, but {adapters[0]} of {one}")
        one_route = len(adapter.route_names) == 1
        names += [_route_name(path, adapter)] if one_route else adapter.route_names
        parts.append(adapter.tree)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two routes would be called '{twice[0]}'; stack each adapter once")
    tree = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    sources = [fingerprint(adapter.tree) for adapter in found]
    _save(to, first, tree, tuple(names), {"stacked_from": sources})
    print(f"{to}: routes {', '.join(names)}")
    return 0


def split_routes(adapter: str, to: str) -> int:
    """Writes each route of an adapter as an adapter of one route, ``TO/NAME``, bit for bit.

    Raises:
      UserError: the adapter is damaged or has one route, a name is no folder's, or `to` exists.
    """
    found = load_adapter(adapter_folder(adapter))
    if len(found.route_names) == 1:
        raise UserError(f"{adapter} has one route, so there is nothing to split")
    for name in found.route_names:
        if pathlib.PurePath(name).name != name:
            raise UserError(f"{adapter}: route {name!r} is no name of a folder")
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    whole = fingerprint(found.tree)
    for i, name in enumerate(found.route_names):
        tree = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], found.tree)
        _save(os.path.join(to, name), found, tree, ("all",), {"split_from": whole, "route": name})
        print(f"{os.path.join(to, name)}")
    return 0


def _of_one_route(adapter: Adapter) -> dict[str, Any]:
    return {**adapter.settings, "routes": 1}


def _route_name(path: str, adapter: Adapter) -> str:
    """What the one route of an adapter is for: its task, where its run had one; or its folder."""
    (name,) = adapter.route_names
    tasks = adapter.metadata.get("data", {}).get("tasks", ())
    if name == "all" and len(tasks) == 1:
        return str(tasks[0].get("name", name))
    if name == "all":
        return adapter.metadata.get("route") or pathlib.Path(path).resolve().name
    return name


def _save(
    to: str, like: Adapter, tree: Params, routes: tuple[str, ...], metadata: dict[str, Any]
) -> None:
    """Writes a tree as an adapter of the same method and base, with other routes."""
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    save_adapter(
        to,
        tree,
        method_name=like.method_name,
        settings={**like.settings, "routes": len(routes)},
        architecture=like.architecture,
        base_fingerprint=like.base_fingerprint,
        route_names=routes,
        metadata=metadata,
    )


COMMANDS: dict[str, Callable[..., int]] = {
    "info": info,
    "verify": verify,
    "diff": diff,
    "import": import_peft,
    "stack": stack,
    "split": split_routes,
}


def main(command: str, **arguments: Any) -> int:
    """Runs one of `COMMANDS`; returns the exit code, 2 for a user's mistake."""
    try:
        return COMMANDS[command](**arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
