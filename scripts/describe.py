"""Says what a configuration is without running it: `python scripts/describe.py --help`."""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
sys.path[0] = str(
    pathlib.Path(__file__).resolve().parent.parent
)  # This checkout, installed or not.
sys.path.append(os.getcwd())  # The user's own modules of tasks, which gin files import.

from adalink_jax.config import gin_files  # noqa: E402

if __name__ == "__main__":
    switches = {"json": "print one JSON object instead of tables"}
    sys.exit(
        gin_files.main("adalink_jax.runs.describe", run_file="runs/describe.gin", switches=switches)
    )
