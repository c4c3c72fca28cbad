"""A base that is open but not yet read: its architecture, and arrays that are read on demand."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints import architecture
from adalink_jax.checkpoints.fingerprint import as_float32, check_finite
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.distributed.sharding import place
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

Index = Any  # NumPy's index: an Ellipsis, or one slice per axis.


class Array(Protocol):
    """An array on disk or in memory. Indexing reads only the indexed part."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def __getitem__(self, index: Index, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class StoredBase:
    """A base whose arrays are on disk, checked as far as possible without reading contents.

    Arrays in memory work too: ``StoredBase(config, "folded", {name: array})``.

    Attributes:
      config: its architecture.
      where: its path, for errors.
      arrays: each parameter's array in T5X's orientation, by its ``"/"``-joined T5X name.
      beside: the Hugging Face folder whose tokenizer and settings belong to it; None if there is
        none.
      verify: compares all contents on disk with digests that were written with them; called before
        the first array is read. None if there are no digests.
    """

    config: T5Config
    where: str
    arrays: Mapping[str, Array]
    beside: Folder | None = None
    verify: Callable[[], None] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by its name."""
        return {name: tuple(array.shape) for name, array in self.arrays.items()}

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Reads one parameter, or the part selected by `index`, as float32.

        Raises:
          UserError: its file is damaged, its dtype is not float32, bfloat16 or float16, or it holds
            NaN or infinity.
        """
        _ = self._verified
        stored = self.arrays[name]
        if index is not ...:
            parts = index if isinstance(index, tuple) else (index,)
            index = parts + (slice(None),) * (len(stored.shape) - len(parts))
        array = as_float32(np.asarray(stored[index]))
        if array.dtype != np.float32:
            raise UserError(f"{self.where}: {name} is {array.dtype}; expected float32 or bfloat16")
        check_finite(array, f"{self.where}: {name}")
        return array

    @functools.cached_property
    def _verified(self) -> None:
        """Calls `verify` once."""
        if self.verify is not None:
            self.verify()

    def load(self, shardings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Reads all parameters, one by one.

        Args:
          shardings: nested dicts with a ``jax.sharding.NamedSharding`` for each parameter
            (`adalink_jax.distributed.sharding.param_shardings`). None returns NumPy arrays.

        Returns:
          Nested dicts of float32 arrays. With `shardings` they are JAX arrays, and this process
          reads only the parts that its devices hold.
        """
        if shardings is None:
            flat: dict[str, Any] = {name: self.read(name) for name in self.arrays}
        else:
            places: dict[str, Any] = traverse_util.flatten_dict(dict(shardings), sep="/")
            architecture.check_names(self.arrays, places, f"shardings of {self.where}")
            flat = {name: place(name, Unread(self, name), places[name]) for name in self.arrays}
        return traverse_util.unflatten_dict(flat, sep="/")

    def unread(self) -> dict[str, Any]:
        """Returns all parameters as nested dicts of `Unread` arrays; nothing is read yet."""
        return traverse_util.unflatten_dict(
            {name: Unread(self, name) for name in self.arrays}, sep="/"
        )


@dataclasses.dataclass(frozen=True)
class Unread:
    """A parameter that is read from disk each time it is indexed or converted to NumPy.

    Attributes:
      base: the base it belongs to.
      name: its ``"/"``-joined name there.
    """

    base: StoredBase
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape on disk."""
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
    image_positions: str | None = None,
) -> StoredBase:
    """Opens a base from its arrays; every parameter must have one, and every array be used.

    Args:
      arrays: by T5X's names.
      where: their path, for errors.
      configured: the expected architecture, or None.
      activations: the MLP's functions, if known from elsewhere than the arrays.
      image_positions: where images stand, if known from elsewhere.

    Raises:
      UserError: the arrays are not those of one T5, or not those of `configured`.
    """
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if activations is None and configured is not None:
        activations = configured.mlp_activations
    if image_positions is None:
        image_positions = configured.image_positions if configured else "joint"
    named = None if activations is None else tuple(activations)
    config = architecture.infer_config(shapes, where, named, image_positions)
    if configured is not None:
        architecture.check_architecture(configured, config, where)
    return StoredBase(config, where, arrays)


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The transpose of a matrix on disk. A part of it is read as the matching part on disk.

    A format that reads whole rows (safetensors) reads all of them for some rows of the transpose.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the transpose."""
        return tuple(self.array.shape)[::-1]

    def __getitem__(self, index: Index) -> np.ndarray:
        return self.array[... if index is ... else index[::-1]].T


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of an array that stacks all layers on one axis."""

    array: Array
    axis: int
    number: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer."""
        shape = tuple(self.array.shape)
        return shape[: self.axis] + shape[self.axis + 1 :]

    def __getitem__(self, index: Index) -> np.ndarray:
        rest = (slice(None),) * len(self.shape) if index is ... else tuple(index)
        return self.array[(*rest[: self.axis], self.number, *rest[self.axis :])]


@dataclasses.dataclass(frozen=True)
class JoinedHeads:
    """An array on disk with separate axes for heads and head width, presented with one axis.

    Attributes:
      array: the stored array.
      axis: the axis of the heads in it; the next one is the head width.
    """

    array: Array
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with the two axes joined."""
        before, (heads, width) = self.array.shape[: self.axis], self._heads
        return (*before, heads * width, *self.array.shape[self.axis + 2 :])

    @property
    def _heads(self) -> tuple[int, int]:
        heads, width = self.array.shape[self.axis : self.axis + 2]
        return heads, width

    def __getitem__(self, index: Index) -> np.ndarray:
        if index is ...:
            index = (slice(None),) * len(self.shape)
        heads, width = self._heads
        start, stop, _ = index[self.axis].indices(heads * width)
        first, last = start // width, -(-stop // width)  # Only whole heads can be read.
        whole = (slice(first, last), slice(None))
        heads_read = self.array[(*index[: self.axis], *whole, *index[self.axis + 1 :])]
        shape = heads_read.shape[: self.axis] + (-1,) + heads_read.shape[self.axis + 2 :]
        inside = slice(start - first * width, stop - first * width)
        return heads_read.reshape(shape)[(slice(None),) * self.axis + (inside,)]
