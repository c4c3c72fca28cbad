"""Trains the two bases of the small world: span corruption first, then instruction tuning.

adalink pretrain-mini runs/bases

The runs are written to OUT/raw and OUT/tuned. A run's folder can be used as
INITIAL_CHECKPOINT_PATH; adalink_jax/bases holds copies of the adapter/ folders. On the same kind
of CPU the same seed gives the same bytes. Another CPU or a GPU adds numbers in another order.

If the environment variables TEXT_FILE (one text per line) and VOCABULARY (T5's SentencePiece file)
are set, only OUT/raw is trained, on that text.
"""

import argparse
import os

from adalink_jax.tools.sweep import pool, trainings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder."""
    parser.add_argument("out", metavar="OUT", help="the folder of both runs")
    parser.set_defaults(flags=[])
    parser.epilog = f"Other flags, e.g. --gin.SEED=1, go to every training.\n{trainings.AGAIN}"


def commands(arguments: argparse.Namespace) -> list[list[str]]:
    """Returns the trainings in order."""
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
    """Trains both bases."""
    for flags in commands(arguments):
        pool.call("train", *flags)
