"""Adapters that lie stacked in memory as the routes of one method, so that one batch mixes them.

A task, a tenant, a modality are all a route. Adapters of one kind (a method with its settings, but
for the rank) share a bank: ``down [C,D,R]``, ``up [C,R,F]``, where C is the bank's capacity. Its
slots are filled and emptied as requests come.
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
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Module:
    """One route of an adapter, ready to be put into a bank.

    Attributes:
      kind: the method with one route and rank 1; modules of equal kinds share a bank.
      rank: R; 1 for a method without a rank.
      tree: the method's tree with one route, float32.
    """

    kind: Method
    rank: int
    tree: Mapping[str, Any]


def module(method: Method, tree: Params, route: int) -> Module:
    """Takes one route out of an adapter.

    A rank may be any in one bank, so LoRA's factor alpha / rank goes into its `up`.

    Raises:
      UserError: the method has no routes: it is a whole model.
    """
    if method.trains_base or not hasattr(method, "routes"):
        raise UserError(f"of method '{method.scope}': it cannot share a batch with others")
    own = jax.tree.map(lambda leaf: np.asarray(leaf)[route : route + 1], dict(tree))
    rank, changes = getattr(method, "rank", 1), {"routes": 1}
    if hasattr(method, "rank"):
        changes["rank"] = 1
    if hasattr(method, "alpha"):
        flat = traverse_util.flatten_dict(own, sep="/")
        scale = np.float32(method.alpha / rank)
        flat = {k: v * scale if k.endswith("/up") else v for k, v in flat.items()}
        own = traverse_util.unflatten_dict(flat, sep="/")
        changes["alpha"] = 1.0
    if hasattr(method, "dropout_rate"):
        changes["dropout_rate"] = 0.0
    return Module(dataclasses.replace(method, **changes), rank, own)


class Bank:
    """Modules of one kind on the device, by name; the one unused for longest makes room.

    Attributes:
      method: what the network runs with: `capacity` routes of the largest rank so far.
      params: the method's tree on the device, every leaf [capacity, …].
    """

    def __init__(self, config: T5Config, kind: Method, capacity: int):
        """Makes an empty bank.

        Args:
          config: the base's architecture.
          kind: of the modules it will hold.
          capacity: C, how many modules lie in memory at a time.
        """
        self._config, self._kind, self._capacity = config, kind, capacity
        self._slots: dict[str, int] = {}  # Used last, stands last.
        self._modules: dict[str, Module] = {}
        self._resize(1)

    def _resize(self, rank: int) -> None:
        changes: dict[str, Any] = {"routes": self._capacity}
        if hasattr(self._kind, "rank"):
            changes["rank"] = rank
        if hasattr(self._kind, "alpha"):
            changes["alpha"] = float(rank)  # A factor of 1: the modules hold their own.
        self._rank = rank
        self.method = dataclasses.replace(self._kind, **changes)
        shapes, _ = split(abstract_params(self._config, self.method)[0], self.method)
        self.params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        for name, slot in self._slots.items():
            self._write(slot, self._modules[name])

    def _write(self, slot: int, module: Module) -> None:
        def put(leaf, value):
            # A smaller rank is filled up with zeros, which every activation maps to zero.
            wider = [(0, have - got) for have, got in zip(leaf.shape[1:], value.shape[1:])]  # noqa: B905
            return leaf.at[slot].set(jnp.pad(value[0], wider))

        self.params = jax.tree.map(put, self.params, dict(module.tree))

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        """How many modules are loaded."""
        return len(self._slots)

    def load(self, name: str, module: Module, in_use: frozenset[str] = frozenset()) -> None:
        """Puts a module into a slot, in place of one of the same name or of the oldest.

        Args:
          name: what requests call it.
          module: of the bank's kind.
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
        if module.rank > self._rank:
            # Doubling, so that growing ranks compile few programs.
            self._resize(1 << (module.rank - 1).bit_length())
        else:
            self._write(slot, module)

    def unload(self, name: str) -> None:
        """Frees a module's slot, if it has one; its values stay until the slot is written."""
        self._slots.pop(name, None)
        self._modules.pop(name, None)

    def slot(self, name: str) -> int:
        """The route of a loaded module, which counts as used now."""
        self._slots[name] = self._slots.pop(name)
        return self._slots[name]
