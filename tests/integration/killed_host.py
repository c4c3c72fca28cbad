"""Runs scripts/train.py's command line as a host that is killed after a checkpoint, if it is one.

``killed_host.py SIGNAL INDEX STEP FLAG…``: the host of this index gets the signal (KILL, STOP) when
the step is on disk.
"""

import os
import signal
import sys

import jax

from adalink_jax.checkpoints.training_state import Store
from adalink_jax.config import gin_files

number = signal.Signals[f"SIG{sys.argv[1]}"]
victim, fatal = map(int, sys.argv[2:4])
save = Store.save


def save_and_die(store: Store, step: int, tree) -> None:
    save(store, step, tree)
    if step == fatal:
        store.wait()
        if jax.process_index() == victim:
            os.kill(os.getpid(), number)


Store.save = save_and_die

if __name__ == "__main__":
    sys.exit(gin_files.main("adalink_jax.runs.train", sys.argv[4:]))
