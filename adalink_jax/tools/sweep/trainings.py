"""What the sweeps share: arguments, the flags of one training, and the report at the end."""

import argparse
import math
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adalink_jax import files
from adalink_jax.config.flags import TABLE
from adalink_jax.config.macros import gin_folder
from adalink_jax.config.records import ENVIRONMENT
from adalink_jax.errors import UserError, nearest
from adalink_jax.tools.report.command import TITLE, report
from adalink_jax.tools.sweep import pool

METHODS = "adalink lora prompt_tuning full"
AGAIN = "Run it again after an interruption: finished runs are skipped, unfinished ones continue."


def words(text: str) -> list[str]:
    """Splits a flag's list at spaces or commas."""
    return re.findall(r"[^\s,]+", text)


def numbers(kind: type[int] | type[float], least: int = 0) -> Callable[[str], list[str]]:
    """Returns a parser of a list of whole numbers, or of numbers above 0, which stay as written."""

    def parse(text: str) -> list[str]:
        for word in words(text):
            try:
                fits = kind(word) >= least if kind is int else 0 < float(word) < math.inf
            except ValueError:
                fits = False
            if not fits:
                what = f"whole number from {least}" if kind is int else "number above 0"
                raise argparse.ArgumentTypeError(f"'{word}' is no {what} (commas divide a list)")
        return words(text)

    return parse


def add_words(
    parser: argparse.ArgumentParser,
    name: str,
    default: str,
    about: str,
    parse: Callable[[str], list[str]] = words,
) -> None:
    """Adds a flag that takes a list as one argument: ``--seeds "0 1 2"`` or ``--seeds 0,1,2``."""
    shown = f"{about} (default: {default})" if default else about
    parser.add_argument(name, type=parse, default=words(default), metavar="A,B…", help=shown)


def add_common(parser: argparse.ArgumentParser, seeds: str) -> None:
    """Adds seeds and jobs; flags that the parser does not know are passed to every training."""
    about = "seeds, one run of each training per seed"
    add_words(parser, "--seeds", seeds, about, numbers(int))
    about = "trainings in parallel, sharing the cores; 1 on accelerators (default: 1)"
    parser.add_argument("--jobs", type=int, default=1, help=about)
    parser.set_defaults(flags=[])
    parser.epilog = f"Other flags, e.g. --gin.TRAIN_STEPS=2000, go to every training.\n{AGAIN}"


def training(files: str | Iterable[str], **bindings: Any) -> list[str]:
    """Returns the flags of one training.

    Args:
      files: one gin file or several.
      bindings: macros or parameters by name.
    """
    files = [files] if isinstance(files, str) else files
    named = [f"--gin_file={file}" for file in files]
    return named + [f"--gin.{name}={value}" for name, value in bindings.items()]


def for_scoring(flags: Iterable[str]) -> list[str]:
    """Returns those flags of trainings that say what is read and how it is scored."""
    groups = r"(?:[\w.]+\.)?(?:Evaluation|Images|Table)\."
    read = rf"--gin\.(?:{groups}|(?:{'|'.join(ENVIRONMENT)})=)|--(?:{'|'.join(TABLE)})="
    return [flag for flag in flags if re.match(read, flag)]


def frozen_base(
    folder: str, base: str, task: str, lengths: Mapping[str, int] | None, in_context: int
) -> tuple[str, list[str]]:
    """Returns the folder and the flags of scoring a base without an adapter."""
    return folder, training(
        "runs/eval.gin",
        ADAPTER_PATH=None,
        EVAL_OUTPUT_DIR=folder,
        INITIAL_CHECKPOINT_PATH=base,
        MIXTURE_OR_TASK_NAME=task,
        TASK_FEATURE_LENGTHS=lengths and dict(lengths),
        **{"runs.evaluate.in_context": in_context},
    )


def score(folder: str, flags: Sequence[str]) -> None:
    """Scores a frozen base in a new process, unless the folder holds these scores.

    Raises:
      UserError: it holds the scores of another base or of other flags, or of nobody knows what.
    """
    if not pathlib.Path(folder, "results.json").exists():
        return pool.call("eval", *flags)
    try:
        record = files.read_json(pathlib.Path(folder, "run.json"))
        before = shlex.split(record["starts"][0]["command"])[2:]
    except (FileNotFoundError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} holds results.json, but no run.json that says of what; use another folder"
        ) from error
    own = f"--gin.EVAL_OUTPUT_DIR={folder}"
    others = [flag for flag in before if not flag.startswith("--gin.EVAL_OUTPUT_DIR=")]
    if others != [flag for flag in flags if flag != own]:
        raise UserError(
            f"{folder} holds scores made with other flags: {shlex.join(others)}; use another folder"
        )


def experiment(world: str, method: str) -> list[str]:
    """Returns the gin files that train a method on a world's tasks, e.g. "glue" or "mini".

    That is ``experiments/WORLD_METHOD.gin`` if there is one, below the working directory or in the
    package; else the world's own file and the method's.

    Raises:
      UserError: the method has no file either.
    """
    own, general = f"experiments/{world}_{method}.gin", f"methods/{method}.gin"
    if _is_there(own):
        return [own]
    if not _is_there(general):
        known = [path.stem for path in (gin_folder() / "methods").glob("*.gin")]
        raise UserError(f"no file {method}.gin in gin/methods{nearest(method, known)}")
    return [f"experiments/{world}.gin", general]


def _is_there(name: str) -> bool:
    return pathlib.Path(name).is_file() or (gin_folder() / name).is_file()


def finish(
    commands: Iterable[Sequence[str]], jobs: int, runs: str, title: str | None = None
) -> int:
    """Trains all, then writes the report to ``RUNS/report``; returns the exit code."""
    if pool.train_all(commands, jobs):
        return 2
    report([runs], f"{runs}/report", title or TITLE)
    return 0
