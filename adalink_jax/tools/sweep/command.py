r"""Runs many `adalink train` command lines, read from standard input, in parallel.

for seed in 0 1 2; do
    echo --gin_file=experiments/mini_adalink.gin --gin.SEED=$seed --gin.MODEL_DIR=runs/seed$seed \
        --gin.INITIAL_CHECKPOINT_PATH=adalink_jax/bases/mini
done | adalink sweep --jobs 2

The processes share the CPU cores. On accelerators, leave --jobs at 1. Run the command again after
an interruption: finished runs are skipped, and unfinished ones continue.
"""

import argparse
import shlex
import sys

from adalink_jax.errors import UserError
from adalink_jax.tools.sweep import pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the number of parallel processes."""
    parser.add_argument("--jobs", type=int, default=1, help="processes in parallel (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Reads the command lines and trains them all; returns 2 if one failed."""
    commands = [words for line in sys.stdin if (words := _words(line))]
    return 2 if pool.train_all(commands, arguments.jobs) else 0


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"not a command line ({error}): {line.strip()}") from None
