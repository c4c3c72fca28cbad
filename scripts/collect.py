"""Collects finished runs into one CSV and one table, and plots score by rank."""

import argparse
import pathlib
import sys

# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax import collect  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs (MODEL_DIR)")
    parser.add_argument("--csv", required=True, help="the CSV file to write")
    parser.add_argument("--plot", help="the PNG file of score by rank to write")
    arguments = parser.parse_args()
    sys.exit(collect.main(arguments.runs, arguments.csv, arguments.plot))
