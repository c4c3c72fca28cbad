"""Converts a base to another format and checks the copy: `python scripts/convert.py --help`."""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The logits it compares are float32 of a CPU.
sys.path[0] = str(
    pathlib.Path(__file__).resolve().parent.parent
)  # This checkout, installed or not.

from adalink_jax.checkpoints.base import WRITERS  # noqa: E402
from adalink_jax.convert import convert  # noqa: E402
from adalink_jax.errors import UserError  # noqa: E402


def main() -> int:
    """Parses the command line and converts; returns the exit code."""
    parser = argparse.ArgumentParser(description=convert.__doc__.splitlines()[0])
    parser.add_argument("--from", required=True, metavar="PATH", dest="source", help=_FROM)
    parser.add_argument("--to", required=True, metavar="PATH", dest="target", help=_TO)
    parser.add_argument("--format", required=True, choices=list(WRITERS))
    flags = parser.parse_args()
    try:
        convert(flags.source, flags.target, flags.format)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


_FROM = "a base: T5X (native, Orbax, scanned), Hugging Face, or this project's own; or gs://…"
_TO = "a new folder"

if __name__ == "__main__":
    sys.exit(main())
