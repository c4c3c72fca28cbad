"""Adapts a base that knows English to a task of GLUE, and answers sentences of yours.

adalink demo glue_sst2 --gin.GLUE_DIR=FOLDER

It scores the frozen base on the dev set, trains AdaLink beside it, scores that, and then takes what
you type. Other flags go to the training. A second run shows the results at once.
"""

import argparse
import pathlib
import sys
import textwrap

from adalink_jax.errors import UserError, nearest
from adalink_jax.notices import load_tasks
from adalink_jax.tools.sweep import outcomes, pool, trainings
from adalink_jax.tools.sweep.quickstart import answers

_LENGTH = 96  # Tokens of an input.
_BEFORE = """
1. The base as it is scores {score} on the dev set. For example:

{inputs}

     right is   {target}
     it says    {prediction}
"""
_AFTER = """
   It scores {score:.1f} now. Of {wrong} inputs that the base got wrong, {mended} are right, and
   {right} of {count} in all. The adapter has {trained:,} parameters: {out}/adalink/adapter
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the task, the folder, the rank and the number of steps."""
    parser.add_argument("task", metavar="TASK", help="a task of GLUE, such as glue_sst2")
    about = "the folder of both runs (default: runs/demo_TASK)"
    parser.add_argument("out", metavar="OUT", nargs="?", help=about)
    about = "a name, or a folder with its vocabulary (default: english)"
    parser.add_argument("--base", default="english", help=about)
    parser.add_argument("--rank", type=int, default=64, help="AdaLink's rank (default: 64)")
    parser.add_argument("--steps", type=int, default=200, help="of the training (default: 200)")
    parser.set_defaults(flags=[])


def run(arguments: argparse.Namespace) -> int:
    """Scores the base, trains and scores AdaLink; then answers what is typed.

    Raises:
      UserError: the task is none of GLUE's.
    """
    load_tasks()
    import tasks

    task = arguments.task
    if task not in tasks.GLUE_TASKS:
        raise UserError(
            f"TASK={task}: no task of GLUE{nearest(task, tasks.GLUE_TASKS) or ';'} there are "
            f"{', '.join(tasks.GLUE_TASKS)}"
        )
    out = pathlib.Path(arguments.out or f"runs/demo_{task}")
    base = {
        "INITIAL_CHECKPOINT_PATH": arguments.base,
        "MIXTURE_OR_TASK_NAME": task,
        "VOCABULARY": arguments.base,
    }
    lengths = {"inputs": _LENGTH, "targets": 8}
    folder, scoring = trainings.frozen_base(str(out / "base"), arguments.base, task, lengths, 0)
    named = trainings.training((), VOCABULARY=arguments.base)
    trainings.score(folder, [*scoring, *named, *arguments.flags])
    before = outcomes.predictions(out / "base", task)
    shown = next((one for one in before if not outcomes.is_right(one)), before[0])
    score = f"{outcomes.score(out / 'base', task):.1f}"
    print(_BEFORE.format(**{**shown, "inputs": _wrapped(shown["inputs"])}, score=score))
    print(f"2. AdaLink of rank {arguments.rank}, {arguments.steps} steps. The base stays frozen:\n")
    flags = trainings.training(
        trainings.experiment("english", "adalink"),
        MODEL_DIR=str(out / "adalink"),
        TASK_FEATURE_LENGTHS=lengths,
        TRAIN_STEPS=arguments.steps,
        EVAL_PERIOD=arguments.steps,
        RANK=arguments.rank,
        **base,
    )
    pool.call("train", *flags, *arguments.flags)
    after = outcomes.predictions(out / "adalink", task)
    counts = outcomes.compared(before, after) | {"trained": outcomes.trained(out / "adalink")}
    print(_AFTER.format(**counts, score=outcomes.score(out / "adalink", task), out=out))
    if sys.stdin.isatty() and sys.stdout.isatty():
        _converse(out / "adalink", arguments.base, task)
    return 0


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 94, initial_indent="     ", subsequent_indent="     ")


def _converse(run: pathlib.Path, base: str, task: str) -> None:
    """Asks for the fields of an input and prints what base and adapter say, until an empty one."""
    import tasks
    from adalink_jax.adapters.texts import opened_vocabulary

    fields = tasks.GLUE_FIELDS[task]
    answer = answers(run, base, task, opened_vocabulary(base), _LENGTH)
    print(f"3. A {' and a '.join(fields)} of your own. Enter alone ends.")
    while True:
        text = task.removeprefix("glue_")
        for field in fields:
            try:
                typed = " ".join(input(f"\n   {field}> ").split())
            except EOFError:
                return
            if not typed:
                return
            text += f" {field}: {typed}"
        said, adapted = answer(text)
        print(f"     the base says {said}; with AdaLink {adapted}")
