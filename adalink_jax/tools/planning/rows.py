"""One row of a plan: what a step needs on a chip, and an estimate of its time."""

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
    """Returns everything a row depends on, as JSON values; equal questions give equal rows."""
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
        **({"images": case.shape.images} if case.shape.images else {}),
        "gradient_accumulation_steps": case.accumulation,
        "optimizer": case.optimizer,
        "dtype": str(case.config.dtype),
        # Trainable parameters are float32, and full fine-tuning freezes nothing.
        "frozen_dtype": None if case.method.trains_base else case.frozen_dtype,
        "dropout_rate": case.config.dropout_rate,
        "remat": case.config.remat,
        "scanned": case.config.stacks_layers,
        "optimization_level": level,
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }


def row(case: Case, level: str) -> dict[str, Any]:
    """Compiles a case for its slice; if it does not fit, searches for a change that makes it fit.

    Args:
      case: the step.
      level: the compiler's optimization level, as in `Prepared.decided`.

    Returns:
      JSON values: the `question`, and the answer in bytes, FLOPs and seconds.

    Raises:
      UserError: the slice, the batch or the architecture does not support a setting.
    """
    devices = case.topology.devices()
    prepared = Prepared(case, devices)
    program = prepared.decided(level)
    counted = _flops(case.config, case.method, case.shape)
    chip, arguments = case.topology.chip, prepared.arguments
    result = question(case, level) | {
        "decided_at": program.level,
        "fits": program.fits,
        "peak_bytes": program.peak_bytes,
        "allowed_bytes": chip.allowed_bytes,
        "parameter_bytes": arguments.parameters,
        "trainable_bytes": arguments.trainable,
        "optimizer_bytes": arguments.optimizer,
        "batch_bytes": arguments.batch,
        "activation_bytes": program.peak_bytes - arguments.total,
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
        result |= estimate(case, chip, prepared, program, counted["hardware"])
    else:
        tried = advice.search(case, devices, level)
        result["tried"] = [dataclasses.asdict(each) for each in tried]
        result["least_chips"] = -(-prepared.arguments_of_all // chip.allowed_bytes)
    return result


@functools.cache
def _flops(config: T5Config, method: Method, shape: Shape) -> dict[str, Flops]:
    """Returns the step's FLOPs on all chips: as run, and without recomputation."""
    # Scanned layers compute more in the backward pass than the gradients need.
    plain = dataclasses.replace(config, remat="none", scan_layers=False)
    return {
        "hardware": traced_flops(config, method, shape),
        "model": traced_flops(plain, method, shape),
    }


def estimate(
    case: Case, chip: Chip, prepared: Prepared, program: Program, counted: Flops
) -> dict[str, float]:
    """Estimates the seconds of a step at the chip's published peaks.

    The estimate is the longest of three times, as if they overlapped: FLOPs; HBM traffic (weights
    once per pass, gathered as used; state and gradients, read and written; activations, written and
    read); bytes sent to other chips. A real step takes longer.

    Args:
      case: the step.
      chip: the slice's chip.
      prepared: the step's arguments.
      program: the compiled step.
      counted: FLOPs of the step on all chips, as run.
    """
    arguments = prepared.arguments
    passes = counted.train / counted.forward * case.accumulation
    weights = prepared.weights_of_all / case.layout.model_parallelism
    state = 2 * arguments.trainable + arguments.optimizer
    between = max(0, program.peak_bytes - arguments.total)
    sent = sum(each.sent_bytes for each in (program.traffic or {}).values())
    seconds = {
        "compute_seconds": counted.train / case.topology.chips / chip.flops,
        "hbm_seconds": (passes * weights + 2 * state + 2 * between) / chip.hbm_bytes,
        "ici_seconds": sent / chip.ici_bytes,
    }
    return seconds | {"step_seconds": max(seconds.values())}
