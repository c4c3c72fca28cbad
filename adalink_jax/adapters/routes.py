"""Stacks adapters as the routes of one, splits them again, and imports adapters from PEFT."""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import traverse_util

from adalink_jax.adapters.load import adapter_folder
from adalink_jax.checkpoints import (
    Adapter,
    fingerprint,
    load_adapter,
    load_base,
    save_adapter,
)
from adalink_jax.checkpoints.architecture import differing_fields
from adalink_jax.checkpoints.formats.peft import load_peft
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params


def import_peft(peft: str, base: str, to: str) -> int:
    """Converts an adapter of Hugging Face's PEFT into this project's format.

    Args:
      peft: the folder that PEFT wrote.
      base: the base it was trained on.
      to: the folder to write; it must not exist.

    Raises:
      UserError: the adapter is damaged, does not fit the base, or uses something that no method
        here does.
    """
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    config, params = load_base(base)
    method, tree = load_peft(peft, config, params)
    save_adapter(
        to,
        tree,
        method_name=method.scope,
        settings=method.settings(),
        architecture=config,
        base_fingerprint=fingerprint(params),
        route_names=("all",),
        metadata={"imported_from": "peft"},
    )
    print(f"{to}: {method}")
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    zeros = [leaf.nbytes for leaf in flat.values() if not leaf.any()]
    if zeros:
        print(
            f"{len(zeros)} of its {len(flat)} arrays, {sum(zeros):,} bytes, are zeros: layers that "
            f"PEFT's adapter leaves out, and that '{method.scope}' here has beside the others"
        )
    return 0


def stack(adapters: Sequence[str], to: str, names: Sequence[str] | None = None) -> int:
    """Stacks adapters of the same method and base as the routes of one adapter, bit for bit.

    Routes of an adapter with several keep their names. The route of an adapter with only one is
    named after its run's task, or after the folder if the run had no single task.

    Args:
      adapters: folders of adapters, or of their runs.
      to: the folder to write; it must not exist.
      names: the routes' names instead, in order; many customers may have one task.

    Raises:
      UserError: an adapter is damaged; the adapters differ in method, settings or base; two
        routes have the same name; or there are not as many names as routes.
    """
    given = None if names is None else tuple(names)
    loaded = [load_adapter(adapter_folder(path)) for path in adapters]
    first, found, parts = loaded[0], [], []
    for path, adapter in zip(adapters, loaded, strict=True):
        if adapter.method.trains_base:
            raise UserError(f"{path} is a whole model (full fine-tuning), which has no routes")
        for what, one, other in (
            ("method", first.method_name, adapter.method_name),
            ("settings", _of_one_route(first), _of_one_route(adapter)),
            ("base", first.base_fingerprint[:12], adapter.base_fingerprint[:12]),
        ):
            if one != other:
                raise UserError(f"{path} is of {what} {other}, but {adapters[0]} of {one}")
        if differing := differing_fields(first.architecture, adapter.architecture):
            name, (one, other) = next(iter(differing.items()))
            raise UserError(
                f"{path} is of a base with {name} {other}, but {adapters[0]} of one with {one}"
            )
        one_route = len(adapter.route_names) == 1
        found += [_route_name(path, adapter)] if one_route else adapter.route_names
        parts.append(adapter.tree)
    if given is not None and len(given) != len(found):
        raise UserError(f"--names has {len(given)} names, for {len(found)} routes")
    routes = tuple(found) if given is None else given
    if twice := sorted(name for name, count in collections.Counter(routes).items() if count > 1):
        raise UserError(
            f"two routes would be called '{twice[0]}'; stack each adapter once, or give --names"
        )
    if odd := [name for name in routes if not name or not name.isprintable()]:
        raise UserError(f"--names has {odd[0]!r}, which is no name of a route")
    method, tree = first.method.stack(parts)
    sources = [fingerprint(adapter.tree) for adapter in loaded]
    data = _shared(adapters, loaded) | {"tasks": _tasks(loaded, routes)}
    _save(to, first, method, tree, routes, {"stacked_from": sources, "data": data})
    print(f"{to}: routes {', '.join(routes)}")
    return 0


def split_routes(adapter: str, to: str) -> int:
    """Writes each route of an adapter as an adapter of its own, ``TO/NAME``, bit for bit.

    Raises:
      UserError: the adapter is damaged or has only one route, a route's name cannot be a folder's
        name, or `to` exists.
    """
    loaded = load_adapter(adapter_folder(adapter))
    if len(loaded.route_names) == 1:
        raise UserError(f"{adapter} has one route, so there is nothing to split")
    for name in loaded.route_names:
        if pathlib.PurePath(name).name != name:
            raise UserError(f"{adapter}: route {name!r} is no name of a folder")
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    whole = fingerprint(loaded.tree)
    for i, name in enumerate(loaded.route_names):
        method, tree = loaded.method.one_route(loaded.tree, i)
        tasks = [
            {key: value for key, value in task.items() if key != "route"}
            for task in loaded.tasks(name)
        ]
        data = {**loaded.data, "tasks": tasks}
        metadata = {"split_from": whole, "route": name, "data": data}
        _save(os.path.join(to, name), loaded, method, tree, ("all",), metadata)
        print(f"{os.path.join(to, name)}")
    return 0


def _shared(paths: Sequence[str], adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Returns what all adapters' records of their data share, where it is recorded.

    Raises:
      UserError: two differ.
    """
    shared: dict[str, Any] = {}
    for path, adapter in zip(paths, adapters, strict=True):
        for name in ("vocabulary", "image_encoder"):
            found = adapter.data.get(name)
            if found is not None and shared.setdefault(name, found) != found:
                what = name.replace("_", " ")
                raise UserError(f"{path} was trained with another {what} than those before it")
    return shared


def _tasks(adapters: Sequence[Adapter], routes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns what is recorded of each route's tasks, with the route's new name."""
    recorded = [adapter.tasks(name) for adapter in adapters for name in adapter.route_names]
    pairs = zip(routes, recorded, strict=True)
    return [{**task, "route": route} for route, tasks in pairs for task in tasks]


def _of_one_route(adapter: Adapter) -> Method:
    return adapter.method.one_route(adapter.tree, 0)[0]


def _route_name(path: str, adapter: Adapter) -> str:
    """Names the only route of an adapter: its run's task if there is one, else its folder."""
    (name,) = adapter.route_names
    if name != "all":
        return name
    given = adapter.task(name).get("name") or adapter.metadata.get("route")
    return given if isinstance(given, str) and given else pathlib.Path(path).resolve().name


def _save(
    to: str,
    like: Adapter,
    method: Method,
    tree: Params,
    routes: tuple[str, ...],
    metadata: dict[str, Any],
) -> None:
    """Writes a tree as an adapter of the same base with other routes."""
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    save_adapter(
        to,
        tree,
        method_name=like.method_name,
        settings=method.settings(),
        architecture=like.architecture,
        base_fingerprint=like.base_fingerprint,
        route_names=routes,
        metadata=metadata,
    )
