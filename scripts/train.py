"""Trains a method on a task or mixture and scores it: `adalink train`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
