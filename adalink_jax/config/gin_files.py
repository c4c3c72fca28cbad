"""Reads gin files and flags, and calls one function with the result.

gin's parser reads the statements (`reader`) and gin's injection builds the objects (here); no other
module imports gin. In between, this package does what gin 0.5 does not: it records where each value
was set, checks values against the annotations of what they are bound to, refuses names that nothing
reads or defines and required values that are not set, searches files quietly, and writes one
resolved text to keep beside the results. gin is given the same text, so a run and its
``config.gin`` cannot differ:

    files, flags → settings with origins → Configuration → arguments → the call

Two rules differ from plain gin, so that the order of files does not matter: ``X = %gin.REQUIRED``
declares X and never overrides a value, and a file that is included twice is read once.
"""

import importlib
import importlib.util  # gin 0.5's file reader uses it without importing it.
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin

from adalink_jax.config import flags
from adalink_jax.config.macros import gin_folder
from adalink_jax.config.reader import Reader, full_name  # Says which gin it is not, if it is not.
from adalink_jax.config.records import REQUIRED, Configuration, Setting, Target
from adalink_jax.config.resolving import resolve
from adalink_jax.errors import UserError, nearest


def main(
    entry: str | Callable,
    argv: Sequence[str] | None = None,
    *,
    run_file: str | None = None,
    switches: Mapping[str, str] | None = None,
) -> int:
    """Runs a command line: reads gin files and flags, then calls `entry`.

    Args:
      entry: the function to call, with the arguments that gin binds to it, the keyword
        ``configuration`` (a `Configuration`) and one boolean keyword per switch. A dotted name is
        only imported after the flags were parsed.
      argv: the arguments; those of the process by default.
      run_file: a gin file that is read before the user's files.
      switches: flags without a value that `entry` takes, by name, with their help.

    Returns:
      The exit code: 0, or 2 after a user's mistake, which is printed as one line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    switches = dict(switches or {})
    configuration = None
    _show_notices()
    try:
        parsed = flags.parse(argv, switches)
        files = ([run_file] if run_file else []) + parsed.gin_files
        if not files:
            raise UserError("no gin file: give --gin_file=FILE; --help says which are shipped")
        configuration = read(
            entry,
            files,
            parsed.bindings,
            search_paths=parsed.search_paths,
            supplied=("configuration", *switches),
            command=argv,
        )
        arguments = {name: name in parsed.switches for name in switches}
        with flags.environment({**configuration.environment, **parsed.environment}):
            arguments |= build(configuration)
            _entry(entry).object(**arguments, configuration=configuration)
    except (UserError, *_data_errors()) as error:
        message = str(error).partition("\n")[0]  # gin adds lines to errors of references.
        print(
            f"error: {configuration.explain(message) if configuration else message}",
            file=sys.stderr,
        )
        return 2
    return 0


def read(
    entry: str | Callable,
    files: Sequence[str],
    bindings: Sequence[str] = (),
    *,
    search_paths: Sequence[str] = (),
    supplied: Sequence[str] = (),
    command: Sequence[str] = (),
) -> Configuration:
    """Reads gin files, then bindings, and resolves them for `entry`.

    Args:
      entry: a function or its dotted name.
      files: gin files, searched in the working directory, then below each of `search_paths`, then
        below the shipped folder. Files of ``include`` are searched in the same way.
      bindings: ``NAME=VALUE``; they override all files. A value that is not a gin value but looks
        like a path or a name is a string.
      search_paths: more folders to search for gin files.
      supplied: parameters of `entry` that the caller passes itself.
      command: the command line, which is kept in the result.

    Raises:
      UserError: a file that is missing or includes itself; a statement that is not gin; a name
        that nothing defines or reads; a value set twice in one file, or one that does not fit; a
        required value not set.
    """
    target = _entry(entry)
    folders = [pathlib.Path(), *map(pathlib.Path, search_paths), gin_folder()]
    reader = Reader(target, folders)
    for name in files:
        reader.read_file(name)
    for binding in bindings:
        reader.read_flag(binding)
    settings = dict(reader.settings)
    for key, origin in reader.required.items():
        settings.setdefault(key, Setting(REQUIRED, origin, shipped=True))
    return resolve(
        target, settings, reader.targets, reader.modules, supplied=supplied, command=command
    )


def build(configuration: Configuration) -> dict[str, Any]:
    """Returns the arguments that gin builds for the entry, with objects made and macros applied.

    The text remains gin's current configuration, for code with `gin.configurable` functions.

    Raises:
      UserError: a configured class or function refuses what it is given.
    """
    gin.clear_config()
    gin.parse_config(configuration.text)
    gin.finalize()
    entry = _entry(configuration.entry).object
    try:
        gin.get_configurable(entry)
    except ValueError:
        return {}  # Nothing is bound to it, so gin does not know it.
    try:
        return gin.get_bindings(entry)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(_refusal(error, configuration)) from error


def shipped(model: str, method: str, bindings: Sequence[str] = ()) -> tuple[Any, Any]:
    """Returns the architecture and the method of two shipped gin files.

    Args:
      model: a file of ``gin/models`` without its suffix, e.g. "t5_1_1_xl".
      method: a file of ``gin/methods`` without its suffix, e.g. "lora".
      bindings: ``NAME=VALUE``, e.g. "RANK=16"; they override the files.

    Raises:
      UserError: there is no such file, or a binding is wrong; see `read`.
    """
    files = {"models": model, "methods": method}
    for kind, name in files.items():
        names = sorted(path.stem for path in (gin_folder() / kind).glob("*.gin"))
        if name not in names:
            raise UserError(f"no file {name}.gin in gin/{kind}{nearest(name, names)}")
    paths = ["runs/describe.gin", *(f"{kind}/{name}.gin" for kind, name in files.items())]
    supplied = ("configuration", "json")
    arguments = build(read("adalink_jax.runs.describe", paths, bindings, supplied=supplied))
    return arguments["model"], arguments["method"]


def _refusal(error: Exception, configuration: Configuration) -> str:
    """Returns the error message of a configured object, with the object's name.

    gin raises a copy of the error, and adds lines below the message.
    """
    message, *below = str(error).splitlines() or [type(error).__name__]
    called = re.search(r"In call to configurable '(\w+)'", "\n".join(below))
    if isinstance(error, UserError) or not called:
        return message
    name = f"{called.group(1)}.{message.split()[0]}"
    if any(f".{key}".endswith(f".{name}") for key in configuration.origins):
        return f"{called.group(1)}.{message}"
    return f"{called.group(1)}: {message}"


def _entry(entry: str | Callable) -> Target:
    if isinstance(entry, str):
        module, _, path = entry.rpartition(".")
        function = getattr(importlib.import_module(module), path)
    else:
        module, path, function = entry.__module__, entry.__qualname__, entry
    return Target(full_name(function) or f"{module}.{path}", module, path, function)


def _data_errors() -> tuple[type[Exception], ...]:
    """Returns the error of `tasks` if that is loaded: importing it here would load TensorFlow."""
    error = getattr(sys.modules.get("tasks"), "DataError", None)
    return (error,) if error else ()


def _show_notices() -> None:
    """Prints the package's notices, such as that a task is being tokenized."""
    logger = logging.getLogger("adalink_jax")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # TensorFlow's imports give the root logger a handler too.
