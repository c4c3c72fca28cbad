"""Scores an adaptation on a task or mixture: `python scripts/eval.py --help`."""

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
    sys.exit(gin_files.main("adalink_jax.runs.evaluate", run_file="runs/eval.gin"))
