r"""Trains a task on few examples: every number of examples with every seed.

adalink few-shot runs/few experiments/glue_adalink.gin checkpoints/flan_t5_base glue_rte \
    --shots 4,16,32,64 --gin.GLUE_DIR=glue --gin.VOCABULARY=spiece.model

The seed selects the examples; a larger set contains the smaller ones of the same seed. The frozen
base is scored first, with and without examples in the input: of the other flags it takes those of
Evaluation and of paths (VOCABULARY, GLUE_DIR and so on). Runs are written to OUT/in_contextN and
OUT/shotsN/seedN, the report to OUT/report.
"""

import argparse
import shlex
from collections.abc import Iterator

from adalink_jax.tools.sweep import trainings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the experiment and the values to try."""
    parser.add_argument("out", metavar="OUT", help="the folder of all runs")
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a gin file of a method")
    parser.add_argument("base", metavar="BASE", help="a checkpoint")
    parser.add_argument("task", metavar="TASK", help="a task or mixture")
    about = "numbers of examples to train on"
    trainings.add_words(parser, "--shots", "4 16 32 64", about, trainings.numbers(int, 1))
    about = "numbers of examples in front of an input"
    trainings.add_words(parser, "--in-context", "0 4", about, trainings.numbers(int, 0))
    about = "more flags for scoring the frozen base alone, as one argument"
    parser.add_argument("--eval-flags", type=shlex.split, default=[], metavar="FLAGS", help=about)
    trainings.add_common(parser, seeds="0 1 2 3 4")


def evaluations(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yields the folder and the flags of each evaluation of the frozen base."""
    for shots in arguments.in_context:
        folder, flags = trainings.frozen_base(
            f"{arguments.out}/in_context{shots}",
            arguments.base,
            arguments.task,
            {"inputs": 1024, "targets": 16},
            shots,
        )
        yield folder, [*flags, *trainings.for_scoring(arguments.flags), *arguments.eval_flags]


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yields numbers of examples × seeds."""
    for shots in arguments.shots:
        for seed in arguments.seeds:
            yield (
                trainings.training(
                    arguments.experiment,
                    MODEL_DIR=f"{arguments.out}/shots{shots}/seed{seed}",
                    INITIAL_CHECKPOINT_PATH=arguments.base,
                    MIXTURE_OR_TASK_NAME=arguments.task,
                    **{"Batches.few_shot": shots},
                    SEED=seed,
                )
                + arguments.flags
            )


def run(arguments: argparse.Namespace) -> int:
    """Scores the base, trains all, then reports."""
    for folder, flags in evaluations(arguments):
        trainings.score(folder, flags)
    title = f"{arguments.task} from few examples"
    return trainings.finish(commands(arguments), arguments.jobs, arguments.out, title)
