"""A training step as a run makes it, compiled for devices that are not here; and its memory."""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import Method
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.cost.counts import Shape, batch_of
from adalink_jax.tools.cost.programs import default_optimizer
from adalink_jax.tools.planning import collectives, memory
from adalink_jax.tools.planning.topologies import Topology
from adalink_jax.training.optimizers import per_module
from adalink_jax.training.state import TrainState, abstract_state
from adalink_jax.training.step import in_place, make_train_step

OPTIMIZERS = ("adafactor", "adamw")
# Of XLA's own levels; "default" is what a run has.
RUN_LEVEL = "default"
LEVELS = (RUN_LEVEL, "O0", "O1", "O2", "O3")
# By how much of a peak a run's level was found to need more and less than O1. Where weights are not
# stored as they are multiplied, it may cast those of all layers before the loop over them.
MORE, MORE_WITH_CASTS, LESS = 0.1, 0.3, 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """A training step on a slice.

    Attributes:
      model: the architecture's name.
      config: the architecture, with dtype, dropout and remat.
      label: the method's name, with the settings that were changed.
      method: the method.
      topology: the slice.
      layout: how the model lies on it.
      shape: of the global batch.
      optimizer: of `OPTIMIZERS`.
      frozen_dtype: in which the frozen tree is stored, "float32", "bfloat16" or "int8".
      accumulation: into how many parts a batch is divided.
    """

    model: str
    config: T5Config
    label: str
    method: Method
    topology: Topology
    layout: sharding.Layout
    shape: Shape
    optimizer: str = "adafactor"
    frozen_dtype: str = "float32"
    accumulation: int = 1


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Bytes of what a step is given, on each chip.

    Attributes:
      trainable: parameters that train.
      frozen: parameters that do not.
      optimizer: its state.
      batch: the chip's rows.
    """

    trainable: int
    frozen: int
    optimizer: int
    batch: int

    @property
    def parameters(self) -> int:
        """Of both trees."""
        return self.trainable + self.frozen

    @property
    def total(self) -> int:
        """Of all."""
        return self.parameters + self.optimizer + self.batch


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, or one that the compiler refused for its memory.

    Attributes:
      level: of `LEVELS`.
      fits: whether it was compiled.
      peak_bytes: the most memory that is held at one time on a chip; of a refused step, what the
        compiler says that it needs.
      seconds: that the compiler took.
      trace_seconds: that jax took to trace and lower it.
      buffers: the largest.
      traffic: collectives by kind; None where the step was refused.
    """

    level: str
    fits: bool
    peak_bytes: int
    seconds: float
    trace_seconds: float
    buffers: tuple[memory.Buffer, ...]
    traffic: dict[str, collectives.Traffic] | None


def optimizer_of(case: Case) -> optax.GradientTransformation:
    """The case's optimizer; Adafactor as the shipped gin files set it.

    Raises:
      UserError: it has another name.
    """
    if case.optimizer not in OPTIMIZERS:
        raise UserError(
            f"optimizer is '{case.optimizer}'; it takes {' or '.join(OPTIMIZERS)}"
            f"{nearest(case.optimizer, OPTIMIZERS)}"
        )
    if case.optimizer == "adafactor":
        return default_optimizer(case.method)
    return per_module(optax.adamw(1e-3), case.method)


class Prepared:
    """A case on its mesh: everything that the step is given, without an array.

    Attributes:
      arguments: bytes of it on each chip.
      arguments_of_all: bytes of parameters and optimizer state, each held once.
      weights_of_all: bytes of the parameters, each held once.
    """

    def __init__(self, case: Case, devices: Sequence[Any]):
        """Lays the case out.

        Args:
          case: the step.
          devices: of the case's topology, or as many others.

        Raises:
          UserError: the layout does not fit the devices, the batch or the architecture.
        """
        parts = case.accumulation
        mesh = sharding.make_mesh(case.layout, devices)
        if case.shape.batch % parts:
            raise UserError(
                f"batch is {case.shape.batch}, which {parts} parts of accumulation do not divide"
            )
        sharding.check_divisible(mesh, batch=case.shape.batch // parts)
        self.case, self._mesh, self._optimizer = case, mesh, optimizer_of(case)
        with sharding.on_mesh(mesh):
            self._state = abstract_state(
                case.config,
                case.method,
                self._optimizer,
                mesh,
                case.layout,
                jnp.dtype(case.frozen_dtype),
            )
        self._batch = _abstract_batch(case, mesh)
        state: TrainState = self._state
        trees = (state.trainable, state.frozen, state.opt_state, self._batch)
        self.arguments = Arguments(*map(_bytes_of_a_chip, trees))
        sizes = [
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in trees
        ]
        self.weights_of_all = sizes[0] + sizes[1]
        self.arguments_of_all = sum(sizes[:3])

    def decided(self, level: str) -> Program:
        """Compiles at a level, and again as a run does where that leaves open whether it fits."""
        program = self.compile(level)
        case, allowed = self.case, self.case.topology.chip.allowed_bytes
        stored = "float32" if case.method.trains_base else case.frozen_dtype
        more = MORE if stored == str(case.config.dtype) else MORE_WITH_CASTS
        is_open = program.peak_bytes * (1 - LESS) < allowed < program.peak_bytes * (1 + more)
        if level == RUN_LEVEL or not is_open:
            return program
        again = self.compile(RUN_LEVEL)
        return dataclasses.replace(again, seconds=program.seconds + again.seconds)

    def compile(self, level: str) -> Program:
        """Compiles the step for the devices.

        Args:
          level: of `LEVELS`.

        Raises:
          UserError: there is no such level.
        """
        if level not in LEVELS:
            raise UserError(
                f"optimization_level is '{level}'; it takes one of {', '.join(LEVELS)}"
                f"{nearest(level, LEVELS)}"
            )
        case = self.case
        model = Transformer(case.config, case.method)
        step = make_train_step(
            model, self._optimizer, lambda step: 1e-3, accumulation_steps=case.accumulation
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(self._mesh))
        before = jax.config.jax_optimization_level
        jax.config.update("jax_optimization_level", "UNKNOWN" if level == RUN_LEVEL else level)
        try:
            start = time.perf_counter()
            with sharding.on_mesh(self._mesh):
                lowered = in_place(step, self._state).lower(self._state, self._batch, key)
            lowered_at = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                return _compiled(lowered, level, pathlib.Path(folder), lowered_at - start)
        finally:
            jax.config.update("jax_optimization_level", before)


def _abstract_batch(case: Case, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rows = sharding.batch_sharding(mesh)

    def make(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    return batch_of(case.config, case.shape, make)


def _bytes_of_a_chip(tree: Any) -> int:
    total = 0
    for leaf in jax.tree.leaves(tree):
        size = 1
        for length in leaf.sharding.shard_shape(leaf.shape):
            size *= length
        total += size * leaf.dtype.itemsize
    return total


def _compiled(lowered: Any, level: str, folder: pathlib.Path, trace_seconds: float) -> Program:
    """Compiles, dumping into a folder what only the dump tells."""
    # The report is written even of a program that is refused, whose error names no buffer.
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - start
        report = _report(folder)
        needed = memory.needed_bytes(str(error), report)
        if needed is None:
            raise
        buffers = memory.largest_buffers(report)
        return Program(level, False, needed, seconds, trace_seconds, buffers, None)
    seconds = time.perf_counter() - start
    return Program(
        level,
        True,
        compiled.memory_analysis().peak_memory_in_bytes,
        seconds,
        trace_seconds,
        memory.largest_buffers(_report(folder)),
        collectives.traffic(compiled.as_text()),
    )


def _report(folder: pathlib.Path) -> str:
    reports = sorted(folder.glob("*memory-usage-report.txt"))
    return reports[-1].read_text(encoding="utf-8") if reports else ""
