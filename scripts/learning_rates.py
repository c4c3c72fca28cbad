"""Prints the best learning rate of one base's and method's runs, or writes a table of many grids.

python scripts/learning_rates.py runs/experiment/rates/tuned/adalink
python scripts/learning_rates.py runs/experiment/rates --to learning_rates.md
"""

import argparse
import pathlib
import sys

# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.report import rates  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="has the runs, one for each rate and task, below it")
    parser.add_argument("--to", help="the Markdown file to write")
    sys.exit(rates.main(**vars(parser.parse_args())))
