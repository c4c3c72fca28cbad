"""Reads the statements of gin files and flags into settings, each with its origin."""

import contextlib
import dataclasses
import importlib
import inspect
import logging
import math
import os
import pathlib
import re
import sys
import tokenize
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import gin

from adalink_jax.config.records import (
    COMMAND_LINE,
    REQUIRED,
    Key,
    Macro,
    Reference,
    Setting,
    Target,
    display,
    map_leaves,
)
from adalink_jax.errors import UserError, nearest, without_environment
from adalink_jax.values import shown

try:
    from gin import config_parser
except ImportError as error:
    # A folder of gin files is a module to Python, where the package is not installed.
    other = getattr(gin, "__file__", None)
    hidden = f"Python imports {other} as 'gin', which hides gin-config; give it another name"
    raise UserError(hidden if other else without_environment("gin-config")) from error

_DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"
_NAME = re.compile(r"[A-Za-z_][\w./]*")
# A flag's value that is not a gin value but looks like this (a path or a name) is a string.
_BARE_STRING = re.compile(r"[\w./~][\w./~:+-]*")
# Lists in lists: no setting needs more, and Python's and gin's parsers end at a few hundred.
_DEEPEST = 32
# A longer binding is cut in messages.
_SHOWN = 80

logger = logging.getLogger(__name__)


def full_name(target: Any) -> str | None:
    """Returns the full name of a function or class in its own module, if that has it."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "?")
    importable = getattr(sys.modules.get(module or ""), name, None) is target
    return f"{module}.{name}" if importable else None


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
    except (SyntaxError, tokenize.TokenError, ValueError, TypeError, RecursionError) as error:
        line, message = getattr(error, "lineno", None), getattr(error, "msg", str(error))
        message = message.partition("\n")[0]
        if isinstance(error, tokenize.TokenError):
            message, (line, _) = error.args
            if "nested" in message:  # From Python 3.12 on; before, gin's parser recurses.
                message = f"brackets in more than {_DEEPEST} brackets"
            else:
                # A bracket is open at the end; up to Python 3.11 the end is a line of its own.
                line -= sys.version_info < (3, 12) and "statement" in message
                message = "a bracket or a string is left open"
        elif isinstance(error, UnicodeDecodeError):
            message = "the file is not UTF-8 text"
        elif isinstance(error, RecursionError):
            message = f"brackets in more than {_DEEPEST} brackets"
        raise UserError(f"{where}:{line}: {message}" if line else f"{where}: {message}") from None


@contextlib.contextmanager
def _opened(path: pathlib.Path, asked_at: str) -> Iterator[Any]:
    try:
        # Some editors write a byte order mark, which "utf-8-sig" reads over.
        file = path.open(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{asked_at}: cannot read '{path}': {error.strerror}") from None
    with file:
        yield file


class Reader:
    """Reads gin files and flags into settings, each with its origin.

    Attributes:
      settings: all settings; the last of several for a key is kept.
      required: the keys declared with ``%gin.REQUIRED``, with the origin of the declaration.
      targets: all functions and classes in the settings, by full name.
      modules: the modules that the files import.
    """

    def __init__(self, entry: Target, folders: Sequence[pathlib.Path]):
        """Starts with no settings.

        Args:
          entry: the function that is configured.
          folders: where files are searched, in this order; the last holds the shipped files.
        """
        self.settings: dict[Key, Setting] = {}
        self.required: dict[Key, str] = {}
        # Groups of settings are always known by name, even if no file imports them.
        groups = {group.name: group for group in entry.groups.values()}
        self.targets: dict[str, Target] = {entry.name: entry, **groups}
        self.modules: list[str] = []
        self._names = {entry.module.rpartition(".")[2]: sys.modules[entry.module]}
        self._folders = folders
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
        shipped = self._folders[-1] in path.parents
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
        binding = " ".join(binding.split())  # As it stands in errors, which are one line.
        if not _NAME.fullmatch(name):
            raise UserError(f"--gin.{binding}: expected --gin.NAME=VALUE")
        try:
            statements = list(_statements(f"{name} = {text}", COMMAND_LINE))
        except UserError:
            if not _BARE_STRING.fullmatch(text):
                quoted = "\"'…'\""
                given = f"--gin.{binding[:_SHOWN]}: '{' '.join(text.split())[:_SHOWN]}'"
                raise UserError(f"{given} is no gin value; quote a string as {quoted}") from None
            # The shell does not expand the tilde of --gin.MODEL_DIR=~/run.
            text = repr(os.path.expanduser(text))
            statements = list(_statements(f"{name} = {text}", COMMAND_LINE))
        self._set(statements[0], None, COMMAND_LINE, shipped=False)

    def _find(self, name: str, asked_at: str) -> pathlib.Path:
        for folder in self._folders:
            path = folder / os.path.expanduser(name)
            try:
                if path.is_file():
                    return path.resolve()
            except OSError as error:
                reason = f"cannot read the gin file {shown(name)}: {error.strerror}"
                raise UserError(f"{asked_at}: {reason}") from None
        library = self._folders[-1]
        known = [path.relative_to(library).as_posix() for path in library.rglob("*.gin")]
        looked = ", ".join(str(folder) for folder in self._folders)
        guess = nearest(name, known)
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
        except Exception as error:  # Of the user's module; any class can occur.
            place = traceback.extract_tb(error.__traceback__)[-1]
            at = "" if isinstance(error, SyntaxError) else f" ({place.filename}:{place.lineno})"
            said = f"{type(error).__name__}: {error}{at}".partition("\n")[0]
            raise UserError(f"{where}: importing '{statement.module}' fails: {said}") from error
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
            target, parameter = self._parameter(target, parameter, where)
            key = Key(scope, target.name, parameter)
        else:
            key = Key("", "", f"{scope}/{selector}" if scope else selector)
        if value == REQUIRED:
            self.required.setdefault(key, where)
            return None

        if mistake := _unfit(value):
            raise UserError(f"{where}: {display(key, self.targets)} {mistake}")

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
        full = full_name(target) or f"{module}.{'.'.join(path)}"
        return self.targets.setdefault(full, Target(full, module, ".".join(path), target))

    def _parameter(self, target: Target, name: str, where: str) -> tuple[Target, str]:
        """Returns what a binding sets: a parameter, or a field of one of its groups of settings."""
        parameters = target.parameters
        if name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return target, name
        if moved := _moved(target, name):
            group, field = moved
            logger.warning("%s: %s.%s is %s.%s now", where, target.short, name, group.path, field)
            return self.targets.setdefault(group.name, group), field
        guess = nearest(name, parameters)
        raise UserError(f"{where}: {target.short} has no parameter '{name}'{guess}")


def _moved(target: Target, name: str) -> tuple[Target, str] | None:
    """Returns the group and field that a former parameter is now, if a group has it.

    A field whose parameter had another name gives that in ``metadata={"recorded_as": …}``; one that
    never was a parameter has ``"later": True`` there.
    """
    fields = [
        (group, f)
        for group in target.groups.values()
        for f in dataclasses.fields(group.object)
        if not f.metadata.get("later")
    ]
    former = [(g, f.name) for g, f in fields if f.metadata.get("recorded_as", f.name) == name]
    same = [(group, field.name) for group, field in fields if field.name == name]
    return next(iter(former + same), None)


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Returns what is wrong with a value that no setting can have; None if nothing is."""
    if depth > _DEEPEST:
        return f"has brackets in more than {_DEEPEST} brackets"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next(filter(None, (_unfit(item, depth + 1) for item in value)), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; a number must be finite"
    if isinstance(value, bytes | complex):
        return f"is {shown(value)}; it takes no {type(value).__name__}"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return f"is {shown(value)}, which holds half of a character"
    return None
