"""A base that is open but not read: its architecture, and arrays to be read one by one."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints import architecture
from adalink_jax.checkpoints.fingerprint import as_float32
from adalink_jax.distributed.sharding import place
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

Index = Any  # What NumPy takes in brackets: an Ellipsis, or a slice for each axis.


class Array(Protocol):
    """An array on disk, or one of NumPy: it is read, or the part of it, where it is indexed."""

    shape: tuple[int, ...]

    def __getitem__(self, index: Index) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class StoredBase:
    """A base whose arrays lie on disk, checked as far as that needs none of their contents.

    Arrays in memory do as well: ``StoredBase(config, "folded", {name: array})``.

    Attributes:
      config: its architecture.
      where: its path, for errors.
      arrays: each parameter's array in T5X's orientation, by its ``"/"``-joined T5X name.
    """

    config: T5Config
    where: str
    arrays: Mapping[str, Array]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by its name."""
        return {name: tuple(array.shape) for name, array in self.arrays.items()}

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Reads one parameter, or the part of it that `index` says, as float32.

        Raises:
          UserError: its file is damaged, or of another dtype than float32, bfloat16 or float16.
        """
        stored = self.arrays[name]
        if index is not ...:
            given = index if isinstance(index, tuple) else (index,)
            index = given + (slice(None),) * (len(stored.shape) - len(given))
        array = as_float32(np.asarray(stored[index]))
        if array.dtype != np.float32:
            raise UserError(f"{self.where}: {name} is {array.dtype}; expected float32 or bfloat16")
        return array

    def load(self, shardings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Reads all parameters, one after the other.

        Args:
          shardings: nested dicts of ``jax.sharding.NamedSharding``, one for each parameter
            (`adalink_jax.distributed.sharding.param_shardings`). None: the arrays stay with NumPy.

        Returns:
          Nested dicts of float32 arrays: NumPy's, or with `shardings` JAX's, of which this process
          reads only the parts that its devices hold.
        """
        if shardings is None:
            flat: dict[str, Any] = {name: self.read(name) for name in self.arrays}
        else:
            places = traverse_util.flatten_dict(dict(shardings), sep="/")
            architecture.check_names(self.arrays, places, f"shardings of {self.where}")
            flat = {name: place(name, Unread(self, name), places[name]) for name in self.arrays}
        return traverse_util.unflatten_dict(flat, sep="/")

    def unread(self) -> dict[str, Any]:
        """All parameters as nested dicts of `Unread` arrays: nothing is in memory yet."""
        return traverse_util.unflatten_dict(
            {name: Unread(self, name) for name in self.arrays}, sep="/"
        )


@dataclasses.dataclass(frozen=True)
class Unread:
    """A parameter that is read where it is indexed, each time; NumPy takes it whole.

    Attributes:
      base: whose it is.
      name: its ``"/"``-joined name there.
    """

    base: StoredBase
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape on disk."""
        return tuple(self.base.arrays[self.name].shape)

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.base.read(self.name, index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.base.read(self.name), dtype)


def open_arrays(
    arrays: Mapping[str, Array],
    where: str,
    configured: T5Config | None,
    activations: Iterable[str] | None = None,
) -> StoredBase:
    """Opens the base that arrays make, each used once, every parameter filled.

    Args:
      arrays: by T5X's names.
      where: their path, for errors.
      configured: the architecture they are expected to have, or None.
      activations: the MLP's functions, where something beside the arrays tells them.

    Raises:
      UserError: the arrays are not those of one T5, or of another than `configured`.
    """
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if activations is None and configured is not None:
        activations = configured.mlp_activations
    config = architecture.infer_config(shapes, where, activations and tuple(activations))
    if configured is not None:
        architecture.check_architecture(configured, config, where)
    return StoredBase(config, where, arrays)


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The transpose of a matrix on disk, of which a part is read as the part it is there.

    A format that reads whole rows (safetensors) so reads all of it for a part of the rows here.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the transpose."""
        return tuple(self.array.shape)[::-1]

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.array[... if index is ... else index[::-1]].T


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of an array that holds all layers of a stack on one of its axes."""

    array: Array
    axis: int
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer."""
        shape = tuple(self.array.shape)
        return shape[: self.axis] + shape[self.axis + 1 :]

    def __getitem__(self, index: Index) -> np.ndarray:
        rest = (slice(None),) * len(self.shape) if index is ... else tuple(index)
        return self.array[(*rest[: self.axis], self.number, *rest[self.axis :])]


@dataclasses.dataclass(frozen=True)
class JoinedHeads:
    """An array on disk whose heads and their width are two axes, as one with a single axis.

    Attributes:
      array: as stored.
      axis: of the heads there; their width is on the next.
    """

    array: Array
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the two axes joined."""
        before, (heads, width) = self.array.shape[: self.axis], self._heads
        return (*before, heads * width, *self.array.shape[self.axis + 2 :])

    @property
    def _heads(self) -> tuple[int, int]:
        return tuple(self.array.shape[self.axis : self.axis + 2])

    def __getitem__(self, index: Index) -> np.ndarray:
        if index is ...:
            index = (slice(None),) * len(self.shape)
        heads, width = self._heads
        start, stop, _ = index[self.axis].indices(heads * width)
        first, last = start // width, -(-stop // width)  # Whole heads are read.
        whole = (slice(first, last), slice(None))
        found = self.array[(*index[: self.axis], *whole, *index[self.axis + 1 :])]
        shape = found.shape[: self.axis] + (-1,) + found.shape[self.axis + 2 :]
        inside = slice(start - first * width, stop - first * width)
        return found.reshape(shape)[(slice(None),) * self.axis + (inside,)]
