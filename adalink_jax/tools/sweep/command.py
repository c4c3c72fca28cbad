r"""Trains many command lines of `adalink train`, from the standard input, side by side.

for seed in 0 1 2; do
    echo --gin_file=experiments/mini_adalink.gin --gin.SEED=$seed --gin.MODEL_DIR=runs/seed$seed \
        --gin.INITIAL_CHECKPOINT_PATH=adalink_jax/bases/mini
done | adalink sweep --jobs 2

The cores are divided among the processes. On accelerators leave --jobs at 1. Finished runs are left
as they are, and stopped ones go on: run it again after an interruption.
"""

import argparse
import shlex
import sys

from adalink_jax.errors import UserError
from adalink_jax.tools.sweep import pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how many are trained at a time."""
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Reads the command lines and trains them all; 2 where one failed."""
    commands = [words for line in sys.stdin if (words := _words(line))]
    return 2 if pool.train_all(commands, arguments.jobs) else 0


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(f"not a command line ({error}): {line.strip()}") from None
