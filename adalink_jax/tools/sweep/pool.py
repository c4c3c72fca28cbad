"""Runs many trainings, given as command lines, in parallel processes.

A process runs one training after another, so Python, TensorFlow and JAX start only once. All
processes share what is compiled (`adalink_jax.compile_cache`): trainings that differ only in
seed, learning rate or data compile once.
"""

import concurrent.futures
import contextlib
import gc
import io
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess

from adalink_jax import pages, signals
from adalink_jax.config import gin_files
from adalink_jax.errors import UserError


def train_all(commands: Iterable[Sequence[str]], jobs: int) -> int:
    """Runs command lines of ``adalink train``, several in parallel, each only once.

    The processes share the CPU cores. If a training fails, that is reported and the others
    continue.

    Args:
      commands: the flags of each training.
      jobs: number of trainings to run in parallel.

    Returns:
      The number of trainings that failed or never started.

    Raises:
      UserError: the machine has fewer than `jobs` cores, or `jobs` < 1.
    """
    cores = available_cores()
    count = len(cores) or os.cpu_count() or 1  # If cores cannot be assigned, they are shared.
    if not 1 <= jobs <= count:
        raise UserError(f"--jobs={jobs}; this machine has {count} cores")
    once = list(dict.fromkeys(map(tuple, commands)))
    return _train_all(once, [cores[i::jobs] for i in range(jobs)])


def available_cores() -> list[int]:
    """Returns the cores this process may use; an empty list if they cannot be assigned."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def call(*words: str) -> None:
    """Runs an `adalink` command in a new process and shows its output.

    In this process it would hold the accelerator that the trainings after it need.

    Raises:
      SystemExit: the command failed; it has printed why. The exit code is passed on.
    """
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "adalink_jax", *words])
    if done.returncode:
        raise SystemExit(done.returncode)


def _train_all(commands: Sequence[tuple[str, ...]], shares: Sequence[Sequence[int]]) -> int:
    """Trains all, with one process per share of the cores; returns the number of failures."""
    for name, value in pages.HUGE.items():
        os.environ.setdefault(name, value)
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for share in shares:
        free.put(share if len(shares) > 1 else ())
    failed, trained, started = 0, 0, time.monotonic()
    said: set[str] = set()
    pool = concurrent.futures.ProcessPoolExecutor(
        len(shares), context, initializer=_settle, initargs=(free,)
    )
    try:
        futures = [pool.submit(_train, command) for command in commands]
        for done, future in enumerate(_ended(futures), 1):
            code, seconds, line, output = future.result()
            trained += not _was_finished(output)
            left = _time_left(time.monotonic() - started, trained, len(commands) - done)
            print(f"[{done}/{len(commands)}] {seconds:.0f} s{left}: {line}", flush=True)
            if code:
                failed += 1
                if output not in said:  # A slip in what all have is said once.
                    print(output.rstrip(), file=sys.stderr, flush=True)
                said.add(output)
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


def _ended(futures: Iterable[concurrent.futures.Future]) -> Iterator[concurrent.futures.Future]:
    """Yields what has ended, until all have or a signal comes; then trainings save and end too."""
    left = set(futures)
    with signals.waiting() as wish:
        wish.take()
        while left:
            ended, left = concurrent.futures.wait(left, 0.5, concurrent.futures.FIRST_COMPLETED)
            if wish.number:
                for process in multiprocessing.active_children():
                    process.terminate()
                raise signals.Stopped(wish.number, "stopped; the same command goes on")
            yield from ended


def _settle(free: "multiprocessing.SimpleQueue") -> None:
    """Sets a new process's cores.

    The process ends when the sweep does, however that ends; otherwise it would run unnoticed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep too, which ends all.
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if share := free.get():
        os.sched_setaffinity(0, share)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


# Whether this process was asked to end. The executor gives its processes some more trainings than
# they can run at once, and cannot take them back.
_asked_to_end = threading.Event()


def _train(command: Sequence[str]) -> tuple[int, float, str, str]:
    """Trains one; returns its exit code, seconds, last line, and everything it printed."""
    started = time.monotonic()
    named = [word.partition("=")[2] for word in command if word.startswith("--gin.MODEL_DIR=")]
    line = (named or [shlex.join(command)])[-1]
    if _asked_to_end.is_set():
        return 1, 0.0, f"{line} not started", ""
    code, output = captured("train", "adalink_jax.runs.train", command)
    if code or _was_finished(output):
        line += " FAILED" if code else " was finished"
    return code, time.monotonic() - started, line, output


def _time_left(elapsed: float, trained: int, remaining: int) -> str:
    """Returns a guess from the runs that trained; those finished before took no time."""
    return f", {elapsed / trained * remaining / 60:.0f} min left" if trained else ""


def _was_finished(output: str) -> bool:
    return output.rstrip().endswith("nothing to do")


def captured(name: str, entry: str, flags: Sequence[str]) -> tuple[int, str]:
    """Runs a command of gin files in this process; returns its exit code and what it printed.

    It may take programs that an earlier one has traced.

    Args:
      name: the command's name, for the record.
      entry: dotted name of the function that gin configures.
      flags: its arguments.
    """
    sys.argv = ["adalink", name, *flags]  # run.json records this as the command.
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = gin_files.main(entry, flags)
        except signals.Stopped as stopped:
            _asked_to_end.set()
            code = stopped.code
        except Exception:  # A bug in one training must not stop the others; the traceback is shown.
            traceback.print_exc()
            code = 1
    gc.collect()
    return code, output.getvalue()


def quietly(name: str, entry: str, flags: Sequence[str]) -> None:
    """Runs a command as `captured` does; what it printed is shown only if it failed.

    It traces its own programs, so that runs one after the other take comparable times.

    Raises:
      SystemExit: it failed.
    """
    code, said = captured(name, entry, flags)
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if code:
        print(said.rstrip(), file=sys.stderr, flush=True)
        raise SystemExit(code)
