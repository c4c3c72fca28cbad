"""Makes the bases of the mini world: raw by span corruption, then tuned on instructions.

adalink pretrain-mini runs/bases

OUT takes the runs, OUT/raw and OUT/tuned; a run's folder is a base for INITIAL_CHECKPOINT_PATH,
and its adapter/ is what adalink_jax/bases holds. On a CPU of one kind the same seed gives the same
bytes; another kind of CPU, or a GPU, sums in another order.

With the environment variables TEXT_FILE (one text a line) and VOCABULARY (T5's SentencePiece file)
it trains only OUT/raw, on that text.
"""

import argparse
import os

from adalink_jax.tools.sweep import pool, trainings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where."""
    parser.add_argument("out", metavar="OUT", help="the folder of both runs")
    parser.set_defaults(flags=[])
    parser.epilog = f"Other flags, e.g. --gin.SEED=1, go to every training.\n{trainings.AGAIN}"


def commands(arguments: argparse.Namespace) -> list[list[str]]:
    """One training after the other."""
    raw, tuned = f"{arguments.out}/raw", f"{arguments.out}/tuned"
    if os.environ.get("TEXT_FILE"):
        lines = [trainings.training("experiments/text_raw.gin", MODEL_DIR=raw)]
    else:
        tuning = "experiments/mini_tuning.gin"
        lines = [
            trainings.training("experiments/mini_raw.gin", MODEL_DIR=raw),
            trainings.training(tuning, MODEL_DIR=tuned, INITIAL_CHECKPOINT_PATH=raw),
        ]
    return [line + arguments.flags for line in lines]


def run(arguments: argparse.Namespace) -> None:
    """Trains both."""
    for flags in commands(arguments):
        pool.call("train", *flags)
