"""Shows whether a training step fits on a TPU slice, by compiling it. Needs no TPU.

adalink plan --model t5_1_1_xxl --method adalink --topology v5e:4x8 --remat full
adalink plan --model t5_1_1_xl --topology v5e:2x2 --topology v6e:1x1 --to plans/xl
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from adalink_jax import files
from adalink_jax.config import gin_files
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError, nearest
from adalink_jax.methods import METHODS
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.tools.cost.counts import Shape
from adalink_jax.tools.planning import rows, tables, topologies
from adalink_jax.tools.planning.compiling import LEVELS, OPTIMIZERS, Case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds models, methods, TPU slices, the batch and the layout."""
    parser.add_argument("--model", action="append", required=True, help="a file of gin/models")
    parser.add_argument("--method", action="append", help="NAME[:MACRO=VALUE…]; all by default")
    parser.add_argument("--topology", action="append", required=True, help="e.g. v5e:4x8, v4-8")
    parser.add_argument("--batch", type=int, default=128, help="rows of the global batch")
    parser.add_argument("--inputs", type=int, default=512, help="tokens of a row's input")
    parser.add_argument("--targets", type=int, default=16, help="tokens of a row's target")
    parser.add_argument("--images", type=int, default=0, help="image vectors of a row's input")
    parser.add_argument("--remat", default="none", help="none, minimal or full, as in a run")
    parser.add_argument(
        "--fully_sharded", action="store_true", help="shard the base over all chips"
    )
    parser.add_argument("--model_parallelism", type=int, help="chips for tensor parallelism")
    parser.add_argument("--optimizer", action="append", help=f"{' or '.join(OPTIMIZERS)}")
    parser.add_argument("--frozen_dtype", help="dtype of the frozen base (default: bfloat16)")
    parser.add_argument("--optimization_level", default="O1", help=", ".join(LEVELS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--to", help="the folder to write; its rows are not compiled again")


def run(flags: argparse.Namespace) -> None:
    """Prints and writes a plan, whether or not the step fits."""
    _check(flags)
    cases = list(_cases(flags))
    folder = pathlib.Path(flags.to) if flags.to else None
    with files.held(folder, "the plan") if folder else contextlib.nullcontext():
        _plan(cases, flags, folder)


def _plan(cases: Sequence[Case], flags: argparse.Namespace, folder: pathlib.Path | None) -> None:
    """Answers the cases one by one, and writes the plan after each."""
    level = flags.optimization_level
    stored = tables.stored(folder) if folder else []
    questions = [rows.question(case, level) for case in cases]
    answers = [tables.answered(question, stored) for question in questions]
    others = [row for row in stored if row not in answers]
    for i, case in enumerate(cases):
        name = f"{case.model}, {case.label}, {case.optimizer}, {case.topology.name}"
        answer = answers[i]
        if answer is None:
            print(f"{name} …", file=sys.stderr, flush=True)
            answer = answers[i] = rows.row(case, level)
            if folder:
                done = [row for row in answers if row is not None]
                tables.write([*others, *done], len(cases) - len(done), folder)
        if not flags.json:
            verdict = "FITS" if answer["fits"] else "DOES NOT FIT"
            print("\n  ".join([f"{name}: {verdict}", *tables.summary(answer)]), flush=True)
    done = [row for row in answers if row is not None]  # All of them.
    if folder:
        tables.write([*others, *done], 0, folder)
    print(json.dumps({"rows": done}, indent=1) if flags.json else f"\n{tables.markdown(done)}")


def _check(flags: argparse.Namespace) -> None:
    """Raises `UserError` for flags that no model could use."""
    for name in ("batch", "inputs", "targets", "model_parallelism"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if flags.images < 0:
        raise UserError(f"images is {flags.images}; it must be at least 0")
    flags.optimizer = flags.optimizer or ["adafactor"]
    chosen: list[tuple[str, Any, Any]] = [("optimization_level", flags.optimization_level, LEVELS)]
    chosen += [("optimizer", value, OPTIMIZERS) for value in flags.optimizer]
    if flags.frozen_dtype:
        chosen.append(("frozen_dtype", flags.frozen_dtype, FROZEN_DTYPES))
    for name, value, known in chosen:
        if value not in known:
            takes = f"it takes {' or '.join(known)}"
            raise UserError(f"{name} is '{value}'; {takes}{nearest(value, known)}")


def _cases(flags: argparse.Namespace) -> Iterator[Case]:
    """Models × slices × methods × optimizers."""
    slices = [topologies.find(name) for name in dict.fromkeys(flags.topology)]
    topologies.libtpu_version()
    layouts = {each: _layout(each, flags) for each in slices}
    shape = Shape(flags.batch, flags.inputs, flags.targets, flags.images)
    for model in flags.model:
        for topology in slices:
            for label in flags.method or METHODS:
                name, *settings = label.split(":")
                architecture, method = gin_files.shipped(model, name, settings)
                if not flags.method and method.needs_images and architecture.image_width is None:
                    continue
                changes = {"dtype": "bfloat16", "remat": flags.remat}
                architecture = dataclasses.replace(architecture, **changes)
                for optimizer in flags.optimizer:
                    yield Case(
                        model,
                        architecture,
                        label,
                        method,
                        topology,
                        layouts[topology],
                        shape,
                        optimizer,
                        "float32" if method.trains_base else flags.frozen_dtype or "bfloat16",
                    )


def _layout(topology: topologies.Topology, flags: argparse.Namespace) -> Layout:
    """Returns the flags' layout, or else that of the slice's file in gin/hardware."""
    if flags.fully_sharded or flags.model_parallelism:
        return Layout(flags.model_parallelism or 1, flags.fully_sharded)
    file = f"hardware/{topology.preset}.gin"
    if not (gin_files.gin_folder() / file).exists():
        raise UserError(
            f"gin/{file}, the layout of {topology.name}, is not there: give --fully_sharded, "
            "--model_parallelism=N or both"
        )
    set_there = gin_files.build(gin_files.read(Layout, [file]))
    return Layout(set_there["model_parallelism"], set_there["fully_sharded"])
