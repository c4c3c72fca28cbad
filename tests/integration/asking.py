"""Asks a command to stop, from inside of it."""

import os
import signal
import time

from adalink_jax import signals


def ask_to_stop() -> None:
    """Sends SIGTERM to this process; returns once the thread that hears signals has noted it."""
    os.kill(os.getpid(), signal.SIGTERM)
    # The thread tells nobody, as a command looks at the wish between two steps.
    while not (signals._waiting and signals._waiting.number):
        time.sleep(0.001)
