"""Adapts the embedded base with AdaLink, LoRA, prompt tuning and full fine-tuning, and compares.

adalink quickstart

It takes a few minutes and downloads no data or weights. A second run shows the results at once.
"""

import argparse
import pathlib
from collections.abc import Iterator

import adalink_jax
from adalink_jax.tools.report.command import report
from adalink_jax.tools.sweep import pool, trainings

TASK = "mini_cola"
_FROZEN = """
1. The base, trained on instructions about a small world of generated sentences,
   meets a format that it has never seen: 'cola sentence: …' -> acceptable or unacceptable."""
_ADALINK = """
2. AdaLink of rank 4 learns the format; the base stays frozen."""
_OTHERS = """
3. LoRA, prompt tuning and full fine-tuning learn it too, each on a part of the cores."""
_TABLE = """
4. Side by side. The score is Matthews correlation: 0 is chance and always the same answer,
   100 perfect."""
_END = """
The adapter is in {out}/adalink/adapter, plots and tables in {out}/report/report.html.
Next, the eight tasks and two bases of the small world:  adalink experiment runs/mini --jobs 2"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder, the number of steps and the number of jobs."""
    about = "the folder of all runs (default: runs/quickstart)"
    parser.add_argument("out", metavar="OUT", nargs="?", default="runs/quickstart", help=about)
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of each training (default: 200)"
    )
    cores = len(pool.available_cores()) or 1
    about = "trainings in parallel (default: one per core, at most 3)"
    parser.add_argument("--jobs", type=int, default=min(3, cores), help=about)
    base = pathlib.Path(adalink_jax.__file__).parent / "bases/mini"
    parser.add_argument("--base", default=str(base), help=argparse.SUPPRESS)


def scoring(arguments: argparse.Namespace) -> list[str]:
    """Returns the flags that score the frozen base."""
    return trainings.training(
        "experiments/mini_eval.gin",
        MIXTURE_OR_TASK_NAME=TASK,
        ADAPTER_PATH=None,
        INITIAL_CHECKPOINT_PATH=arguments.base,
        EVAL_OUTPUT_DIR=f"{arguments.out}/base",
    )


def commands(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Yields the trainings: AdaLink's first, then the others."""
    for method in ("adalink", "full", "lora", "prompt_tuning"):
        yield trainings.training(
            trainings.experiment("mini", method),
            MODEL_DIR=f"{arguments.out}/{method}",
            MIXTURE_OR_TASK_NAME=TASK,
            INITIAL_CHECKPOINT_PATH=arguments.base,
            TRAIN_STEPS=arguments.steps,
            EVAL_PERIOD=arguments.steps,
        )


def run(arguments: argparse.Namespace) -> int:
    """Scores the base, trains AdaLink with its output shown, then the others; writes a report."""
    out = arguments.out
    print(_FROZEN, flush=True)
    if not pathlib.Path(out, "base/results.json").exists():
        pool.call("eval", *scoring(arguments))
    first, *others = commands(arguments)
    print(_ADALINK, flush=True)
    pool.call("train", *first)
    print(_OTHERS, flush=True)
    if pool.train_all(others, arguments.jobs):
        return 2
    print(_TABLE, flush=True)
    report([out], f"{out}/report", f"Quickstart: {TASK}")
    print(_END.format(out=out))
    return 0
