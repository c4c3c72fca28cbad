"""Adapters joined as the routes of one adapter, divided again, and taken over from PEFT."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from adalink_jax.adapters.load import adapter_folder
from adalink_jax.checkpoints import (
    Adapter,
    fingerprint,
    load_adapter,
    load_base,
    save_adapter,
)
from adalink_jax.checkpoints.formats.peft import load_peft
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params


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
    method, tree = first.method.stack(parts)
    sources = [fingerprint(adapter.tree) for adapter in found]
    _save(to, first, method, tree, tuple(names), {"stacked_from": sources})
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
        method, tree = found.method.one_route(found.tree, i)
        metadata = {"split_from": whole, "route": name}
        _save(os.path.join(to, name), found, method, tree, ("all",), metadata)
        print(f"{os.path.join(to, name)}")
    return 0


def _of_one_route(adapter: Adapter) -> Method:
    return adapter.method.one_route(adapter.tree, 0)[0]


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
    to: str,
    like: Adapter,
    method: Method,
    tree: Params,
    routes: tuple[str, ...],
    metadata: dict[str, Any],
) -> None:
    """Writes a tree as an adapter of the same base, with other routes."""
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    save_adapter(
        to,
        tree,
        method_name=like.method_name,
        settings=dataclasses.asdict(method),
        architecture=like.architecture,
        base_fingerprint=like.base_fingerprint,
        route_names=routes,
        metadata=metadata,
    )
