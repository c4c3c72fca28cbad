"""Makes a report of finished runs: `adalink report`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
