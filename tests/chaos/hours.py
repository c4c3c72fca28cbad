"""Trials for hours, side by side, and their counts."""

import collections
import concurrent.futures
import itertools
import pathlib
import tempfile
import threading
import time
from collections.abc import Mapping

from tests.chaos.jobs import World
from tests.chaos.server import MODULES, Server
from tests.chaos.trials import GOOD, Counts, Trial, run

Done = list[tuple[str, Counts]]


def run_for(
    hours: float,
    kinds: Mapping[str, Trial],
    seed: int,
    first: int,
    workers: int,
    kept: pathlib.Path,
) -> Done:
    """Runs trials until the time is over, or Ctrl-C; returns each one's kind and counts.

    Args:
      hours: how long trials begin.
      kinds: the trials by name.
      seed: seed of all trials.
      first: number of the first trial.
      workers: trials side by side.
      kept: the folder of the files of failures.
    """
    numbers, until = itertools.count(first), time.monotonic() + 3600 * hours
    asked = threading.Event()
    done: Done = []

    def work() -> None:
        with Server(*MODULES) as server, tempfile.TemporaryDirectory() as folder:
            world = World(server, pathlib.Path(folder))
            for counted in run(world, kinds, seed, numbers, kept):
                done.append(counted)
                if asked.is_set() or time.monotonic() > until:
                    break

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        working = [pool.submit(work) for _ in range(workers)]
        try:
            concurrent.futures.wait(working, return_when=concurrent.futures.FIRST_EXCEPTION)
        except KeyboardInterrupt:
            print("ending with the trials that are under way", flush=True)
        asked.set()
    for one in working:
        one.result()
    return done


def counted_up(done: Done) -> bool:
    """Prints what came of each kind of trial; returns whether any failed."""
    total = collections.defaultdict(Counts)
    for kind, counts in done:
        total[kind] += counts
    for kind, found in sorted(total.items()):
        words = ", ".join(f"{number} {word}" for word, number in found.most_common())
        print(f"{kind}: {found.total()} trials: {words}")
    return any(found.keys() - GOOD for found in total.values())
