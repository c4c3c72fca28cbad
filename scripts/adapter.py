"""Says what an adapter is, whether it is active on its base, how two differ; joins, divides."""

import argparse
import pathlib
import sys

# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.adapters import command as adapters  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    about = "print method, settings, routes, sizes, base and metadata"
    command = commands.add_parser("info", help=about, description=about)
    command.add_argument("adapter", help="an adapter's folder or its run's")
    command.add_argument("--json", dest="as_json", action="store_true", help="as one JSON object")

    about = "check that it fits and is active; exit code 2 if not"
    command = commands.add_parser("verify", help=about, description=about)
    command.add_argument("adapter", help="an adapter's folder or its run's")
    command.add_argument("base", help="the base it was trained on")

    about = "print what differs; exit code 1 if anything does"
    command = commands.add_parser("diff", help=about, description=about)
    command.add_argument("first", help="an adapter's folder or its run's")
    command.add_argument("second", help="another's")

    about = "take over an adapter of Hugging Face's PEFT (LoRA or prompt tuning)"
    command = commands.add_parser("import", help=about, description=about)
    command.add_argument("peft", help="the folder that PEFT wrote")
    command.add_argument("--base", required=True, help="the base it was trained on")
    command.add_argument("--to", required=True, help="the adapter's folder to write")

    about = "make adapters of one method and base the routes of one adapter, bit for bit"
    command = commands.add_parser("stack", help=about, description=about)
    command.add_argument("adapters", nargs="+", help="folders of adapters or of their runs")
    command.add_argument("--to", required=True, help="the adapter's folder to write")

    about = "make each route of an adapter an adapter of its own, bit for bit"
    command = commands.add_parser("split", help=about, description=about)
    command.add_argument("adapter", help="an adapter's folder or its run's")
    command.add_argument("--to", required=True, help="the folder to write them into")

    sys.exit(adapters.main(**vars(parser.parse_args())))
