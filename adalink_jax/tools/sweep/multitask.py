r"""Trains mixtures of tasks, once with shared modules and once with one module per task.

adalink multitask runs/mixed experiments/glue_adalink.gin --mixtures glue_equal_2:2,glue_equal:8 \
    --ranks 4,64 --gin.INITIAL_CHECKPOINT_PATH=checkpoints/flan_t5_base

Give each mixture with its number of tasks; glue_equal_2:2 and glue_equal_4:4 are the first tasks
of glue_equal:8. The tasks in --tasks are also trained separately, and the report in OUT/report
shows what each of them gains or loses in the mixture.
"""

import argparse
from collections.abc import Iterator

from adalink_jax.errors import UserError
from adalink_jax.tools.sweep import trainings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the experiment and the values to try."""
    parser.add_argument("out", metavar="OUT", help="the folder of all runs")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a gin file that sets RANK")
    trainings.add_words(parser, "--mixtures", "glue_proportional:8", "NAME:NUMBER_OF_TASKS")
    trainings.add_words(parser, "--tasks", "", "tasks to train by themselves")
    about = "values of RANK"
    trainings.add_words(parser, "--ranks", "4", about, trainings.numbers(int, 1))
    trainings.add_common(parser, seeds="0")


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yields ranks × seeds × mixtures (shared and per task), and single tasks."""
    for rank in arguments.ranks:
        for seed in arguments.seeds:
            kinds = []
            for mixture in arguments.mixtures:
                name, colon, count = mixture.rpartition(":")
                if not colon or not count.isdigit():
                    raise UserError(f"--mixtures: '{mixture}' is not NAME:NUMBER_OF_TASKS")
                kinds += [(f"{name}/shared", name, 1), (f"{name}/per_task", name, count)]
            kinds += [(task, task, 1) for task in arguments.tasks]
            for folder, name, routes in kinds:
                yield (
                    trainings.training(
                        arguments.experiment,
                        MODEL_DIR=f"{arguments.out}/{folder}/rank{rank}/seed{seed}",
                        MIXTURE_OR_TASK_NAME=name,
                        ROUTES=routes,
                        RANK=rank,
                        SEED=seed,
                    )
                    + arguments.flags
                )


def run(arguments: argparse.Namespace) -> int:
    """Trains all, then reports."""
    title = "Several tasks at once"
    return trainings.finish(commands(arguments), arguments.jobs, arguments.out, title)
