"""The mesh of ``slice × data × model`` axes, and the one table of logical-axis rules.

The network names the axes of its parameters and activations (T5X's names); this module alone
says where they lie. Computation runs inside `on_mesh`.
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
from flax.linen import partitioning
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError, check_counts

# Logical axis -> mesh axis, or several; of these a mesh may lack some. Axes of adapters are the
# methods' own and lie on no mesh axis, so no rule splits an adapter.
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
    ("routes", None),
    ("adapter_embed", None),
    ("rank", None),
    ("prompt", None),
)
# What fully sharded matrices are split along, over "data": the first of these axes that the rules
# above leave whole and that "data" divides; where there is none, a matrix is not split. "embed"
# comes first because every matrix of a T5 has it.
FULLY_SHARDED = ("embed", "vocab", "mlp", "joined_kv")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model and its batches lie on devices.

    Attributes:
      model_parallelism: devices that share the products of one model (tensor parallelism).
      fully_sharded: whether the base's matrices are split over the data-parallel devices too and
        gathered where they are used (ZeRO-3). Adapters never are.
      slices: groups of devices with a slower network between them. A batch is split over them,
        parameters are not. TPU slices; on other devices, equal parts of their list.
      devices: how many devices it is meant for; None for any number.
    """

    model_parallelism: int = 1
    fully_sharded: bool = False
    slices: int = 1
    devices: int | None = None

    def __post_init__(self):
        check_counts(model_parallelism=self.model_parallelism, slices=self.slices)
        if self.devices is not None:
            check_counts(devices=self.devices)


# Every device holds the whole model, and a part of the batch.
WHOLE = Layout()


def make_mesh(layout: Layout = WHOLE, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of ``data × model``, or of ``slice × data × model`` where there are several slices.

    Args:
      layout: what it is for.
      devices: default all of all processes; those of a topology that is only compiled for do too.

    Raises:
      UserError: the devices are not those of the layout.
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
    found = len({getattr(device, "slice_index", None) for device in devices})
    if devices[0].platform == "tpu" and found != layout.slices:
        raise UserError(f"slices is {layout.slices}, but the devices are of {found} TPU slices")
    shape = (count // layout.slices // layout.model_parallelism, layout.model_parallelism)
    if layout.slices == 1:
        # Split physical axes: a v5e of 4 × 8 chips also serves as 16 × 2.
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(grid, ("data", "model"))
    if found == layout.slices:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *shape), (layout.slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = np.asarray(devices).reshape(layout.slices, *shape)
    return Mesh(grid, ("slice", "data", "model"))


def rules_on(mesh: Mesh) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
    """`RULES` without the axes that this mesh lacks."""

    def on_mesh(places):
        if isinstance(places, tuple):
            return tuple(axis for axis in places if axis in mesh.shape)
        return places

    return tuple((logical, on_mesh(places)) for logical, places in RULES)


def rehearse(mesh: Mesh) -> None:
    """Lets every group of devices of the mesh meet once, while its hosts are close in time.

    On CPUs, JAX gives the hosts 30 s to meet at a group's first collective, which would come after
    each has compiled the step in its own time.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    for size in range(1, len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, size):
            met = jax.shard_map(
                lambda x, axes=axes: jax.lax.psum(x, axes),
                mesh=mesh,
                in_specs=PartitionSpec(),
                out_specs=PartitionSpec(),
            )
            jax.block_until_ready(jax.jit(met)(np.float32(1)))


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Within it the network's logical axes mean places on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules_on(mesh)):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def whole(array: jax.Array, wanted: bool = True) -> np.ndarray | None:
    """An array of a mesh on this host, gathered from all; None on hosts that do not want it."""
    if not array.is_fully_replicated:
        array = jax.jit(lambda x: x, out_shardings=replicated(array.sharding.mesh))(array)
    return np.asarray(array) if wanted else None


def param_shardings(
    params_axes: Mapping[str, Any],
    mesh: Mesh,
    layout: Layout = WHOLE,
    params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The sharding of each parameter, from the network's ``params_axes`` collection.

    Fully sharded, the matrices of the base are split along `FULLY_SHARDED` as well; vectors and
    tables of position biases stay whole, because they hold less than gathering them costs.

    A dimension that the mesh's "model" axis does not divide raises a UserError later, where the
    array is placed.

    Args:
      params_axes: the logical axes by the parameters' names.
      mesh: the mesh.
      layout: that the mesh was made for.
      params: the parameters or their shapes, which a fully sharded layout asks for.
    """
    rules = rules_on(mesh)
    flat = traverse_util.flatten_dict(dict(params_axes), sep="/")
    shapes = traverse_util.flatten_dict(dict(params or {}), sep="/")
    shardings = {}
    for name, axes in flat.items():
        name = name.removesuffix("_axes")
        spec = partitioning.logical_to_mesh_axes(axes.names, rules)
        if layout.fully_sharded:
            spec = _fully_sharded(axes.names, spec, shapes[name].shape, mesh)
        shardings[name] = NamedSharding(mesh, spec)
    return traverse_util.unflatten_dict(shardings, sep="/")


def _fully_sharded(
    names: Sequence[str], spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """The spec with "data" on the first axis of `FULLY_SHARDED` that can take it."""
    places = [*spec, *[None] * (len(shape) - len(spec))]
    splittable = [name for name in FULLY_SHARDED if name in names]
    for name in splittable if len(splittable) > 1 else ():
        axis = names.index(name)
        whole = places[axis] is None or mesh.shape[places[axis]] == 1
        if whole and shape[axis] % mesh.shape["data"] == 0:
            places[axis] = "data"
            break
    return PartitionSpec(*places)


def place(name: str, array: Any, sharding: NamedSharding, dtype: Any = np.float32) -> jax.Array:
    """A copy of an array where it belongs, of which this process reads its devices' parts alone.

    Args:
      name: what an error calls it.
      array: of this host's memory or devices; or one that is read where it is indexed, of which a
        part that several devices hold is read once.
      sharding: where it belongs.
      dtype: of the copy.

    Raises:
      UserError: the mesh does not divide it.
    """
    check_split(name, array.shape, sharding)
    source = np.asarray(array) if isinstance(array, jax.Array) else array
    read = functools.cache(lambda *ends: source[tuple(slice(*each) for each in ends)])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        ends = (each.indices(size)[:2] for each, size in zip(index, array.shape, strict=True))
        # Copied for every device: a donated buffer must be nobody else's.
        return np.array(read(*ends), dtype)

    return jax.make_array_from_callback(tuple(array.shape), sharding, part)


def check_split(name: str, shape: Sequence[int], sharding: NamedSharding) -> None:
    """Raises `UserError` unless the mesh divides an array of this name and shape."""
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
    """The sharding of an array that lacks one dimension of another: it lies as the rest of that.

    Args:
      sharding: of the whole array.
      shape: of the whole array.
      reduced: the shape without one dimension.
      last: whether, of equal dimensions, the last one is lacking, or the first.

    Returns:
      The sharding; None where no dimension of `shape` left out gives `reduced`.
    """
    places = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    fits = [i for i in range(len(shape)) if (*shape[:i], *shape[i + 1 :]) == tuple(reduced)]
    if not fits:
        return None
    lacking = fits[-1 if last else 0]
    spec = PartitionSpec(*places[:lacking], *places[lacking + 1 :])
    return NamedSharding(sharding.mesh, spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the mesh's slice and data axes."""
    return NamedSharding(mesh, partitioning.logical_to_mesh_axes(("batch",), rules_on(mesh)))


def check_divisible(mesh: Mesh, **counts: int) -> None:
    """Raises `UserError` unless the mesh's data parallelism divides each count, e.g. BATCH_SIZE."""
    size = mesh.shape["data"] * mesh.shape.get("slice", 1)
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} is {count}, which the mesh's {size} data-parallel devices do not divide"
            )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, int64, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int | None = None
) -> dict[str, jax.Array]:
    """Puts a batch of NumPy arrays onto the mesh, rows split over slices and data.

    Args:
      batch: the global batch, of which each process copies the rows that its devices hold; or
        with `batch_size` those `local_rows` alone.
      mesh: the mesh.
      batch_size: rows of the global batch.
    """
    sharding = batch_sharding(mesh)
    rows = None if batch_size is None else local_rows(mesh, batch_size)

    def part(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        if rows is None:
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
