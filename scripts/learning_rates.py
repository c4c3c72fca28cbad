"""Prints the best learning rate of a grid: `adalink learning-rates`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["learning-rates", *sys.argv[1:]]))
