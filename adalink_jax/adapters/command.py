"""Inspects, checks, compares, compresses, stacks, packs and splits adapters."""

import argparse
from collections.abc import Callable

from adalink_jax.adapters.compress import DENSITIES, SCALES, compress
from adalink_jax.adapters.inspect import diff, info, verify
from adalink_jax.adapters.pack import pack
from adalink_jax.adapters.routes import import_peft, split_routes, stack

_FOLDER = "an adapter's folder or its run's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subcommand per action."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(function=function)
        return added

    added = command("info", info, "print method, settings, routes, sizes, base and metadata")
    added.add_argument("adapter", help=_FOLDER)
    added.add_argument("--json", dest="as_json", action="store_true", help="as one JSON object")

    added = command(
        "verify", verify, "check that an adapter fits its base and is active; exit code 2 if not"
    )
    added.add_argument("adapter", help=_FOLDER)
    added.add_argument("base", help="the base it was trained on")

    added = command("diff", diff, "print the differences of two adapters; exit code 1 if any")
    added.add_argument("first", help=_FOLDER)
    added.add_argument("second", help="the other adapter's folder or its run's")

    about = "import an adapter of Hugging Face's PEFT"
    added = command("import", import_peft, about)
    added.add_argument("peft", help="the folder that PEFT wrote")
    added.add_argument("--base", required=True, help="the base it was trained on")
    added.add_argument("--to", required=True, help="the adapter's folder to write")

    about = "stack adapters of one method and base as the routes of one adapter, bit for bit"
    added = command("stack", stack, about)
    added.add_argument("adapters", nargs="+", help="folders of adapters or of their runs")
    added.add_argument("--to", required=True, help="the adapter's folder to write")
    about = "names of the routes, in order (default: their tasks' or folders')"
    added.add_argument("--names", nargs="+", help=about)

    about = "write all adapters below a folder into one file, for infer and serve"
    added = command("pack", pack, about)
    added.add_argument("folder", help="a folder of adapters, or of runs that wrote one")
    added.add_argument("--to", required=True, help="the file to write")

    about = "write each route of an adapter as an adapter of its own, bit for bit"
    added = command("split", split_routes, about)
    added.add_argument("adapter", help=_FOLDER)
    added.add_argument("--to", required=True, help="the folder to write them into")

    about = "compress an adapter to two bits a parameter (ComPEFT)"
    added = command("compress", compress, about)
    added.add_argument("adapter", help=_FOLDER)
    added.add_argument("--to", required=True, help="the adapter's folder to write")
    about = "the share of the numbers that are kept; of several the best is taken"
    added.add_argument("--density", type=float, nargs="+", default=DENSITIES, help=about)
    about = "their value in standard deviations; of several the best is taken"
    added.add_argument("--scale", type=float, nargs="+", default=SCALES, help=about)
    added.add_argument("--base", help="the base it was trained on")
    added.add_argument("--task", help="the task whose score chooses density and scale")
    about = "in the place of a task, a table with the columns of that which it was trained on"
    added.add_argument("--data", metavar="FILE", help=about)


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen subcommand; returns the exit code."""
    values = dict(vars(arguments))
    return values.pop("function")(**values)
