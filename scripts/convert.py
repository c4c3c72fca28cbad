"""Converts a base to another format: `adalink convert`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
