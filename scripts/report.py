"""Makes one folder of finished runs: tables, plots, CSV, and a page that opens without a network.

python scripts/report.py runs/glue runs/ranks --to report
"""

import argparse
import pathlib
import sys

# This checkout, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.report import command  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders of runs, or folders above them")
    parser.add_argument("--to", required=True, help="the folder to write")
    parser.add_argument("--title", default="Methods side by side", help="of the report")
    sys.exit(command.main(**vars(parser.parse_args())))
