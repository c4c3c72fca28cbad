"""Prints what each method costs on each model: `adalink cost`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["cost", *sys.argv[1:]]))
