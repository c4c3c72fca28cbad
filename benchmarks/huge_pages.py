"""Time of a training step on a CPU, with memory in pages of 4 KiB and of 2 MiB.

AdaLink at FLAN-T5 small's shape (random weights, a batch of 16 rows without padding), each time in
a new process, because glibc reads GLIBC_TUNABLES when a process starts:

* usual: as the system has it;
* huge: with GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which asks for pages of 2 MiB. Linux gives them
  where /sys/kernel/mm/transparent_hugepage/enabled is madvise or always.

Measured is the median of a process's steps, after two that are not timed. "fresh pages" is how
many pages a step asked the system for (minor faults).

How to read it: "× usual" is what huge pages leave of a step's time. Results are the same, bit by
bit. The longer the rows, the more memory a step takes.
"""

import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from adalink_jax import pages  # noqa: E402
from benchmarks import matrix_products, timing  # noqa: E402

_CHILD = "import sys; from benchmarks import huge_pages; huge_pages.measure(*sys.argv[1:])"
_KINDS: dict[str, dict[str, str]] = {"usual": {}, "huge": pages.HUGE}


def measure(model: str, batch: str, inputs: str, targets: str, steps: str) -> None:
    """Prints [median wall seconds, median CPU seconds, median minor faults] of a step."""
    import jax

    from adalink_jax.methods.base import Method
    from adalink_jax.models import parameters
    from adalink_jax.training import state as states
    from benchmarks import shapes, train_step

    config, mesh = getattr(shapes, model)(0.1), train_step.make_mesh()
    shape = matrix_products.Shape(int(batch), int(inputs), int(targets))
    measured = []
    with train_step.on_mesh(mesh):
        base = parameters.init_base(config, jax.random.key(0))
        base = states.place_params(config, Method(), base, mesh)
        method = train_step.methods(1)["adalink"]
        rows = train_step.place_batch(train_step.make_batch(config.vocab_size, shape), mesh)
        step = train_step.method_step(config, method, base, rows, mesh)
        step(), step()
        for _ in range(int(steps)):
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            seconds = (time.perf_counter() - wall, time.process_time() - cpu)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            measured.append((*seconds, faults))
    print(json.dumps([statistics.median(values) for values in zip(*measured, strict=True)]))


def process(kind: str, pages: list[float], *words: str) -> Callable[[], timing.Seconds]:
    """Returns a candidate that measures in a new process, and adds its faults to `pages`."""
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | _KINDS[kind]

    def run() -> timing.Seconds:
        command = [sys.executable, "-c", _CHILD, *words]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        wall, cpu, faults = json.loads(done.stdout)
        pages.append(faults)
        return timing.Seconds(wall, cpu)

    return run


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    flags = timing.parser(__doc__, rounds=5)
    flags.add_argument("--inputs", type=int, default=64, help="input tokens of a row; default 64")
    flags.add_argument("--steps", type=int, default=5, help="of a process; default 5")
    options = flags.parse_args(arguments)
    load = os.getloadavg()
    model, shape = "flan_t5_small", matrix_products.Shape(16, options.inputs, 4)
    if options.small:
        model, shape = "toy", matrix_products.Shape(2, 8, 2)
    sizes = [str(size) for size in dataclasses.astuple(shape)]
    pages: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    steps = {kind: process(kind, pages[kind], model, *sizes, str(options.steps)) for kind in _KINDS}
    wall, cpu = timing.interleaved(steps, options.rounds, warm_ups=0)
    rows = [
        {
            "pages": kind,
            "seconds": statistics.median(wall[kind]),
            "CPU seconds": statistics.median(cpu[kind]),
            "× usual": timing.ratio(wall, kind, "usual"),
            "× usual, CPU": timing.ratio(cpu, kind, "usual"),
            "fresh pages": f"{statistics.median(pages[kind]):,.0f}",
        }
        for kind in steps
    ]
    settings = {"model": model, "shape": dataclasses.asdict(shape), "steps": options.steps}
    timing.report("huge_pages", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
