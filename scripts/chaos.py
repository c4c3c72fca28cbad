"""Tries what happens to commands that are killed, stopped, filled, damaged and fuzzed.

    python scripts/chaos.py --hours 1 --workers 2 --kind "kill train"

A trial is given by its kind, seed and number. The files of one that fails are kept, with the flags
that run it again. Ctrl-C ends it with its counts. Needs a clone with its tests.
"""

import argparse
import collections
import concurrent.futures
import itertools
import pathlib
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tests.chaos.jobs import World  # noqa: E402
from tests.chaos.server import MODULES, Server  # noqa: E402
from tests.chaos.trials import GOOD, KINDS, Counts, run  # noqa: E402


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
    numbers, until = itertools.count(flags.first), time.monotonic() + 3600 * flags.hours
    asked = threading.Event()
    done: list[tuple[str, Counts]] = []

    def work(_: int) -> None:
        with Server(*MODULES) as server, tempfile.TemporaryDirectory() as folder:
            world = World(server, pathlib.Path(folder))
            for counted in run(world, kinds, flags.seed, numbers, pathlib.Path(flags.kept)):
                done.append(counted)
                if asked.is_set() or time.monotonic() > until:
                    break

    with concurrent.futures.ThreadPoolExecutor(flags.workers) as workers:
        working = [workers.submit(work, number) for number in range(flags.workers)]
        try:
            concurrent.futures.wait(working, return_when=concurrent.futures.FIRST_EXCEPTION)
        except KeyboardInterrupt:
            print("ending with the trials that are under way", flush=True)
        asked.set()
    for one in working:
        one.result()
    total = collections.defaultdict(Counts)
    for kind, counts in done:
        total[kind] += counts
    for kind, found in sorted(total.items()):
        words = ", ".join(f"{number} {word}" for word, number in found.most_common())
        print(f"{kind}: {found.total()} trials: {words}")
    print(f"seed {flags.seed}")
    return int(any(found.keys() - GOOD for found in total.values()))


if __name__ == "__main__":
    sys.exit(main())
