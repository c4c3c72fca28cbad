"""Many trainings, a command line each, in processes side by side.

A process takes one training after another, so that Python, TensorFlow and JAX start once, and all
of them share what XLA compiled: trainings that differ in seed or data alone compile once.
"""

import concurrent.futures
import contextlib
import gc
import io
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError


def train_all(commands: Iterable[Sequence[str]], jobs: int) -> int:
    """Trains command lines of ``adalink train``, some of them side by side, each once.

    The cores are divided among the processes. A training that fails is reported, and the others
    go on.

    Args:
      commands: the flags of each.
      jobs: how many are trained at a time.

    Returns:
      How many failed or were never started.

    Raises:
      UserError: there are not as many cores.
    """
    cores = available_cores()
    count = len(cores) or os.cpu_count() or 1  # Where cores cannot be chosen, they are shared.
    if not 1 <= jobs <= count:
        raise UserError(f"--jobs={jobs}; this machine has {count} cores")
    once = list(dict.fromkeys(map(tuple, commands)))
    return _train_all(once, [cores[i::jobs] for i in range(jobs)])


def available_cores() -> list[int]:
    """Returns the cores that this process may use, or nothing where they cannot be chosen."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def call(*words: str) -> None:
    """Runs one command of `adalink` in a process of its own, whose output is shown.

    In this process it would hold the accelerator that the trainings after it need.

    Raises:
      SystemExit: it failed, with its exit code; it has said why.
    """
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "adalink_jax", *words])
    if done.returncode:
        raise SystemExit(done.returncode)


def _train_all(commands: Sequence[tuple[str, ...]], shares: Sequence[Sequence[int]]) -> int:
    """Trains all, one process for each share of the cores; returns how many failed."""
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for share in shares:
        free.put(share if len(shares) > 1 else ())
    failed, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adalink_xla_") as compiled:
        pool = concurrent.futures.ProcessPoolExecutor(
            len(shares), context, initializer=_settle, initargs=(free, compiled)
        )
        try:
            futures = [pool.submit(_train, command) for command in commands]
            for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
                code, seconds, line, output = future.result()
                left = (time.monotonic() - started) / done * (len(commands) - done)
                where = f"[{done}/{len(commands)}] {seconds:.0f} s, {left / 60:.0f} min left"
                print(f"{where}: {line}", flush=True)
                if code:
                    failed += 1
                    print(output.rstrip(), file=sys.stderr, flush=True)
        except BrokenProcessPool:
            print(
                "error: a training process was ended from outside (out of memory?); the same "
                "command goes on from here",
                file=sys.stderr,
            )
            return failed + 1
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        print(f"error: {failed} of {len(commands)} trainings failed; see above", file=sys.stderr)
    return failed


def _settle(free: "multiprocessing.SimpleQueue", compiled: str) -> None:
    """Gives a new process its cores and the common folder of compiled programs.

    It ends with the sweep, however that ends: nobody would know of a training that went on.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if share := free.get():
        os.sched_setaffinity(0, share)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _train(command: Sequence[str]) -> tuple[int, float, str, str]:
    """Trains one; returns its exit code, seconds, last line, and all that it printed."""
    sys.argv = ["adalink", "train", *command]  # What run.json records as its command.
    started, output = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = gin_files.main("adalink_jax.runs.train", command)
        except Exception:  # One training's defect must not end the others; its traceback is shown.
            traceback.print_exc()
            code = 1
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    named = [word.partition("=")[2] for word in command if word.startswith("--gin.MODEL_DIR=")]
    line = (named or [shlex.join(command)])[-1]
    if code or output.getvalue().rstrip().endswith("nothing to do"):
        line += " FAILED" if code else " was finished"
    return code, time.monotonic() - started, line, output.getvalue()
