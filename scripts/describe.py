"""Describes a configuration without running it: `adalink describe`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["describe", *sys.argv[1:]]))
