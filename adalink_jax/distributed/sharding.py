"""The mesh of ``slice × data × model`` axes, and the logical-axis rules.

The network names the axes of its parameters and activations (T5X's names). Only this module maps
them to mesh axes. Computation runs inside `on_mesh`.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from flax.linen import spmd
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.values import Checked, Count

# Logical axis -> mesh axis or axes; a mesh may lack some of them. Adapters have their own logical
# axes, which are on no mesh axis, so no rule splits an adapter.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("slice", "data")),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("embed", None),
    ("kv", None),
    ("length", None),
    ("relpos_buckets", None),
    ("image_width", None),
    ("routes", None),
    ("adapter_embed", None),
    ("rank", None),
    ("prompt", None),
    ("terms", None),
    ("adapter_vocab", None),
)
# Fully sharded matrices are split over "data" along the first of these axes that the rules above
# leave whole and that "data" divides. If there is none, the matrix is not split. "embed" comes
# first because every matrix of a T5 has it.
FULLY_SHARDED = ("embed", "vocab", "mlp", "joined_kv")


@dataclasses.dataclass(frozen=True)
class Layout(Checked):
    """How a model and its batches are laid out on devices.

    Attributes:
      model_parallelism: number of devices that one model is split over (tensor parallelism).
      fully_sharded: whether the base's matrices are also split over the data-parallel devices, and
        gathered where they are used (ZeRO-3). Adapters are never split.
      slices: number of groups of devices with a slower network between them: TPU slices, or equal
        parts of the list of other devices. Batches are split over slices, parameters are not.
      devices: number of devices that the layout is meant for; None for any number.
    """

    model_parallelism: Count = 1
    fully_sharded: bool = False
    slices: Count = 1
    devices: Count | None = None


# Every device holds the whole model, and a part of the batch.
WHOLE = Layout()


def make_mesh(layout: Layout = WHOLE, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of ``data × model``, or ``slice × data × model`` with several slices.

    Args:
      layout: the layout to make it for.
      devices: all devices of all processes by default. They may belong to a topology that is only
        compiled for.

    Raises:
      UserError: the devices do not match the layout.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    present = f"the {count} device{'s' if count > 1 else ''} present"
    if layout.devices is not None and layout.devices != count:
        raise UserError(
            f"devices is {layout.devices}, which is not {present}: the layout is for another "
            "machine; devices=None takes what is there"
        )
    for name, parts in (
        ("model_parallelism", layout.model_parallelism),
        ("slices × model_parallelism", layout.slices * layout.model_parallelism),
    ):
        if parts < 1 or count % parts:
            raise UserError(f"{name} is {parts}, which does not divide {present}")
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if devices[0].platform == "tpu" and slices != layout.slices:
        raise UserError(f"slices is {layout.slices}, but the devices are of {slices} TPU slices")
    shape = (count // layout.slices // layout.model_parallelism, layout.model_parallelism)
    if layout.slices == 1:
        # With split physical axes, a v5e of 4 × 8 chips can also be 16 × 2.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, ("data", "model"))
    if slices == layout.slices:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *shape), (layout.slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = np.asarray(devices).reshape(layout.slices, *shape)
    return Mesh(grid, ("slice", "data", "model"))


def rules_on(mesh: Mesh) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
    """Returns `RULES` without the mesh axes that this mesh lacks."""

    def on_mesh(places):
        if isinstance(places, tuple):
            return tuple(axis for axis in places if axis in mesh.shape)
        return places

    return tuple((logical, on_mesh(places)) for logical, places in RULES)


def rehearse(mesh: Mesh) -> None:
    """Runs one collective on every group of devices, while the hosts are close in time.

    On CPUs, the hosts must reach a group's first collective within 30 s of each other. Without
    this call it would come after compilation, which takes a different time on each host.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    for size in range(1, len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, size):
            collective = jax.shard_map(
                lambda x, axes=axes: jax.lax.psum(x, axes),
                mesh=mesh,
                in_specs=PartitionSpec(),
                out_specs=PartitionSpec(),
            )
            jax.block_until_ready(jax.jit(collective)(np.float32(1)))


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Maps the network's logical axes to this mesh inside the block."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules_on(mesh)):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def whole(array: jax.Array, wanted: bool = True) -> np.ndarray | None:
    """Gathers an array of a mesh on this host; returns None unless `wanted`. All hosts call it."""
    if not array.is_fully_replicated:
        assert isinstance(array.sharding, NamedSharding)  # As all arrays of a mesh have.
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(lambda x: x, out_shardings=everywhere)(array)
    return np.asarray(array) if wanted else None


def param_shardings(
    params_axes: Mapping[str, Any],
    mesh: Mesh,
    layout: Layout = WHOLE,
    params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the sharding of each parameter, from the network's ``params_axes`` collection.

    A fully sharded layout also splits the base's matrices along `FULLY_SHARDED`. Vectors and
    tables of position biases stay whole: gathering them would cost more than it saves.

    If the mesh's "model" axis does not divide a dimension, a `UserError` is raised later, when the
    array is placed.

    Args:
      params_axes: logical axes by parameter name.
      mesh: the mesh.
      layout: the layout that the mesh was made for.
      params: the parameters or their shapes; only needed by a fully sharded layout.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(params_axes), sep="/")
    shapes: dict[str, Any] = traverse_util.flatten_dict(dict(params or {}), sep="/")
    shardings = {}
    for name, axes in flat.items():
        name = name.removesuffix("_axes")
        spec = _mesh_axes(axes.names, mesh)
        if layout.fully_sharded:
            spec = _fully_sharded(axes.names, spec, shapes[name].shape, mesh)
        shardings[name] = NamedSharding(mesh, spec)
    return traverse_util.unflatten_dict(shardings, sep="/")


def _fully_sharded(
    names: Sequence[str], spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """Returns the spec with "data" on the first axis of `FULLY_SHARDED` that it divides."""
    places = [*spec, *[None] * (len(shape) - len(spec))]
    splittable = [name for name in FULLY_SHARDED if name in names]
    for name in splittable if len(splittable) > 1 else ():
        axis = names.index(name)
        unsplit = places[axis] is None or mesh.shape[places[axis]] == 1
        if unsplit and shape[axis] % mesh.shape["data"] == 0:
            places[axis] = "data"
            break
    return PartitionSpec(*places)


def place(name: str, array: Any, sharding: NamedSharding, dtype: Any = np.float32) -> jax.Array:
    """Copies an array to the devices. This process only reads the parts its devices hold.

    Args:
      name: the array's name in errors.
      array: an array on this host or its devices, or one that is read from disk when indexed. A
        part that several devices hold is read once.
      sharding: sharding of the copy.
      dtype: dtype of the copy.

    Raises:
      UserError: the array cannot be split evenly over the mesh.
    """
    check_split(name, array.shape, sharding)
    source = np.asarray(array) if isinstance(array, jax.Array) else array
    read = functools.cache(lambda *ends: source[tuple(slice(*each) for each in ends)])

    def part(index: Any) -> np.ndarray:
        ends = (each.indices(size)[:2] for each, size in zip(index, array.shape, strict=True))
        # One copy per device, because a donated buffer must not be shared.
        return np.array(read(*ends), dtype)

    return jax.make_array_from_callback(tuple(array.shape), sharding, part)


def check_split(name: str, shape: Sequence[int], sharding: NamedSharding) -> None:
    """Raises `UserError` unless an array of this name and shape splits evenly over the mesh."""
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError as error:
        raise UserError(
            f"{name} of shape {list(shape)} cannot be split as {sharding.spec} over the mesh "
            f"{dict(sharding.mesh.shape)}; choose another model_parallelism"
        ) from error


def reduced_sharding(
    sharding: NamedSharding, shape: Sequence[int], reduced: Sequence[int], last: bool
) -> NamedSharding | None:
    """Returns the sharding of a reduction of an array over one dimension.

    Args:
      sharding: sharding of the array.
      shape: shape of the array.
      reduced: shape of the reduction, which lacks one dimension.
      last: which dimension is missing if several are equal: the last (True) or the first.

    Returns:
      The sharding; None if `reduced` is not `shape` without one dimension.
    """
    places = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    fits = [i for i in range(len(shape)) if (*shape[:i], *shape[i + 1 :]) == tuple(reduced)]
    if not fits:
        return None
    missing = fits[-1 if last else 0]
    spec = PartitionSpec(*places[:missing], *places[missing + 1 :])
    return NamedSharding(sharding.mesh, spec)


def _mesh_axes(names: Sequence[str], mesh: Mesh) -> PartitionSpec:
    spec = spmd.logical_to_mesh_axes(names, rules_on(mesh))
    assert spec is not None  # It is None only where the names are.
    return spec


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows split over the mesh's slice and data axes."""
    return NamedSharding(mesh, _mesh_axes(("batch",), mesh))


def data_parallel(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape.get("slice", 1)


def check_divisible(mesh: Mesh, **counts: int) -> None:
    """Raises `UserError` unless the mesh's data parallelism divides each count, e.g. BATCH_SIZE."""
    size = data_parallel(mesh)
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} is {count}, which the mesh's {size} data-parallel devices do not divide"
            )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices hold, int64, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Puts a batch of NumPy arrays onto the mesh, rows split over slices and data.

    Args:
      batch: the global batch, from which each process copies the rows of its devices. With
        `batch_size`, only this process's `local_rows`.
      mesh: the mesh.
      batch_size: number of rows of the global batch.
    """
    sharding = batch_sharding(mesh)
    rows = None if batch_size is None else local_rows(mesh, batch_size)

    def part(array: np.ndarray, index: Any) -> np.ndarray:
        if rows is None or batch_size is None:
            return array[index]
        first, stop, _ = index[0].indices(batch_size)
        return array[slice(*np.searchsorted(rows, (first, stop))), *index[1:]]

    return {
        name: jax.make_array_from_callback(
            (batch_size or len(array), *array.shape[1:]),
            sharding,
            lambda index, array=array: part(array, index),
        )
        for name, array in batch.items()
    }
