"""What is on the device: the base, banks of adapters, and the programs that run them."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from adalink_jax.checkpoints import fingerprint, load_base
from adalink_jax.distributed.sharding import Layout, make_mesh, on_mesh, replicated
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method, Params, merge
from adalink_jax.models.config import activations_dtype
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.serving.bank import Bank, Module
from adalink_jax.tools.serving.programs import Programs
from adalink_jax.training.state import place_params

# The kind of a row without an adapter.
BASE = Method()


@dataclasses.dataclass(frozen=True)
class Precision:
    """How the base lies on the devices.

    Attributes:
      dtype: dtype of the activations, "float32" or "bfloat16".
      frozen_dtype: dtype of the base: "float32", "bfloat16" or "int8".
      model_parallelism: number of devices that it is split over.
    """

    dtype: str = "float32"
    frozen_dtype: str = "float32"
    model_parallelism: int = 1


FLOAT32 = Precision()


class Engine:
    """One base and banks of adapters on the devices. One thread may use it.

    Attributes:
      config: the base's architecture.
      fingerprint: the base's fingerprint.
      programs: the compiled programs.
      resident: the most adapters of one kind on the devices.
      kept: returns modules that stay where there is room for others without them.
    """

    def __init__(
        self,
        base: str,
        precision: Precision = FLOAT32,
        *,
        resident: int = 64,
        bank_bytes: int = 2**30,
        programs: int = 64,
    ):
        """Loads the base.

        Args:
          base: its checkpoint.
          precision: how it lies on the devices.
          resident: the most adapters of one kind in memory; programs are compiled for it.
          bank_bytes: of all banks; the one that was used last stays in any case.
          programs: the most compiled programs.

        Raises:
          UserError: the base cannot be loaded, or there are too few devices.
        """
        config, params = load_base(base)
        self.fingerprint = fingerprint(params)
        dtype = activations_dtype(precision.dtype)
        self.config: T5Config = dataclasses.replace(config, dtype=dtype, dropout_rate=0.0)
        parts, devices = precision.model_parallelism, jax.devices()
        if parts > len(devices):
            raise UserError(f"--model_parallelism is {parts}, of {len(devices)} devices")
        layout = Layout(model_parallelism=parts)
        self._mesh = make_mesh(layout, devices[:parts])
        self._params = place_params(
            self.config, BASE, params, self._mesh, layout, frozen_dtype=precision.frozen_dtype
        )
        self.resident, self._bank_bytes = resident, bank_bytes
        self._banks: dict[Method, Bank] = {}  # Ordered by use, the most recent one last.
        self._held: collections.Counter[Module] = collections.Counter()
        self._evictions = 0
        self.kept: Callable[[], Iterable[Module]] = tuple
        self.programs = Programs(programs)

    def _put(self, tree: Any) -> Any:
        return jax.device_put(tree, replicated(self._mesh))

    def load(self, kind: Method, modules: Iterable[Module | None]) -> None:
        """Puts modules of one kind on the device.

        Raises:
          UserError: more of them are in use than there are slots.
        """
        wanted = dict.fromkeys(module for module in modules if module is not None)
        if kind == BASE:
            return
        bank = self._banks.pop(kind, None)
        if bank is None:
            bank = Bank(self.config, kind, self.resident, self._put)
        self._banks[kind] = bank
        in_use = {*wanted, *self._held, *self.kept()}
        for module in wanted:
            bank.load(module, in_use)
        total = sum(one.nbytes for one in self._banks.values())
        for other, one in tuple(self._banks.items()):
            if total > self._bank_bytes and other != kind and not in_use & {*one}:
                total -= one.nbytes
                self._evictions += len(one)
                del self._banks[other]

    def network(self, kind: Method) -> tuple[Transformer, Params]:
        """Returns the network for rows of a kind, and all its parameters."""
        if kind == BASE:
            return Transformer(self.config), self._params
        bank = self._banks[kind]
        return Transformer(self.config, bank.method), merge(self._params, bank.params)

    def routes(self, kind: Method, modules: Sequence[Module | None], count: int) -> np.ndarray:
        """Returns the routes of loaded modules, int32 [count]: 0 where there is none."""
        routes = np.zeros(count, np.int32)
        for row, module in enumerate(modules):
            if module is not None:
                routes[row] = self._banks[kind].slot(module)
        return routes

    def run(
        self, function: Any, kind: Method, *, static: dict[str, Any] | None = None, **arrays: Any
    ) -> Any:
        """Calls a function of (model, params, …) with the network of a kind."""
        model, params = self.network(kind)
        with self.placing():
            arrays = {name: self._put(array) for name, array in arrays.items()}
            return self.programs.run(function, model, params, static=static, **arrays)

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """Maps the network's axes to the devices inside the block."""
        with on_mesh(self._mesh):
            yield

    def hold(self, module: Module | None) -> None:
        """Keeps a module on the device until it is released as often as it was held."""
        if module is not None:
            self._held[module] += 1

    def release(self, module: Module | None) -> None:
        """Ends one `hold`."""
        if module is not None:
            self._held[module] -= 1
            if not self._held[module]:
                del self._held[module]

    def unload(self, modules: Iterable[Module]) -> None:
        """Frees the slots of modules that nothing holds."""
        for module in modules:
            if module not in self._held and module.kind in self._banks:
                self._banks[module.kind].unload(module)

    @property
    def evictions(self) -> int:
        """How many modules have made room for others on the device."""
        return self._evictions + sum(bank.evictions for bank in tuple(self._banks.values()))

    @property
    def bank_bytes(self) -> int:
        """Bytes of all banks."""
        return sum(bank.nbytes for bank in tuple(self._banks.values()))

    @property
    def loaded(self) -> frozenset[Module]:
        """The modules on the device."""
        return frozenset(module for bank in tuple(self._banks.values()) for module in bank)
