"""The command line of cost cards and budgets."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost import budget, card


def main(usage: str, argv: Sequence[str] | None = None) -> int:
    """Prints and writes the card, or prints what meets the budget; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", required=True, help="a file of gin/models")
    parser.add_argument("--method", action="append", help="NAME[:MACRO=VALUE…]; all by default")
    parser.add_argument("--batch", type=int, default=32, help="rows")
    parser.add_argument("--inputs", type=int, default=512, help="tokens of a row's input")
    parser.add_argument("--targets", type=int, default=16, help="tokens of a row's target")
    parser.add_argument("--dtype", default="bfloat16", help="of the activations")
    parser.add_argument("--compile", action="store_true", help="compile for this device")
    parser.add_argument("--measure", action="store_true", help="time it on this device")
    parser.add_argument("--budget", type=int, help="parameters to match, instead of the card")
    parser.add_argument("--to", default="cost", help="the folder to write (default: cost)")
    try:
        _run(parser.parse_args(argv))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(flags: argparse.Namespace) -> None:
    candidates = []
    for model in flags.model:
        for label in flags.method or METHODS:
            name, *settings = label.split(":")
            architecture, method = gin_files.shipped(model, name, settings)
            # Not scanned: of a loop's body, XLA counts the operations once.
            changes = {"dtype": flags.dtype, "scan_layers": False}
            architecture = dataclasses.replace(architecture, **changes)
            candidates.append(card.Candidate(model, architecture, label, method))
            if flags.budget is not None:
                print(f"{model}, {name}: {budget.match(architecture, name, flags.budget).line()}")
    if flags.budget is None:
        shape = card.Shape(flags.batch, flags.inputs, flags.targets)
        rows = card.rows(candidates, shape, flags.compile, flags.measure)
        print(card.write(rows, shape, candidates[0].config, pathlib.Path(flags.to)))
