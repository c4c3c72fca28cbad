"""The mesh of ``data × model`` axes, and the one table of logical-axis rules.

The network names the axes of its parameters and activations (T5X's names); this module alone
says where they lie. Computation runs inside `on_mesh`.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from flax.linen import partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError

# Logical axis -> mesh axis. Axes of adapters are the methods' own and lie on no mesh axis, so no
# rule splits an adapter.
RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", "data"),
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


def initialise_processes() -> None:
    """Joins the other processes of a multi-host run, where the environment describes one.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it outright; SLURM jobs of
    several tasks and TPU pods are found by JAX itself. Must run before the first use of a device.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        try:
            count, index = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise UserError(
                "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be "
                f"whole numbers; {error}"
            ) from error
        jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], count, index)
    elif int(env.get("SLURM_NTASKS", "1")) > 1 or "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()


def make_mesh(model_parallelism: int = 1) -> Mesh:
    """A mesh over all devices of all processes, `model_parallelism` of them to a model.

    Raises:
      UserError: the number of devices is no multiple of it.
    """
    devices = jax.device_count()
    if model_parallelism < 1 or devices % model_parallelism:
        raise UserError(
            f"model_parallelism is {model_parallelism}, which does not divide the {devices} "
            f"device{'s' if devices > 1 else ''} present"
        )
    grid = np.asarray(jax.devices()).reshape(devices // model_parallelism, model_parallelism)
    return Mesh(grid, ("data", "model"))


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Within it the network's logical axes mean places on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(params_axes: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The sharding of each parameter, from the network's ``params_axes`` collection.

    A dimension that its mesh axis does not divide raises a UserError later, where the array's
    shape is known; see `check_divisible`.
    """
    flat = traverse_util.flatten_dict(dict(params_axes), sep="/")
    shardings = {}
    for name, axes in flat.items():
        spec = partitioning.logical_to_mesh_axes(axes.names, RULES)
        shardings[name.removesuffix("_axes")] = NamedSharding(mesh, spec)
    return traverse_util.unflatten_dict(shardings, sep="/")


def check_divisible(mesh: Mesh, **counts: int) -> None:
    """Raises `UserError` unless the mesh's data axis divides each count, e.g. BATCH_SIZE=30."""
    size = mesh.shape["data"]
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} is {count}, which the mesh's {size} data-parallel devices do not divide"
            )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a global batch of NumPy arrays onto the mesh, rows split over the data axis.

    Every process passes the same global batch and copies only the rows that its devices hold.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, lambda index, a=array: a[index])
        for name, array in batch.items()
    }
