"""Shows whether a step fits on a TPU slice: `adalink plan`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
