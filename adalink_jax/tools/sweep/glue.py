"""Trains and scores every GLUE task with every method and seed; ends with a table and a report.

adalink glue runs/glue checkpoints/flan_t5_base --seeds 0,1,2 --gin.VOCABULARY=spiece.model

Runs are written to OUT/METHOD/TASK/seedN, the report (CSV, Markdown, HTML, plots) to OUT/report.
"""

import argparse
from collections.abc import Iterator

from adalink_jax.tools.sweep import trainings

TASKS = "glue_cola glue_sst2 glue_mrpc glue_qqp glue_stsb glue_mnli glue_qnli glue_rte"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the base and the values to try."""
    parser.add_argument("out", metavar="OUT", help="the folder of all runs")
    parser.add_argument("base", metavar="BASE", help="a checkpoint")
    trainings.add_words(parser, "--tasks", TASKS, "tasks or mixtures")
    trainings.add_words(parser, "--methods", trainings.METHODS, "files of gin/methods")
    trainings.add_common(parser, seeds="0")


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yields methods × tasks × seeds."""
    for method in arguments.methods:
        for task in arguments.tasks:
            for seed in arguments.seeds:
                yield (
                    trainings.training(
                        trainings.experiment("glue", method),
                        MODEL_DIR=f"{arguments.out}/{method}/{task}/seed{seed}",
                        MIXTURE_OR_TASK_NAME=task,
                        INITIAL_CHECKPOINT_PATH=arguments.base,
                        SEED=seed,
                    )
                    + arguments.flags
                )


def run(arguments: argparse.Namespace) -> int:
    """Trains all, then reports."""
    return trainings.finish(commands(arguments), arguments.jobs, arguments.out)
