"""Inspects, compares, stacks and splits adapters: `adalink adapter`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["adapter", *sys.argv[1:]]))
