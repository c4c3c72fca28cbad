"""Compiles a run's training step for devices that are not present, and reads its memory use."""

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
# XLA's own levels; "default" is the one that runs use.
RUN_LEVEL = "default"
LEVELS = (RUN_LEVEL, "O0", "O1", "O2", "O3")
# How much more or less of the peak at O1 a run's level was measured to need. If weights are stored
# and multiplied in different dtypes, it may cast those of all layers before the loop over them.
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
      layout: how the model is divided on the slice.
      shape: the global batch's shape.
      optimizer: a name in `OPTIMIZERS`.
      frozen_dtype: the dtype the frozen tree is stored in: "float32", "bfloat16" or "int8".
      accumulation: the number of parts a batch is divided into.
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
    """Bytes of a step's arguments, on each chip.

    Attributes:
      trainable: parameters that train.
      frozen: parameters that do not.
      optimizer: the optimizer's state.
      batch: the chip's rows.
    """

    trainable: int
    frozen: int
    optimizer: int
    batch: int

    @property
    def parameters(self) -> int:
        """Bytes of the trainable and the frozen parameters."""
        return self.trainable + self.frozen

    @property
    def total(self) -> int:
        """Bytes of all arguments."""
        return self.parameters + self.optimizer + self.batch


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step, or one that the compiler refused because of its memory.

    Attributes:
      level: a name in `LEVELS`.
      fits: whether it was compiled.
      peak_bytes: peak memory of a chip; for a refused step, what the compiler says it needs.
      seconds: the compiler's time.
      trace_seconds: jax's time to trace and lower the step.
      buffers: the largest buffers.
      traffic: collectives by kind; None if the step was refused.
    """

    level: str
    fits: bool
    peak_bytes: int
    seconds: float
    trace_seconds: float
    buffers: tuple[memory.Buffer, ...]
    traffic: dict[str, collectives.Traffic] | None


def optimizer_of(case: Case) -> optax.GradientTransformation:
    """Returns the case's optimizer; Adafactor is set as in the shipped gin files.

    Raises:
      UserError: the optimizer's name is unknown.
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
    """A case on its mesh: the step's arguments as shapes, without arrays.

    Attributes:
      arguments: bytes of the arguments on each chip.
      arguments_of_all: bytes of parameters and optimizer state, each counted once.
      weights_of_all: bytes of the parameters, each counted once.
    """

    def __init__(self, case: Case, devices: Sequence[Any]):
        """Places the case on a mesh.

        Args:
          case: the step.
          devices: the devices of the case's topology, or the same number of others.

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
        """Compiles at a level; if the result is close to the limit, again at the run's level."""
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
          level: a name in `LEVELS`.

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
        before = jax.config.jax_optimization_level  # pyright: ignore[reportAttributeAccessIssue]: made at run time
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


# The ends of names of files in XLA's dump.
_REPORT, _PROGRAM = "memory-usage-report.txt", ".after_optimizations.txt"


def _compiled(lowered: Any, level: str, folder: pathlib.Path, trace_seconds: float) -> Program:
    """Compiles a step, and reads XLA's dump for what is found only there."""
    # XLA also dumps the report of a refused program, whose error does not name the buffers.
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    start = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - start
        report = _dumped(folder, _REPORT)
        needed = memory.needed_bytes(str(error), report)
        if needed is None:
            raise
        buffers = memory.largest_buffers(report)
        return Program(level, False, needed, seconds, trace_seconds, buffers, None)
    seconds = time.perf_counter() - start
    # Its text as this jaxlib would write it need not exist: libtpu may know operations that jaxlib
    # does not.
    text = _dumped(folder, _PROGRAM)
    if not text:
        raise RuntimeError("XLA dumped no program whose collectives could be counted")
    return Program(
        level,
        True,
        compiled.memory_analysis().peak_memory_in_bytes,
        seconds,
        trace_seconds,
        memory.largest_buffers(_dumped(folder, _REPORT)),
        collectives.traffic(text),
    )


def _dumped(folder: pathlib.Path, name: str) -> str:
    found = sorted(folder.glob(f"*{name}"))
    return found[-1].read_text(encoding="utf-8") if found else ""
