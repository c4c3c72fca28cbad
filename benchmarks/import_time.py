"""Time to import adalink_jax's core, compared with the libraries it depends on.

Measured in new interpreters with warm file caches, in turns:

* libraries: `import jax, flax.linen, optax, orbax.checkpoint`;
* adalink_jax: everything a training step and its checkpoints need (models, methods, training,
  checkpoints, sharding), which imports the same libraries;
* with tasks: the same and the tasks, which import SeqIO and with it TensorFlow, as each run does.

The child process reads its own clocks around the imports, so the interpreter's start is not
counted.

How to read it: "× libraries" of adalink_jax should be at most 1.3. If it is more, something slow
(TensorFlow, SeqIO, gin, plotting) is imported where it is not needed. To find it:
`python -X importtime -c "import adalink_jax.training.loop"`.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import timing  # noqa: E402

LIBRARIES = ("jax", "flax.linen", "optax", "orbax.checkpoint")
OURS = (
    "adalink_jax.models.t5",
    "adalink_jax.models.decoding",
    "adalink_jax.methods",
    "adalink_jax.training.loop",
    "adalink_jax.training.optimizers",
    "adalink_jax.training.state",
    "adalink_jax.training.step",
    "adalink_jax.checkpoints",
    "adalink_jax.distributed.sharding",
)

_CHILD = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import {modules}
print([time.perf_counter() - wall, time.process_time() - cpu])
"""


def importing(modules: tuple[str, ...]) -> Callable[[], timing.Seconds]:
    """Returns a candidate that imports the modules in a new interpreter."""
    code = _CHILD.format(modules=", ".join(modules))

    def run() -> timing.Seconds:
        # The child's working directory is the first entry of its path.
        child = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return timing.Seconds(*json.loads(child.stdout))

    return run


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=15).parse_args(arguments)
    load = os.getloadavg()
    ours = OURS[:1] if options.small else OURS
    steps = {
        "libraries": importing(LIBRARIES),
        "adalink_jax": importing(ours),
        "with tasks": importing((*ours, "tasks")),
    }
    wall, cpu = timing.interleaved(steps, options.rounds, warm_ups=1)
    rows = [
        {
            "imported": name,
            "seconds": statistics.median(wall[name]),
            "CPU seconds": statistics.median(cpu[name]),
            "× libraries": timing.ratio(wall, name, "libraries"),
            "× libraries, CPU": timing.ratio(cpu, name, "libraries"),
        }
        for name in steps
    ]
    settings = {"libraries": LIBRARIES, "adalink_jax": ours, "rounds": options.rounds}
    timing.report("import_time", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
