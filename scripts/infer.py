"""Answers requests with many adapters of one base: `adalink infer`. Needs `pip install -e .`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
