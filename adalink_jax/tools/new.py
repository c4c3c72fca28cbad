"""Writes a commented gin file for a method, a model and a task, ready to train with.

adalink new rte.gin --method adalink --model flan_t5_base --task glue_rte
adalink train --gin_file=rte.gin --gin.MODEL_DIR=runs/rte

An existing file is never overwritten.
"""

import argparse
import os
import pathlib
import textwrap
from collections.abc import Iterator

from adalink_jax.config.macros import Macro, gin_folder, macros
from adalink_jax.data.corpus import check_registered
from adalink_jax.errors import UserError, nearest

# Google's public checkpoints (T5X's docs/models.md); all paths are below this folder.
_PUBLIC = "gs://t5-data/pretrained_models/t5x"
_STEPS = {
    "t5_1_0_small": "t5_small/checkpoint_1000000",
    "t5_1_0_base": "t5_base/checkpoint_999900",
    "t5_1_0_large": "t5_large/checkpoint_1000700",
    "t5_1_0_3b": "t5_3B/checkpoint_1000000",
    "t5_1_0_11b": "t5_11B/checkpoint_1000000",
    "t5_1_1_small": "t5_1_1_small/checkpoint_1000000",
    "t5_1_1_base": "t5_1_1_base/checkpoint_1000000",
    "t5_1_1_large": "t5_1_1_large/checkpoint_1000000",
    "t5_1_1_xl": "t5_1_1_xl/checkpoint_1000000",
    "t5_1_1_xxl": "t5_1_1_xxl/checkpoint_1000000",
    "flan_t5_small": "flan_t5_small/checkpoint_1198000",
    "flan_t5_base": "flan_t5_base/checkpoint_1184000",
    "flan_t5_large": "flan_t5_large/checkpoint_1164000",
    "flan_t5_xl": "flan_t5_xl/checkpoint_1138000",
    "flan_t5_xxl": "flan_t5_xxl/checkpoint_1114000",
}
# Set by the included files or on the command line.
_ELSEWHERE = ("MODEL_DIR", "MODEL", "METHOD", "OPTIMIZER")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the file's name, and the method, model and task it is for."""
    parser.add_argument("file", metavar="RUN.gin", help="the file to write")
    parser.add_argument("--method", required=True, help="a file of gin/methods, e.g. adalink")
    parser.add_argument("--model", required=True, help="a file of gin/models, e.g. flan_t5_base")
    parser.add_argument("--task", required=True, help="a task or mixture, e.g. glue_rte")
    about = "the checkpoint; by default the model's public one, or the package's own"
    parser.add_argument("--base", help=about)


def run(arguments: argparse.Namespace) -> None:
    """Writes the file."""
    for kind, name in (("methods", arguments.method), ("models", arguments.model)):
        known = [path.stem for path in gin_folder().glob(f"{kind}/*.gin")]
        if name not in known:
            raise UserError(f"no file {name}.gin in gin/{kind}{nearest(name, known)}")
    check_registered(arguments.task)
    path = pathlib.Path(arguments.file).expanduser()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text(arguments))
    except FileExistsError:
        raise UserError(f"{path} exists and is not overwritten; give another name") from None
    print(f"wrote {path}; now: adalink train --gin_file={path} --gin.MODEL_DIR=runs/{path.stem}")


def text(arguments: argparse.Namespace) -> str:
    """Returns the gin file's text: its includes, then every macro with its meaning and a value."""
    method, model, task = arguments.method, arguments.model, arguments.task
    name = pathlib.Path(arguments.file).name
    head = f"""\
# {method} on {task}, from {model}. Written by `adalink new`; change what you like.
#
#   adalink train --gin_file={name} --gin.MODEL_DIR=RUN
#
# Every value can also be set on the command line, --gin.NAME=VALUE, which wins.
include 'models/{model}.gin'
include 'methods/{method}.gin'
include 'runs/finetune.gin'
"""
    return head + "".join(_settings(arguments))


def _settings(arguments: argparse.Namespace) -> Iterator[str]:
    world = "mini" if arguments.task.startswith("mini_") else "glue"
    files = [f"experiments/{world}.gin", f"experiments/{world}_{arguments.method}.gin"]
    known = macros()
    values = {macro.name: macro.default for file in files for macro in known if macro.file == file}
    values["MIXTURE_OR_TASK_NAME"] = repr(arguments.task)
    values["INITIAL_CHECKPOINT_PATH"] = repr(arguments.base or _base(arguments.model))
    for file in ("runs/finetune.gin", f"methods/{arguments.method}.gin"):
        for macro in (macro for macro in known if macro.file == file):
            if macro.name not in _ELSEWHERE:
                yield _setting(macro, values.get(macro.name, macro.default))
    if world != "mini":
        folder = "SUPER_GLUE_DIR" if arguments.task.startswith("super_glue") else "GLUE_DIR"
        for macro in (macro for macro in known if macro.name in (folder, "VOCABULARY")):
            if not macro.file:  # The environment can set it too, so it is only a comment.
                yield _setting(macro, repr(os.environ.get(macro.name, "…")), "# ")


def _setting(macro: Macro, value: str, mark: str = "") -> str:
    comment = textwrap.fill(macro.meaning, 98, initial_indent="# ", subsequent_indent="# ")
    return f"\n{comment}\n{mark}{macro.name} = {value}\n"


def _base(model: str) -> str | None:
    """Returns a model's public checkpoint; None for random weights."""
    if model == "mini":
        return "mini"  # The embedded base.
    return f"{_PUBLIC}/{_STEPS[model]}" if model in _STEPS else None
