"""Whether a run's arrays fit in memory, asked before any of them is made.

Only what is certain is counted, so a run that passes may still need more than there is; what is
refused could not have run.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from adalink_jax.distributed import sharding
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models.parameters import check_trains
from adalink_jax.models.t5 import T5Config
from adalink_jax.training import state as states

# The shortest rows of evaluation (`adalink_jax.data.plan`); longer ones need more.
_SHORTEST = 16


def of_device() -> int:
    """Returns the bytes of memory of one device. The devices of a CPU share the machine's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if device.platform == "cpu" or "bytes_limit" not in stats:
        return of_machine() // jax.local_device_count()
    return stats["bytes_limit"]


def of_machine() -> int:
    """Returns the bytes of memory that this process may use, by machine and by control group."""
    limits: list[float] = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            # Version 2 has one tree of groups, version 1 one for each kind of resource.
            root = pathlib.Path("/sys/fs/cgroup") / kinds
            file = "memory.limit_in_bytes" if kinds else "memory.max"
            group = root / place.lstrip("/")
            limits += map(_limit, (group / file, *(parent / file for parent in group.parents)))
    return int(min(limits))


def _limit(path: pathlib.Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # There is no such file, or it says "max".
        return math.inf


def check_state(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: Layout,
    frozen_dtype: Any,
    config: T5Config,
    copies: int = 0,
) -> None:
    """Raises `UserError` unless there is one, and each device can hold it and its gradients.

    Arguments are as in `adalink_jax.training.state.create`; `copies` are those that the state holds
    of what trains: its average, its best one.
    """
    check_trains(config, method)
    state = states.abstract_state(config, method, optimizer, mesh, layout, frozen_dtype)
    trained, base = _bytes(state.trainable), _bytes(state.frozen)
    training, limit = (2 + copies) * trained + _bytes(state.opt_state), of_device()
    if training + base <= limit:
        return
    if method.trains_base or training <= limit:
        raise UserError(
            f"the model does not fit: {_size(training + base)} for parameters, gradients and the "
            f"optimizer's state on each device, which has {_size(limit)}"
        )
    cause = f"{type(method).__name__}.{method.size_field} is {method.size}: " * bool(method.size)
    raise UserError(
        f"{cause}the adapter alone would need {_size(trained)}, and {_size(training)} with its "
        f"gradients and the optimizer's state, on each device, which has {_size(limit)}"
    )


def check_batch(config: T5Config, mesh: Mesh, rows: int, shapes: Iterable[tuple[int, int]]) -> None:
    """Raises `UserError` unless a device can hold the activations of a training step.

    Counted are the encoder's input, one layer's attention, and the logits.

    Args:
      config: the architecture.
      mesh: the mesh.
      rows: rows in memory at a time, on all devices.
      shapes: the lengths (T, L) of batches.
    """
    inputs, targets = map(max, zip(*shapes, strict=True))
    each = inputs * (config.emb_dim + config.num_heads * inputs) * config.dtype.itemsize
    _check(mesh, rows, each + 4 * targets * config.vocab_size, "BATCH_SIZE")


def check_evaluation(config: T5Config, mesh: Mesh, rows: int, generated: int = 0) -> None:
    """Raises `UserError` unless a device can hold the activations of an evaluation batch.

    Counted are the encoder's input, and the keys and values of generated tokens.

    Args:
      config: the architecture.
      mesh: the mesh.
      rows: rows of a batch, on all devices.
      generated: tokens that are generated for each row, in all beams.
    """
    keys_values = 2 * config.num_decoder_layers * config.num_heads * config.head_dim
    each = _SHORTEST * config.emb_dim + generated * keys_values
    _check(mesh, rows, each * config.dtype.itemsize, "Evaluation.batch_size")


def _check(mesh: Mesh, rows: int, bytes_of_row: int, setting: str) -> None:
    on_device = rows // sharding.data_parallel(mesh)
    if on_device * bytes_of_row > (limit := of_device()):
        raise UserError(
            f"{setting} is too large: {on_device:,} rows on a device need at least "
            f"{_size(on_device * bytes_of_row)}, and it has {_size(limit)}"
        )


@contextlib.contextmanager
def shortage() -> Iterator[None]:
    """Turns a failed allocation inside the block into a `UserError`."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        text = str(error).partition("\n")[0]
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
            raise
        raise UserError(
            f"there is not enough memory: {text or 'an array cannot be made'}; a smaller "
            "BATCH_SIZE or shorter TASK_FEATURE_LENGTHS need less"
        ) from error


def _bytes(tree: Any) -> int:
    """Returns the bytes that abstract arrays take on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return ""
