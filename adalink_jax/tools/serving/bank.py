"""Adapters stacked in memory as the routes of one method, so that one batch can mix them.

A route may be for a task, a tenant or a modality. Adapters of the same kind (a method with its
settings, and its size unless it can be widened) share a bank. Its leaves are ``[C, …]`` with the
capacity C, and its slots are filled and freed as requests come.
"""

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params, split
from adalink_jax.models.parameters import abstract_params, widened
from adalink_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """One route of an adapter as it was read, ready to be put into a bank.

    Each is equal to itself alone: what an adapter was and what it is now are two modules.

    Attributes:
      kind: its method in the form for inference, at size 1 if it can be widened. Modules of equal
        kinds share a bank.
      size: the module's size; 1 if its kind already contains it.
      tree: the method's tree with one route, float32.
    """

    kind: Method
    size: int
    tree: Mapping[str, Any]


def module(method: Method, tree: Params, route: int, length: int) -> Module:
    """Extracts one route from an adapter.

    Args:
      method: the adapter's method.
      tree: its arrays.
      route: the number of the route.
      length: the most vectors of a padded input.

    Raises:
      UserError: it is a whole model, or holds parts of the base.
    """
    names = traverse_util.flatten_dict(dict(tree), sep="/")
    if not method.routed or not all(map(method.owns, names)):
        raise UserError(f"of method '{method.scope}': it cannot share a batch with others")
    method, tree = method.for_inference(jax.tree.map(np.asarray, dict(tree)))
    method, tree = method.one_route(tree, route)
    method, tree = method.lengthened(tree, length)
    if method.widens and method.size is not None:
        return Module(method.resized(1), method.size, tree)
    return Module(method, 1, tree)


class Bank:
    """Modules of one kind on the device; the least recently used one makes room.

    Attributes:
      method: the method the network runs with: `capacity` routes of the largest size so far.
      params: the method's tree on the device, every leaf [capacity, …].
      evictions: how many modules have made room for others.
    """

    def __init__(
        self,
        config: T5Config,
        kind: Method,
        capacity: int,
        put: Callable[[Any], Any] = jax.device_put,
    ):
        """Creates an empty bank.

        Args:
          config: the base's architecture.
          kind: the kind of its modules.
          capacity: C, the most modules in memory at one time.
          put: places a tree of arrays on the devices.
        """
        self._config, self._kind, self._capacity, self._put = config, kind, capacity, put
        self._slots: dict[Module, int] = {}  # Ordered by use, the most recent one last.
        self.evictions = 0
        self._resize(1)

    def _resize(self, size: int) -> None:
        self._size = size
        wide = self._kind.resized(size) if self._kind.widens else self._kind
        shapes, _ = split(abstract_params(self._config, wide)[0], wide)
        empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self.method, params = wide.stack([empty] * self._capacity)
        self.params = self._put(params)
        for module, slot in self._slots.items():
            self._write(slot, module)

    def _write(self, slot: int, module: Module) -> None:
        tree = module.tree
        if self._kind.widens:
            method = self._kind.resized(module.size)
            _, tree = widened(self._config, method, tree, self._size)

        def put(leaf, value):
            # A route may have several modules, side by side.
            return jax.lax.dynamic_update_slice_in_dim(leaf, value, slot * len(value), axis=0)

        self.params = jax.tree.map(put, self.params, dict(tree))

    def __contains__(self, module: Module) -> bool:
        """Returns whether a module is in memory."""
        return module in self._slots

    def __iter__(self) -> Iterator[Module]:
        """Iterates over the modules in memory, from the least recently used one."""
        return iter(tuple(self._slots))

    def __len__(self) -> int:
        """Returns the number of loaded modules."""
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, of slots in use or not."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def load(self, module: Module, in_use: Container[Module] = ()) -> None:
        """Puts a module into a slot, in the place of the least recently used one if all are full.

        Args:
          module: a module of the bank's kind.
          in_use: modules that must stay.

        Raises:
          UserError: all slots are in use.
        """
        if module in self._slots:
            return
        if len(self._slots) == self._capacity:
            oldest = next((other for other in self._slots if other not in in_use), None)
            if oldest is None:
                raise UserError(f"all {self._capacity} slots for adapters are in use")
            self.unload(oldest)
            self.evictions += 1
        slot = min(set(range(self._capacity)) - set(self._slots.values()))
        self._slots[module] = slot
        if module.size > self._size:
            # Doubled, so that growing sizes compile few programs.
            self._resize(1 << (module.size - 1).bit_length())
        else:
            self._write(slot, module)

    def unload(self, module: Module) -> None:
        """Frees a module's slot, if it has one; its values stay until the slot is reused."""
        self._slots.pop(module, None)

    def slot(self, module: Module) -> int:
        """Returns the route of a loaded module, and marks it as just used."""
        self._slots[module] = self._slots.pop(module)
        return self._slots[module]
