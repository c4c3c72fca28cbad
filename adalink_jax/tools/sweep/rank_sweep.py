r"""Trains and scores one task at several ranks; ends with a table and a report of score by rank.

adalink rank-sweep runs/ranks experiments/glue_adalink.gin --ranks 1,4,16,64 \
    --gin.MIXTURE_OR_TASK_NAME=glue_rte --gin.INITIAL_CHECKPOINT_PATH=checkpoints/flan_t5_base

Runs are written to OUT/[BASE/]rankR/seedN, the report to OUT/report.
"""

import argparse
import os.path
from collections.abc import Iterator

from adalink_jax.errors import UserError
from adalink_jax.tools.sweep import trainings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the experiment and the values to try."""
    parser.add_argument("out", metavar="OUT", help="the folder of all runs")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a gin file that sets RANK")
    about = "values of RANK"
    trainings.add_words(parser, "--ranks", "1 4 16 64 256", about, trainings.numbers(int, 1))
    trainings.add_words(parser, "--bases", "", "checkpoints (default: the one in the flags)")
    trainings.add_common(parser, seeds="0")


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yields bases × ranks × seeds."""
    names = [os.path.basename(base.rstrip("/")) for base in arguments.bases]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--bases: two bases are called {twice[0]}, as the folder of their runs is")
    for base in arguments.bases or [None]:
        below = f"{os.path.basename(base.rstrip('/'))}/" if base else ""
        for rank in arguments.ranks:
            for seed in arguments.seeds:
                yield (
                    trainings.training(
                        arguments.experiment,
                        RANK=rank,
                        SEED=seed,
                        MODEL_DIR=f"{arguments.out}/{below}rank{rank}/seed{seed}",
                        **({"INITIAL_CHECKPOINT_PATH": base} if base else {}),
                    )
                    + arguments.flags
                )


def run(arguments: argparse.Namespace) -> int:
    """Trains all, then reports."""
    return trainings.finish(commands(arguments), arguments.jobs, arguments.out, "Score by rank")
