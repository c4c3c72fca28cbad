"""Adapters stacked in memory as the routes of one method, so that one batch can mix them.

A route may be for a task, a tenant or a modality. Adapters of the same kind (a method with its
settings, and its size unless it can be widened) share a bank. Its leaves are ``[C, …]`` with the
capacity C, and its slots are filled and freed as requests come.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params, split
from adalink_jax.models.parameters import abstract_params, widened
from adalink_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Module:
    """One route of an adapter, ready to be put into a bank.

    Attributes:
      kind: its method in the form for inference, at size 1 if it can be widened. Modules of equal
        kinds share a bank.
      size: the module's size; 1 if its kind already contains it.
      tree: the method's tree with one route, float32.
    """

    kind: Method
    size: int
    tree: Mapping[str, Any]


def module(method: Method, tree: Params, route: int) -> Module:
    """Extracts one route from an adapter.

    Raises:
      UserError: it is a whole model, or holds parts of the base.
    """
    names = traverse_util.flatten_dict(dict(tree), sep="/")
    if not method.routed or not all(map(method.owns, names)):
        raise UserError(f"of method '{method.scope}': it cannot share a batch with others")
    method, tree = method.for_inference(jax.tree.map(np.asarray, dict(tree)))
    method, tree = method.one_route(tree, route)
    if method.widens and method.size is not None:
        return Module(method.resized(1), method.size, tree)
    return Module(method, 1, tree)


class Bank:
    """Modules of one kind on the device, by name; the least recently used one makes room.

    Attributes:
      method: the method the network runs with: `capacity` routes of the largest size so far.
      params: the method's tree on the device, every leaf [capacity, …].
    """

    def __init__(self, config: T5Config, kind: Method, capacity: int):
        """Creates an empty bank.

        Args:
          config: the base's architecture.
          kind: the kind of its modules.
          capacity: C, the most modules in memory at one time.
        """
        self._config, self._kind, self._capacity = config, kind, capacity
        self._slots: dict[str, int] = {}  # Ordered by use, the most recent one last.
        self._modules: dict[str, Module] = {}
        self._resize(1)

    def _resize(self, size: int) -> None:
        self._size = size
        wide = self._kind.resized(size) if self._kind.widens else self._kind
        shapes, _ = split(abstract_params(self._config, wide)[0], wide)
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self.method, params = wide.stack([empty] * self._capacity)
        self.params = jax.tree.map(jnp.asarray, params)
        for name, slot in self._slots.items():
            self._write(slot, self._modules[name])

    def _write(self, slot: int, module: Module) -> None:
        tree = module.tree
        if self._kind.widens:
            method = self._kind.resized(module.size)
            _, tree = widened(self._config, method, tree, self._size)

        def put(leaf, value):
            return leaf.at[slot].set(value[0])

        self.params = jax.tree.map(put, self.params, dict(tree))

    def holds(self, name: str, module: Module) -> bool:
        """Returns whether this module, not an older one of its name, is in memory."""
        return self._modules.get(name) is module

    def __len__(self) -> int:
        """Returns the number of loaded modules."""
        return len(self._slots)

    def load(self, name: str, module: Module, in_use: frozenset[str] = frozenset()) -> None:
        """Puts a module into a slot; replaces one of the same name, or the least recently used.

        Args:
          name: the module's name in requests.
          module: a module of the bank's kind.
          in_use: names that must stay.

        Raises:
          UserError: all slots are in use.
        """
        self.unload(name)
        if len(self._slots) == self._capacity:
            oldest = next((other for other in self._slots if other not in in_use), None)
            if oldest is None:
                raise UserError(f"all {self._capacity} slots for adapters are in use")
            self.unload(oldest)
        slot = min(set(range(self._capacity)) - set(self._slots.values()))
        self._slots[name], self._modules[name] = slot, module
        if module.size > self._size:
            # Doubled, so that growing sizes compile few programs.
            self._resize(1 << (module.size - 1).bit_length())
        else:
            self._write(slot, module)

    def unload(self, name: str) -> None:
        """Frees a module's slot, if it has one; its values stay until the slot is reused."""
        self._slots.pop(name, None)
        self._modules.pop(name, None)

    def slot(self, name: str) -> int:
        """Returns the route of a loaded module, and marks it as just used."""
        self._slots[name] = self._slots.pop(name)
        return self._slots[name]
