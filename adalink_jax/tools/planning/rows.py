"""A row of a plan: what a step needs on a chip, and an estimate of its time."""

import dataclasses
import functools
from typing import Any

import jax

from adalink_jax.methods.base import Method
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import Flops, Shape, traced_flops
from adalink_jax.tools.planning import advice
from adalink_jax.tools.planning.compiling import Case, Prepared, Program
from adalink_jax.tools.planning.topologies import Chip, libtpu_version


def question(case: Case, level: str) -> dict[str, Any]:
    """All that a row's numbers depend on, as JSON values; rows of equal questions are equal."""
    method = {name: repr(value) for name, value in sorted(vars(case.method).items())}
    return {
        "model": case.model,
        "method": case.label,
        "settings": method,
        "topology": case.topology.name,
        "chips": case.topology.chips,
        "hosts": case.topology.hosts,
        "model_parallelism": case.layout.model_parallelism,
        "fully_sharded": case.layout.fully_sharded,
        "batch": case.shape.batch,
        "inputs": case.shape.inputs,
        "targets": case.shape.targets,
        "gradient_accumulation_steps": case.accumulation,
        "optimizer": case.optimizer,
        "dtype": str(case.config.dtype),
        # What trains is float32; full fine-tuning freezes nothing.
        "frozen_dtype": None if case.method.trains_base else case.frozen_dtype,
        "dropout_rate": case.config.dropout_rate,
        "remat": case.config.remat,
        "scanned": case.config.stacks_layers,
        "optimization_level": level,
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }


def row(case: Case, level: str) -> dict[str, Any]:
    """Compiles a case for its slice, and looks for a change that makes it fit where it does not.

    Args:
      case: the step.
      level: the compiler's, as `Prepared.decided` takes it.

    Returns:
      JSON values: the `question`, and the answer in bytes, operations and seconds.

    Raises:
      UserError: a setting that the slice, the batch or the architecture does not take.
    """
    devices = case.topology.devices()
    prepared = Prepared(case, devices)
    program = prepared.decided(level)
    counted = _flops(case.config, case.method, case.shape)
    chip, given = case.topology.chip, prepared.arguments
    found = question(case, level) | {
        "decided_at": program.level,
        "fits": program.fits,
        "peak_bytes": program.peak_bytes,
        "allowed_bytes": chip.allowed_bytes,
        "parameter_bytes": given.parameters,
        "trainable_bytes": given.trainable,
        "optimizer_bytes": given.optimizer,
        "batch_bytes": given.batch,
        "activation_bytes": program.peak_bytes - given.total,
        "hardware_flops": counted["hardware"].train,
        "model_flops": counted["model"].train,
        "method_flops": counted["model"].method,
        "collectives": program.traffic
        and {kind: dataclasses.asdict(each) for kind, each in program.traffic.items()},
        "buffers": [dataclasses.asdict(buffer) for buffer in program.buffers],
        "compile_seconds": round(program.seconds, 1),
        "trace_seconds": round(program.trace_seconds, 1),
        "tried": [],
    }
    if program.fits:
        found |= estimate(case, chip, prepared, program, counted["hardware"])
    else:
        tried = advice.search(case, devices, level)
        found["tried"] = [dataclasses.asdict(each) for each in tried]
        found["least_chips"] = -(-prepared.arguments_of_all // chip.allowed_bytes)
    return found


@functools.cache
def _flops(config: T5Config, method: Method, shape: Shape) -> dict[str, Flops]:
    """Operations of the step on all chips: as the hardware does them, and without recomputation."""
    # A scan passes backwards through more than the gradients need.
    plain = dataclasses.replace(config, remat="none", scan_layers=False)
    return {
        "hardware": traced_flops(config, method, shape),
        "model": traced_flops(plain, method, shape),
    }


def estimate(
    case: Case, chip: Chip, prepared: Prepared, program: Program, counted: Flops
) -> dict[str, float]:
    """Seconds of a step at the chip's published peaks: the longest of three, as if they overlapped.

    Operations; bytes through HBM (weights once for each pass over them, as whole as they are used;
    state and gradients read and written; what lies between, written and read); bytes sent to other
    chips. A real step takes longer.

    Args:
      case: the step.
      chip: of its slice.
      prepared: the step's arguments.
      program: the compiled step.
      counted: operations of the step on all chips, as the hardware does them.
    """
    given = prepared.arguments
    passes = counted.train / counted.forward * case.accumulation
    weights = prepared.weights_of_all / case.layout.model_parallelism
    state = 2 * given.trainable + given.optimizer
    between = max(0, program.peak_bytes - given.total)
    sent = sum(each.sent_bytes for each in (program.traffic or {}).values())
    seconds = {
        "compute_seconds": counted.train / case.topology.chips / chip.flops,
        "hbm_seconds": (passes * weights + 2 * state + 2 * between) / chip.hbm_bytes,
        "ici_seconds": sent / chip.ici_bytes,
    }
    return seconds | {"step_seconds": max(seconds.values())}
