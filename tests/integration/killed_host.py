"""Runs scripts/train.py's command line as a host that is killed after a checkpoint, if it is one.

``killed_host.py INDEX STEP FLAG…``: the host of this index dies when the step is saved.
"""

import os
import signal
import sys

import jax

from adalink_jax.checkpoints.training_state import Store
from adalink_jax.config import gin_files

victim, fatal = map(int, sys.argv[1:3])
save = Store.save


def save_and_die(store: Store, step: int, tree) -> None:
    save(store, step, tree)
    if jax.process_index() == victim and step == fatal:
        os.kill(os.getpid(), signal.SIGKILL)


Store.save = save_and_die

if __name__ == "__main__":
    sys.exit(gin_files.main("adalink_jax.runs.train", sys.argv[3:]))
