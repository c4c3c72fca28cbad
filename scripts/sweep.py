"""Runs many training command lines in parallel: `adalink sweep`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
