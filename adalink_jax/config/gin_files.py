"""Reads gin files and flags, and calls one function with the result.

This is the only module that imports gin. gin's parser reads the statements and gin's injection
builds the objects. In between, this module does what gin 0.5 does not: it records where each
value was set, refuses names that nothing reads or defines and required values that are not set,
searches files quietly, and writes one resolved text to keep beside the results. gin is given the
same text, so a run and its ``config.gin`` cannot differ:

    files, flags → settings with origins → Configuration → arguments → the call

Two rules differ from plain gin, so that the order of files does not matter: ``X = %gin.REQUIRED``
declares X and never overrides a value, and a file that is included twice is read once.
"""

import contextlib
import dataclasses
import importlib
import importlib.util  # gin 0.5's file reader uses it without importing it.
import inspect
import logging
import os
import pathlib
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config_parser

from adalink_jax.config import flags
from adalink_jax.config.macros import gin_folder
from adalink_jax.config.records import (
    COMMAND_LINE,
    REQUIRED,
    Configuration,
    Key,
    Macro,
    Reference,
    Setting,
    Target,
    display,
    map_leaves,
    resolve,
)
from adalink_jax.errors import UserError, nearest

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"
_NAME = re.compile(r"[A-Za-z_][\w./]*")
# A flag's value that is not a gin value but looks like this (a path or a name) is a string.
_BARE_STRING = re.compile(r"[\w./~][\w./~:+-]*")


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
        that nothing defines or reads; a value set twice in one file; a required value not set.
    """
    target = _entry(entry)
    reader = _Reader(target, search_paths)
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
    return Target(_home(function) or f"{module}.{path}", module, path, function)


def _home(target: Any) -> str | None:
    """Returns the full name of a function or class in its own module, if that has it."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "?")
    importable = getattr(sys.modules.get(module or ""), name, None) is target
    return f"{module}.{name}" if importable else None


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


class _Delegate(config_parser.ParserDelegate):
    """Makes gin's parser build plain records. A reference's target is a name until resolved."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        scope, _, name = scoped_configurable_name.rpartition("/")
        return Reference(scope, name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)


def _statements(source: Any, where: str) -> Iterator[Any]:
    """Yields the gin statements of a file or string; a syntax error becomes a one-line error."""
    try:
        yield from config_parser.ConfigParser(source, _Delegate())
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        line, message = getattr(error, "lineno", None), getattr(error, "msg", str(error))
        if isinstance(error, tokenize.TokenError):
            line, message = error.args[1][0], "a bracket or a string is left open"
        elif isinstance(error, UnicodeDecodeError):
            message = "the file is not UTF-8 text"
        raise UserError(f"{where}:{line}: {message}" if line else f"{where}: {message}") from None


@contextlib.contextmanager
def _opened(path: pathlib.Path, asked_at: str) -> Iterator[Any]:
    try:
        file = path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{asked_at}: cannot read '{path}': {error.strerror}") from None
    with file:
        yield file


class _Reader:
    """Reads gin files and flags into settings, each with its origin.

    Attributes:
      settings: all settings; the last of several for a key is kept.
      required: the keys declared with ``%gin.REQUIRED``, with the origin of the declaration.
      targets: all functions and classes in the settings, by full name.
      modules: the modules that the files import.
    """

    def __init__(self, entry: Target, search_paths: Sequence[str]):
        self.settings: dict[Key, Setting] = {}
        self.required: dict[Key, str] = {}
        # Groups of settings are always known by name, even if no file imports them.
        groups = {group.name: group for group in entry.groups.values()}
        self.targets: dict[str, Target] = {entry.name: entry, **groups}
        self.modules: list[str] = []
        self._names = {entry.module.rpartition(".")[2]: sys.modules[entry.module]}
        self._folders = [pathlib.Path(), *map(pathlib.Path, search_paths), gin_folder()]
        self._open: list[pathlib.Path] = []
        self._done: set[pathlib.Path] = set()

    def read_file(self, name: str, asked_at: str = COMMAND_LINE) -> None:
        """Reads a file and the files it includes; origins show `name` as it was given."""
        path = self._find(name, asked_at)
        if path in self._open:
            raise UserError(f"{asked_at}: '{name}' includes itself")
        if path in self._done:
            return
        self._open.append(path)
        shipped = gin_folder() in path.parents
        # None: without dynamic registration, a file may use all known names.
        imports: dict[str, Any] | None = None
        seen: dict[Key, str] = {}
        with _opened(path, asked_at) as file:
            for statement in _statements(file, name):
                where = f"{name}:{statement.location.line_num}"
                if isinstance(statement, config_parser.IncludeStatement):
                    self.read_file(statement.filename, where)
                elif isinstance(statement, config_parser.ImportStatement):
                    imports = self._import(statement, imports, where)
                elif isinstance(statement, config_parser.BindingStatement):
                    key = self._set(statement, imports, where, shipped)
                    if key and seen.setdefault(key, where) != where:
                        name = display(key, self.targets)
                        raise UserError(f"{where}: {name} is already set at {seen[key]}")
        self._open.pop()
        self._done.add(path)

    def read_flag(self, binding: str) -> None:
        """Reads ``NAME=VALUE`` from the flag ``--gin.NAME=VALUE``."""
        name, _, text = (part.strip() for part in binding.partition("="))
        if not _NAME.fullmatch(name):
            raise UserError(f"--gin.{binding}: expected --gin.NAME=VALUE")
        try:
            statements = list(_statements(f"{name} = {text}", COMMAND_LINE))
        except UserError:
            if not _BARE_STRING.fullmatch(text):
                quoted = "\"'…'\""
                raise UserError(
                    f"--gin.{binding}: '{text}' is no gin value; quote a string as {quoted}"
                ) from None
            # The shell does not expand the tilde of --gin.MODEL_DIR=~/run.
            text = repr(os.path.expanduser(text))
            statements = list(_statements(f"{name} = {text}", COMMAND_LINE))
        self._set(statements[0], None, COMMAND_LINE, shipped=False)

    def _find(self, name: str, asked_at: str) -> pathlib.Path:
        for folder in self._folders:
            path = folder / pathlib.Path(name).expanduser()
            if path.is_file():
                return path.resolve()
        shipped = [p.relative_to(gin_folder()).as_posix() for p in gin_folder().rglob("*.gin")]
        looked = ", ".join(str(folder) for folder in self._folders)
        guess = nearest(name, shipped)
        raise UserError(f"{asked_at}: no gin file '{name}' below {looked}{guess}")

    def _import(
        self, statement: Any, imports: dict[str, Any] | None, where: str
    ) -> dict[str, Any] | None:
        """Imports a module; returns the file's names with the new one."""
        if statement.module == _DYNAMIC_REGISTRATION:
            return imports or {}
        try:
            module = importlib.import_module(statement.module)
        except ImportError as error:
            raise UserError(f"{where}: cannot import '{statement.module}': {error}") from error
        name = statement.bound_name()
        if not statement.is_from and not statement.alias:
            module = sys.modules[name]
        self._names.setdefault(name, module)
        self.modules.append(statement.module)
        return None if imports is None else imports | {name: module}

    def _set(
        self, statement: Any, imports: dict[str, Any] | None, where: str, shipped: bool
    ) -> Key | None:
        """Records a binding; returns its key, or None for a declaration of a required value."""
        scope, selector, parameter, value, _ = statement
        if parameter:
            target = self._target(selector, imports, where)
            self._check_parameter(target, parameter, where)
            key = Key(scope, target.name, parameter)
        else:
            key = Key("", "", f"{scope}/{selector}" if scope else selector)
        if value == REQUIRED:
            self.required.setdefault(key, where)
            return None

        def find(leaf: Any) -> Any:
            if not isinstance(leaf, Reference):
                return leaf
            selector = str(leaf.target)  # As the parser made it: not looked up yet.
            return Reference(leaf.scope, self._target(selector, imports, where), leaf.call)

        self.settings[key] = Setting(map_leaves(find, value), where, shipped)
        return key

    def _target(self, selector: str, imports: dict[str, Any] | None, where: str) -> Target:
        """Returns the function or class that a selector names.

        In a file with dynamic registration, a selector uses the file's own imports, as in gin. On
        the command line and in other files, it uses the imports of all files, or it is the end of
        a known name.
        """
        first, *rest = selector.split(".")
        names = self._names if imports is None else imports
        if first not in names:
            ends = [t for t in self.targets.values() if f".{t.name}".endswith(f".{selector}")]
            if imports is None and len(ends) == 1:
                return ends[0]
            known = [*names, *(t.path for t in self.targets.values())] if rest else names
            raise UserError(
                f"{where}: '{selector}': nothing named '{first}' is imported{nearest(first, known)}"
            )
        target, module, path = names[first], names[first].__name__, []
        for part in rest:
            if not hasattr(target, part):
                public = [name for name in dir(target) if not name.startswith("_")]
                guess = nearest(part, public)
                raise UserError(f"{where}: '{selector}': there is no '{part}'{guess}")
            target = getattr(target, part)
            path.append(part)
            if inspect.ismodule(target):
                module, path = target.__name__, []
        if not path or not callable(target):
            raise UserError(f"{where}: '{selector}' is no function or class that gin can configure")
        full = _home(target) or f"{module}.{'.'.join(path)}"
        return self.targets.setdefault(full, Target(full, module, ".".join(path), target))

    def _check_parameter(self, target: Target, name: str, where: str) -> None:
        parameters = target.parameters
        if name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        if moved := _moved(target, name):
            raise UserError(f"{where}: {target.short} has no parameter '{name}'; it is {moved} now")
        guess = nearest(name, parameters)
        raise UserError(f"{where}: {target.short} has no parameter '{name}'{guess}")


def _moved(target: Target, name: str) -> str | None:
    """Returns the new name of a former parameter, e.g. ``Layout.devices``, if a group has it.

    A field whose parameter had another name gives that in ``metadata={"recorded_as": …}``.
    """
    for group in target.groups.values():
        for field in dataclasses.fields(group.object):
            if field.metadata.get("recorded_as", field.name) == name:
                return f"{group.path}.{field.name}"
    return None
