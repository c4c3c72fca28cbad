"""Time from the command `adalink train` to the end of its first step, with and without caches.

AdaLink on the embedded base, in new processes, in turns:

* nothing: no tokens and no compiled programs are there, and none is kept;
* kept: nothing is there, and both are kept for the next start;
* tokens: tokens are there, programs are not kept, which was the second start of earlier versions;
* warm: both are there, from the start before.

The time is that of the whole process, with the interpreter's start; CPU seconds are the process's
own, of all threads.

How to read it: "× tokens" of warm is what a second start takes of what it did. What is left is
importing and tracing: compare it with `benchmarks/import_time.py`.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

# Makes this checkout importable, installed or not.
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import timing  # noqa: E402

_TRAIN = """
import os, sys, time
from adalink_jax.training.pace import Pace
step = Pace.step
def first(*arguments):
    step(*arguments)
    print(time.process_time(), flush=True)
    os._exit(0)
Pace.step = first
from adalink_jax import cli
sys.exit(cli.main(sys.argv[1:]) or 1)
"""
# At toy size: one program of one product.
_PRODUCT = """
import time, jax, jax.numpy as jnp
from adalink_jax import compile_cache
with compile_cache.kept():
    jax.block_until_ready(jax.jit(jnp.dot)(jnp.ones((9, 9)), jnp.ones((9, 9))))
print(time.process_time())
"""
_OFF = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def starting(small: bool, cache: pathlib.Path, empties: bool, **more: str) -> Callable:
    """Returns a candidate that starts the command in a new process.

    Args:
      small: whether to start a toy in its place.
      cache: the folder of tokens and programs.
      empties: whether to empty that folder before.
      **more: environment variables.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"ADALINK_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu", **more}

    def run() -> timing.Seconds:
        if empties:
            shutil.rmtree(cache, ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            words = ["train", "--gin_file=experiments/mini_adalink.gin", "--gin.TRAIN_STEPS=9"]
            words += ["--gin.INITIAL_CHECKPOINT_PATH=mini", f"--gin.MODEL_DIR={folder}/run"]
            command = [sys.executable, "-c", _PRODUCT if small else _TRAIN, *words]
            before = time.perf_counter()
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
            )
            return timing.Seconds(time.perf_counter() - before, float(done.stdout.split()[-1]))

    return run


def main(arguments: list[str]) -> None:
    """Measures and reports."""
    options = timing.parser(__doc__, rounds=5).parse_args(arguments)
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        small, fresh, full = options.small, pathlib.Path(folder) / "a", pathlib.Path(folder) / "b"
        steps = {
            "nothing": starting(small, fresh, True, **_OFF),
            "kept": starting(small, fresh, True),
            "tokens": starting(small, full, False, **_OFF),
            "warm": starting(small, full, False),
        }
        wall, cpu = timing.interleaved(steps, options.rounds, warm_ups=1)
    rows = [
        {
            "start": name,
            "seconds": statistics.median(wall[name]),
            "CPU seconds": statistics.median(cpu[name]),
            "× tokens": timing.ratio(wall, name, "tokens"),
            "× tokens, CPU": timing.ratio(cpu, name, "tokens"),
        }
        for name in steps
    ]
    settings = {"small": options.small, "rounds": options.rounds}
    timing.report("first_step", rows, settings, (wall, cpu), load, options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
