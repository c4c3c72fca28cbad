"""Converts a base to another format and checks the copy: `python scripts/convert.py --help`."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # The logits it compares are a CPU's float32.
sys.path[0] = str(
    pathlib.Path(__file__).resolve().parent.parent
)  # This checkout, installed or not.

from adalink_jax.tools import convert  # noqa: E402

if __name__ == "__main__":
    sys.exit(convert.main())
