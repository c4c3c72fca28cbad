"""A training of a sweep after another of its kind: with a program of its own, and with the other's.

Trainings of the embedded base in one process, as `adalink sweep` and `experiment` run them, which
differ in their seeds, in turns:

* own: what was traced before is forgotten, as in a new process; compiled programs are kept on disk;
* shared: the step and the scoring that the training before has traced are taken again.

The time is of a whole training, with its data, scoring and saving.

How to read it: "× own" is what a grid of rates and seeds takes of what it would.
"""

import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import jax

# Makes this checkout importable, installed or not.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from adalink_jax.tools.sweep import pool  # noqa: E402
from benchmarks import timing  # noqa: E402


def training(folder: str, method: str, steps: int, shared: bool) -> Callable:
    """Returns a candidate that trains a method once more."""
    seeds = iter(range(1000))

    def run() -> timing.Seconds:
        if not shared:
            jax.clear_caches()
        flags = [f"--gin_file=experiments/mini_{method}.gin", f"--gin.MODEL_DIR={folder}/run"]
        flags += ["--gin.INITIAL_CHECKPOINT_PATH=mini", f"--gin.TRAIN_STEPS={steps}"]
        before, used = time.perf_counter(), time.process_time()
        code, said = pool.captured(
            "train", "adalink_jax.runs.train", [*flags, f"--gin.SEED={next(seeds)}"]
        )
        if code:
            raise SystemExit(said)
        shutil.rmtree(f"{folder}/run")
        return timing.Seconds(time.perf_counter() - before, time.process_time() - used)

    return run


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=5).parse_args(arguments)
    load, steps, rows, measured = os.getloadavg(), 2 if options.small else 300, [], {}
    for method in ("adalink",) if options.small else ("adalink", "lora", "full"):
        with tempfile.TemporaryDirectory() as folder:
            kinds = {
                f"{method}, {name}": training(folder, method, steps, name == "shared")
                for name in ("own", "shared")
            }
            wall, cpu = timing.interleaved(kinds, options.rounds, warm_ups=1)
        measured[method] = wall, cpu
        own = f"{method}, own"
        rows += [
            {
                "training": name,
                "seconds": statistics.median(wall[name]),
                "CPU seconds": statistics.median(cpu[name]),
                "× own": timing.ratio(wall, name, own),
                "× own, CPU": timing.ratio(cpu, name, own),
            }
            for name in kinds
        ]
    wall, cpu = ({k: v for one in measured.values() for k, v in one[i].items()} for i in (0, 1))
    settings = {"small": options.small, "rounds": options.rounds, "steps": steps}
    timing.report("next_training", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
