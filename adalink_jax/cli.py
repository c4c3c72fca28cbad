"""The command `adalink`: the table of commands, and the exit codes of errors.

A command's module has ``add_arguments(parser)`` and ``run(arguments) -> int | None``. ``--help``
prints its docstring. `run` raises `UserError` or `OSError` for a user's mistake. Only the module
of the chosen command is imported.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TextIO

from adalink_jax import __version__, signals
from adalink_jax.errors import UserError, nearest, without_environment

# With these, libtpu compiles without looking for a TPU, and in several processes at once.
_WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # Only avoids a warning that there is none.
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with its own arguments.

    Attributes:
      help: one line of help.
      module: dotted name of a module with `add_arguments` and `run`.
      environment: environment variables that are set before the module is imported.
    """

    help: str
    module: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GinCommand:
    """A command whose arguments are gin files and bindings.

    Attributes:
      help: one line of help.
      entry: dotted name of the function that gin configures.
      run_file: the gin file that declares the function's macros.
      reads_run_file: whether that file is read before the user's files.
      switches: flags without a value, with their help.
      table: whether the function reads a table of the user's own.
    """

    help: str
    entry: str
    run_file: str
    reads_run_file: bool = True
    table: bool = False
    switches: Mapping[str, str] = dataclasses.field(default_factory=dict)


# fmt: off
GROUPS: Mapping[str, Mapping[str, Command | GinCommand]] = {
    "Train and score": {
        "train": GinCommand(
            "train a method on a task or mixture, and score it",
            "adalink_jax.runs.train", "runs/finetune.gin", reads_run_file=False, table=True,
        ),
        "eval": GinCommand(
            "score an adapter, or a base without one, on a task or mixture",
            "adalink_jax.runs.evaluate", "runs/eval.gin", table=True,
        ),
        "ood": Command(
            "how well an adapter tells its own task's inputs from others'", "adalink_jax.tools.ood"
        ),
        "representation": Command(
            "how many directions the encoder's outputs take, before and after",
            "adalink_jax.tools.representation",
        ),
        "infer": Command(
            "answer requests with many adapters of one base", "adalink_jax.tools.serving.command"
        ),
    },
    "Serve": {
        "serve": Command(
            "serve many adapters of one base over HTTP", "adalink_jax.tools.serving.serve"
        ),
    },
    "Look before you run": {
        "describe": GinCommand(
            "say what a configuration is: parameters, method, architecture",
            "adalink_jax.runs.describe", "runs/describe.gin",
            switches={"json": "print one JSON object instead of tables"},
        ),
        "cost": Command(
            "what methods cost: parameters, operations, memory, time",
            "adalink_jax.tools.cost.command",
        ),
        "plan": Command(
            "whether a training step fits on a TPU slice, compiled without one",
            "adalink_jax.tools.planning.command", _WITHOUT_TPU,
        ),
    },
    "Adapters and models": {
        "adapter": Command(
            "inspect, verify, compare, import, compress, join, pack or split adapters",
            "adalink_jax.adapters.command",
        ),
        "export": Command(
            "write an adaptation for other frameworks", "adalink_jax.adapters.export"
        ),
        "convert": Command(
            "write a base in another format, and check the copy", "adalink_jax.tools.convert",
            # It compares float32 logits on a CPU.
            {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")},
        ),
    },
    "Many runs": {
        "sweep": Command(
            "train many command lines side by side", "adalink_jax.tools.sweep.command"
        ),
        "glue": Command("every GLUE task × method × seed", "adalink_jax.tools.sweep.glue"),
        "rank-sweep": Command("one task at several ranks", "adalink_jax.tools.sweep.rank_sweep"),
        "few-shot": Command("a task from few examples", "adalink_jax.tools.sweep.few_shot"),
        "multitask": Command(
            "mixtures of tasks, with shared modules and one for each task",
            "adalink_jax.tools.sweep.multitask",
        ),
        "experiment": Command(
            "the paper's experiment, from learning rates to the report",
            "adalink_jax.tools.sweep.experiment",
        ),
        "pretrain-mini": Command(
            "make the bases of the mini world", "adalink_jax.tools.sweep.pretrain_mini"
        ),
        "search": Command(
            "settings with few parameters and a high score", "adalink_jax.tools.sweep.search"
        ),
        "pretrain-images": Command(
            "make the image world's encoder and bases", "adalink_jax.tools.image_bases.command"
        ),
        "english-data": Command(
            "make the data of the English bases", "adalink_jax.tools.english_base.data_command"
        ),
        "pretrain-english": Command(
            "make the English bases", "adalink_jax.tools.english_base.command"
        ),
        "report": Command(
            "finished runs side by side: tables, plots, a page",
            "adalink_jax.tools.report.command",
        ),
        "learning-rates": Command(
            "the best learning rate of a grid of runs", "adalink_jax.tools.report.rates"
        ),
    },
    "Set up": {
        "doctor": Command(
            "what this installation can run, and how to fix the rest",
            "adalink_jax.tools.doctor",
        ),
        "new": Command(
            "write a commented gin file for a method, a model and a task", "adalink_jax.tools.new"
        ),
        "completion": Command(
            "print a script that completes commands in bash or zsh",
            "adalink_jax.tools.completion",
        ),
        "quickstart": Command(
            "see what AdaLink does with an embedded base, in minutes",
            "adalink_jax.tools.sweep.quickstart",
            # Each training compiles for itself, so that their times can be compared.
            {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        ),
        "demo": Command(
            "adapt a base that knows English to a task of GLUE, and ask it",
            "adalink_jax.tools.sweep.demo",
        ),
    },
}
# fmt: on
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the command and its arguments; those of the process by default.

    Returns:
      The exit code: 0, 2 after a user's mistake (one line on the standard error), 128 + number
      after a signal, or what the command returns.
    """
    if argv is None:
        sys.argv[0] = "adalink"  # A run records this as its command.
        argv = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # Read when SeqIO imports TensorFlow.
    with signals.listening():
        code, line = _called(argv)
    if refusal := _refusal(sys.stdout):
        code, line = code or 2, f"error: the output cannot be written: {refusal}"
    if line:
        with contextlib.suppress(OSError):  # It may go to the same full disk.
            print(line, file=sys.stderr)
    _refusal(sys.stderr)
    return code


def _called(argv: Sequence[str]) -> tuple[int, str]:
    """Calls a command; returns its exit code, and a line for the standard error."""
    name, *rest = argv or ["no command"]
    try:
        if name == "--version":
            print(f"adalink_jax {__version__}")
            return 0, ""
        if not argv or name in ("-h", "--help"):
            print(help_text(), flush=True)
            return (0 if argv else 2), ""
        if name not in COMMANDS:
            guess = nearest(name, COMMANDS) or ";"
            raise UserError(f"no command '{name}'{guess} adalink --help lists them")
        _order_path()
        return _run(name, COMMANDS[name], rest), ""
    except BrokenPipeError:  # The reader of the output has closed it, as head does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 2, ""
    except KeyboardInterrupt as stopped:
        return getattr(stopped, "code", 130), str(stopped) or "stopped by SIGINT"
    except (UserError, OSError, *_data_errors()) as error:
        return 2, f"error: {error}"
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "adalink_jax", "tasks"):
            raise
        if importlib.util.find_spec("jax") is None:
            return 2, f"error: {without_environment(package)}"
        return 2, (
            f"error: {package}, which adalink {name} needs, is not installed; adalink doctor says "
            "what to install"
        )


class _Unparsed(Exception):
    """What argparse cannot parse, of the program or its command of this name."""

    def __init__(self, message: str, program: str):
        super().__init__(message)
        self.program = program


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Adds the default of a flag that has one and does not say it."""
        default, said = action.default, action.help or ""
        if isinstance(default, list | tuple):
            default = " ".join(map(str, default))
        silent = default in (None, False, "", argparse.SUPPRESS) or not action.option_strings
        return said if silent or "(default:" in said else f"{said} (default: {default})"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any):
        super().__init__(**{"formatter_class": _Help, **settings})

    def error(self, message: str) -> NoReturn:
        raise _Unparsed(message, self.prog)

    def unknown(self, argv: Sequence[str]) -> str:
        """Says which flag there is not, if one of the words is such."""
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        known = {name for one in parsers for a in one._actions for name in a.option_strings}
        for word in argv:
            name = word.partition("=")[0]
            if name.startswith("--gin") or not name.startswith("--") or name == "--":
                continue
            if not any(flag.startswith(name) for flag in known):
                return f"unknown flag {name}{nearest(name, known)}"
        return ""


def _refusal(stream: TextIO) -> str:
    """Flushes an output; returns why it cannot be written, as on a full disk, or "".

    Python would try again at the exit, and end with a traceback and code 120.
    """
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if not isinstance(error, BrokenPipeError):
            return error.strerror or str(error)
    return ""


def help_text() -> str:
    """Returns what ``adalink --help`` prints."""
    lines = ["usage: adalink COMMAND …", ""]
    width = 2 + max(len(name) for commands in GROUPS.values() for name in commands)
    for title, commands in GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<{width}}{command.help}" for name, command in commands.items()]
        lines.append("")
    lines.append("adalink COMMAND --help says what a command takes. To complete them in the shell:")
    lines.append("adalink completion bash > ~/.local/share/bash-completion/completions/adalink")
    return "\n".join(lines)


def _run(name: str, command: Command | GinCommand, argv: Sequence[str]) -> int:
    from adalink_jax.config import flags

    if isinstance(command, GinCommand):
        if {"-h", "--help"} & set(argv):
            print(_gin_help(name, command))
            return 0
        from adalink_jax.config import gin_files

        if command.table and sys.stderr.isatty():
            print("loading", file=sys.stderr, flush=True)  # The imports below take seconds.
        run_file = command.run_file if command.reads_run_file else None
        return gin_files.main(command.entry, argv, run_file=run_file, switches=command.switches)
    with flags.environment(command.environment):
        module = importlib.import_module(command.module)
        parser = _Parser(
            prog=f"adalink {name}",
            description=inspect.getdoc(module),
        )
        module.add_arguments(parser)
        try:
            arguments, more = parser.parse_known_args(argv)
            if more and "flags" not in arguments:
                parser.error(f"unrecognized arguments: {' '.join(more)}")
        except _Unparsed as error:
            what = parser.unknown(argv) or str(error)
            then = f"{'' if what.endswith('?') else ';'} {error.program} --help says what it takes"
            raise UserError(f"{what}{then}") from None
        except SystemExit as stopped:  # argparse has printed its help.
            return int(stopped.code or 0)
        if "flags" in arguments:
            flags.parse(more, {})  # Reports a mistake in them before the first run.
            arguments.flags = flags.joined(more)
        return module.run(arguments) or 0


def _gin_help(name: str, command: GinCommand) -> str:
    """Returns help on the flags, then on the macros that the command reads, with their files."""
    from adalink_jax.config import flags, macros

    usage = f"{command.help[0].upper()}{command.help[1:]}."
    first = command.run_file if command.reads_run_file else None
    folder = macros.gin_folder()
    text = flags.help_text(f"adalink {name}", usage, folder, first, command.switches, command.table)
    listed = macros.macros()
    kinds: list[tuple[str, ...]] = [(command.run_file, "")]
    if any(macro.name == "METHOD" for macro in listed if macro.file == command.run_file):
        kinds.append(tuple(m.file for m in listed if m.file.startswith("methods/")))
    meanings: dict[str, str] = {}
    values: dict[str, dict[str, list[str]]] = {}
    for macro in (macro for files in kinds for macro in listed if macro.file in files):
        meanings.setdefault(macro.name, macro.meaning)
        value = "required" if macro.required else macro.default
        files = values.setdefault(macro.name, {}).setdefault("" if "@" in value else value, [])
        files.append(macro.file or "also an environment variable")
    lines = [text, "", "Macros, each with its value in the gin files that have it:"]
    for name, meaning in meanings.items():
        where = "; ".join(f"{v} ({', '.join(files)})".strip() for v, files in values[name].items())
        fill = functools.partial(textwrap.fill, width=94, subsequent_indent=" " * 6)
        lines += [fill(f"{name}: {where}", initial_indent="  ")]
        lines += [fill(meaning, initial_indent=" " * 6)]
    return "\n".join(lines)


def _order_path() -> None:
    """Puts the user's folder at the end of the module path; gin files import task modules from it.

    The package and its `tasks` come first, so that no module of the user hides them.
    """
    package, user = str(pathlib.Path(__file__).resolve().parent.parent), os.getcwd()
    sys.path[:] = [folder for folder in sys.path if folder not in ("", user)]
    for folder in (package, user):
        if folder not in sys.path:
            sys.path.append(folder)


def _data_errors() -> tuple[type[Exception], ...]:
    """Returns the error of `tasks` if that is loaded: importing it here would load TensorFlow."""
    error = getattr(sys.modules.get("tasks"), "DataError", None)
    return (error,) if error else ()
