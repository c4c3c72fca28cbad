"""Runs scripts/train.py's command line and kills itself at the Nth event: killed_run.py N FLAG…

Events are the moments between which the run's files change: a line of metrics, a checkpoint
before its save and when it is being written, and every file that is written as a whole.
"""

import functools
import os
import signal
import sys

from adalink_jax import files
from adalink_jax.checkpoints.training_state import Store
from adalink_jax.config import gin_files
from adalink_jax.runs.folder import RunFolder

left = int(sys.argv[1])


def event() -> None:
    """Counts down; at zero the process is gone, with nothing flushed and no handler run."""
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def watched(function):
    """The function with an event before and after it."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        event()
        result = function(*args, **kwargs)
        event()
        return result

    return call


RunFolder.log = watched(RunFolder.log)
files.write_text = watched(files.write_text)
Store.save = watched(Store.save)

if __name__ == "__main__":
    code = gin_files.main("adalink_jax.runs.train", sys.argv[2:])
    print(f"events left: {left}")
    sys.exit(code)
