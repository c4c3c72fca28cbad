"""Tries what happens to commands that are killed, stopped, filled, damaged and fuzzed.

    python scripts/chaos.py --hours 1 --workers 2 --kind "kill train"

A trial is given by its kind, seed and number. The files of one that fails are kept, with the flags
that run it again. Ctrl-C ends it with its counts. Needs a clone with its tests.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.chaos.hours import counted_up, run_for  # noqa: E402
from tests.chaos.trials import KINDS  # noqa: E402


def main() -> int:
    """Runs trials until the time is over; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="how long trials begin")
    parser.add_argument("--kind", default="", help=f"its first words, of: {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of all trials")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--workers", type=int, default=1, help="trials side by side")
    parser.add_argument("--kept", default="chaos", help="folder of the files of failures")
    flags = parser.parse_args()
    kinds = {name: trial for name, trial in KINDS.items() if name.startswith(flags.kind)}
    kept = pathlib.Path(flags.kept)
    done = run_for(flags.hours, kinds, flags.seed, flags.first, flags.workers, kept)
    failed = counted_up(done)
    print(f"seed {flags.seed}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
