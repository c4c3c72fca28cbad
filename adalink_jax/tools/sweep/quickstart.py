"""Shows what AdaLink does in a few minutes: a small base before and after, on few examples.

adalink quickstart

The base meets a format that it has never seen, is given examples in front of the input, and is then
adapted on as few, with AdaLink and other methods. Then another base sees a picture, and says what
is on it before and after. On a terminal it ends with sentences of yours.
It downloads no data or weights. A second run shows the results at once.
"""

import argparse
import contextlib
import functools
import io
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from adalink_jax import files
from adalink_jax.notices import load_tasks
from adalink_jax.tools.report.command import report
from adalink_jax.tools.sweep import outcomes, picture, pool, trainings

TASK = "mini_cola"
_LENGTH = 48  # Tokens of an input, in training as at the end.


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      folder: its run's folder below the output's.
      label: what the table says.
      method: the method that is trained; "" for the frozen base.
      examples: the number of examples that are trained on, or that stand in front of each input.
    """

    folder: str
    label: str
    method: str
    examples: int


_BASE = Row("base", "the frozen base", "", 0)
_CONTEXT = (
    Row("in_context_4", "… examples in front of each input", "", 4),
    Row("in_context_16", "… examples in front of each input", "", 16),
)
_ADALINK = (
    Row("adalink_4", "AdaLink, rank 4", "adalink", 4),
    Row("adalink_16", "AdaLink, rank 4", "adalink", 16),
)
_OTHERS = (
    Row("lora_16", "LoRA, rank 4", "lora", 16),
    Row("full_16", "full fine-tuning", "full", 16),
)
_BEFORE = """
1. A small T5 knows a small world of English sentences, but not this format:

     input      {inputs}
     right is   {target}
     it says    {prediction}

   Its score on {count} such sentences is {score:.1f}: Matthews correlation, where chance is 0 and
   perfect is 100.
"""
_AFTER = """
   The same input, with AdaLink on 16 examples:

     input      {inputs}
     right is   {target}
     it says    {prediction}

   Of the {wrong} sentences that the base got wrong, {mended} are right now, and {right} of {count}
   in all.
"""
_COUNTED = """
Each training took {steps} steps, one after the other; its seconds include compiling. One draw of
so few examples says little: docs/tutorials/first_hour.md has more of them."""
_END = """
The adapter is in {out}/adalink_16/adapter, plots and tables in {out}/report/report.html.
Next, the eight tasks and two bases of the small world, in about two hours:
adalink experiment runs/mini --jobs 2"""
_YOURS = """
6. A sentence of your own, of words that this base knows, such as
   {words}
   Enter alone ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the folder and the number of steps."""
    about = "the folder of all runs (default: runs/quickstart)"
    parser.add_argument("out", metavar="OUT", nargs="?", default="runs/quickstart", help=about)
    parser.add_argument(
        "--steps", type=int, default=200, help="steps of each training (default: 200)"
    )


def flags(arguments: argparse.Namespace, row: Row) -> list[str]:
    """Returns the flags that train a row's method, or score the frozen base."""
    folder, lengths = f"{arguments.out}/{row.folder}", {"inputs": _LENGTH, "targets": 16}
    if not row.method:
        lengths["inputs"] *= 1 + row.examples
        return trainings.frozen_base(folder, "mini", TASK, lengths, row.examples)[1]
    return trainings.training(
        trainings.experiment("mini", row.method),
        MODEL_DIR=folder,
        MIXTURE_OR_TASK_NAME=TASK,
        INITIAL_CHECKPOINT_PATH="mini",
        TRAIN_STEPS=arguments.steps,
        EVAL_PERIOD=arguments.steps,
        **{"Batches.few_shot": row.examples},
    )


def run(arguments: argparse.Namespace) -> int:
    """Scores the base, trains the methods, shows the table; then answers sentences."""
    out = pathlib.Path(arguments.out)
    print("Loading …", flush=True)
    _make(arguments, _BASE)
    before = outcomes.predictions(out / _BASE.folder, TASK)
    shown = next(i for i, one in enumerate(before) if not outcomes.is_right(one))
    print(
        _BEFORE.format(
            **before[shown], count=len(before), score=outcomes.score(out / _BASE.folder, TASK)
        )
    )
    print("2. Examples in front of the input, as one asks a large model:\n", flush=True)
    for row in _CONTEXT:
        _make(arguments, row)
    print("\n3. AdaLink, trained on as few examples. The base stays frozen:\n", flush=True)
    for row in _ADALINK:
        _make(arguments, row)
    after = outcomes.predictions(out / _ADALINK[-1].folder, TASK)
    counts = outcomes.compared(before, after)
    print(_AFTER.format(**after[shown], **counts))
    print("4. Other methods, on the same 16 examples:\n", flush=True)
    for row in _OTHERS:
        _make(arguments, row)
    with contextlib.redirect_stdout(io.StringIO()):  # The page has its tables.
        rows = (_BASE, *_CONTEXT, *_ADALINK, *_OTHERS)
        report([f"{out}/{row.folder}" for row in rows], f"{out}/report", f"Quickstart: {TASK}")
    print(f"\n{table(out)}\n{_COUNTED.format(steps=arguments.steps)}", flush=True)
    picture.show(out, min(arguments.steps, picture.STEPS))
    print(_END.format(out=out))
    if sys.stdin.isatty() and sys.stdout.isatty():
        words = {word for one in before for word in one["inputs"].split() if word.isalpha()}
        _converse(out / _ADALINK[-1].folder, sorted(words - {"cola"}))
    return 0


def _make(arguments: argparse.Namespace, row: Row) -> None:
    """Runs a row's training or scoring, and prints its score.

    Raises:
      SystemExit: it failed; what it said is printed.
    """
    folder = pathlib.Path(arguments.out, row.folder)
    name, entry = ("train", "train") if row.method else ("eval", "evaluate")
    if row.method or not (folder / "results.json").exists():
        pool.quietly(name, f"adalink_jax.runs.{entry}", flags(arguments, row))
    if row.examples:
        spent = "" if (seconds := _seconds(folder)) is None else f", {seconds:.0f} s"
        label = row.label.removeprefix("… examples ")
        line = f"   {row.examples:>2} examples, {label}:".replace("examples, in", "examples in")
        print(f"{line} {outcomes.score(folder, TASK):.1f}{spent}", flush=True)


def table(out: pathlib.Path) -> str:
    """Returns the table of all rows, as lines of text."""
    lines = [f"   {'':<36}{'examples':>9}{'trained':>11}{'seconds':>9}{'score':>8}"]
    for row in (_BASE, *_CONTEXT, *_ADALINK, *_OTHERS):
        folder = out / row.folder
        seconds = _seconds(folder)
        spent = "" if seconds is None else f"{seconds:.0f}"
        count = f"{outcomes.trained(folder):,}" if row.method else ""
        score = f"{outcomes.score(folder, TASK):.1f}"
        lines.append(f"   {row.label:<36}{row.examples:>9}{count:>11}{spent:>9}{score:>8}")
    return "\n".join(lines)


def _seconds(folder: pathlib.Path) -> float | None:
    """Returns the seconds of a training, all its starts together; None for the base."""
    spent = [start.get("seconds") for start in files.read_json(folder / "run.json")["starts"]]
    known = [seconds for seconds in spent if seconds is not None]
    return sum(known) if known else None


def _converse(run: pathlib.Path, words: Sequence[str]) -> None:
    """Asks for sentences and prints what the base and the adapter say, until an empty one.

    Args:
      run: the folder of the adapter's run.
      words: those to choose from.
    """
    load_tasks()
    import tasks

    answer = answers(run, "mini", TASK, tasks.MINI_VOCABULARY, _LENGTH)
    print(_YOURS.format(words=textwrap.fill(" ".join(words), 94, subsequent_indent="   ")))
    while True:
        try:
            typed = input("\n   > ")
        except EOFError:
            return
        said = re.findall(r"[a-z]+|[^\sa-z]", typed.lower())
        if not said:
            return
        sentence = " ".join(said if said[-1] in ".?" else [*said, "."])
        base, adapted = answer(f"cola sentence: {sentence}")
        print(f"     the base says {base}; with AdaLink {adapted}")
        vocabulary = tasks.MINI_VOCABULARY
        unknown = [word for word in said if vocabulary.encode(word) == [vocabulary.unk_id]]
        if unknown:
            print(f"     (it does not know: {', '.join(dict.fromkeys(unknown))})")


def answers(
    run: pathlib.Path, base: str, task: str, vocabulary: Any, length: int
) -> Callable[[str], tuple[str, str]]:
    """Returns a function from an input to the labels that base and adapter give it.

    Args:
      run: the folder of the adapter's run.
      base: the base's path.
      task: the task that has the labels.
      vocabulary: the base's.
      length: tokens of an input at most.
    """
    import jax
    import numpy as np

    load_tasks()
    import tasks
    from adalink_jax.adapters.load import load_adaptation
    from adalink_jax.models import decoding
    from adalink_jax.models.t5 import Transformer

    adaptation = load_adaptation(str(run), base)
    labels = tasks.LABELS[task]
    options = decoding.encoded_options(labels, vocabulary)
    programs = [
        (jax.jit(functools.partial(decoding.score_options, model)), params)
        for model, params in (
            (Transformer(adaptation.config), adaptation.base),
            (Transformer(adaptation.config, adaptation.method), adaptation.params),
        )
    ]

    def answer(text: str) -> tuple[str, str]:
        tokens = [*vocabulary.encode(text)[: length - 1], 1]
        inputs = np.array([tokens + [0] * (length - len(tokens))], np.int32)
        base, adapted = (
            labels[int(score(params, inputs, options)[0].argmax())] for score, params in programs
        )
        return base, adapted

    answer("few books quite lovely .")  # Compiles, so that no sentence waits for it.
    return answer
