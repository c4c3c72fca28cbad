"""Prints what each method costs on each model: parameters, FLOPs, memory and time.

adalink cost --model t5_1_1_xl --batch 32 --inputs 512 --targets 16 --to runs/cost
adalink cost --model mini --method adalink:RANK=16 --method full --compile --measure

With --budget it prints instead which settings of a method give that many parameters:

adalink cost --model flan_t5_base --budget 65536
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator

from adalink_jax import files
from adalink_jax.config import gin_files
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost import budget, card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds models, methods, the batch, and what to compute."""
    parser.add_argument("--model", action="append", required=True, help="a file of gin/models")
    parser.add_argument("--method", action="append", help="NAME[:MACRO=VALUE…]; all by default")
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch")
    parser.add_argument("--inputs", type=int, default=512, help="tokens of a row's input")
    parser.add_argument("--targets", type=int, default=16, help="tokens of a row's target")
    parser.add_argument("--images", type=int, default=0, help="image vectors of a row's input")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the activations")
    parser.add_argument("--compile", action="store_true", help="compile for this device")
    parser.add_argument("--memory", action="store_true", help="compile its memory at each remat")
    parser.add_argument("--measure", action="store_true", help="time it on this device")
    parser.add_argument("--budget", type=int, help="print settings with this many parameters")
    about = "how far from the budget a size may be, as a part of it (default: 0.01)"
    parser.add_argument("--tolerance", type=float, default=budget.TOLERANCE, help=about)
    parser.add_argument("--to", default="cost", help="the folder to write (default: cost)")


def run(flags: argparse.Namespace) -> None:
    """Prints and writes the card, or prints the settings that match the budget."""
    candidates = list(_candidates(flags))
    if flags.budget is not None:
        for one in candidates:
            name = one.label.partition(":")[0]
            found = budget.match(one.config, one.method, flags.budget, flags.tolerance)
            print(f"{one.model}, {name}: {found.line()}")
        return
    shape = card.Shape(flags.batch, flags.inputs, flags.targets, flags.images)
    rows = card.rows(candidates, shape, flags.compile, flags.memory, flags.measure)
    with files.held(flags.to, "the card"):
        text = card.write(rows, shape, candidates[0].config, pathlib.Path(flags.to))
    print(f"{text}\n{flags.to}: cost.md, cost.csv, cost.json, cost.png")


def _candidates(flags: argparse.Namespace) -> Iterator[card.Candidate]:
    """Models × methods; by default all methods that the model can have."""
    for model in flags.model:
        for label in flags.method or METHODS:
            name, *settings = label.split(":")
            architecture, method = gin_files.shipped(model, name, settings)
            if not flags.method and method.needs_images and architecture.image_width is None:
                continue
            # Without scan: XLA counts a loop's body only once.
            changes = {"dtype": flags.dtype, "scan_layers": False}
            architecture = dataclasses.replace(architecture, **changes)
            yield card.Candidate(model, architecture, label, method, asked=bool(flags.method))


def matched(model: str, label: str, parameters: int, tolerance: float) -> budget.Match:
    """Finds the settings with which a method stores a given number of parameters.

    Args:
      model: a file of gin/models.
      label: ``NAME[:MACRO=VALUE…]``, with NAME a file of gin/methods.
      parameters: the budget, a number of parameters.
      tolerance: how far from the budget the size may be, as a part of it.
    """
    name, *settings = label.split(":")
    architecture, method = gin_files.shipped(model, name, settings)
    return budget.match(architecture, method, parameters, tolerance)
