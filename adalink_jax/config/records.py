"""The settings of gin files as plain records: resolved for a function, checked, and written.

`adalink_jax.config.gin_files` fills these records. Nothing here needs gin.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from adalink_jax.errors import UserError, nearest

COMMAND_LINE = "command line"
DEFAULT = "default"
# Macros that are copied to environment variables, which data sources and vocabularies read; with
# their meaning.
ENVIRONMENT: Mapping[str, str] = {
    "GLUE_DIR": "GLUE's folder in the official layout. Without it GLUE comes from TFDS.",
    "TEXT_FILE": "A text file to pre-train on, one text a line.",
    "VOCABULARY": "T5's SentencePiece file. The mini world needs none.",
}


@dataclasses.dataclass(frozen=True)
class Macro:
    """``%NAME`` in a value."""

    name: str


REQUIRED = Macro("gin.REQUIRED")


@dataclasses.dataclass(frozen=True)
class Target:
    """A configured function or class. Targets are equal if they are imported in different ways.

    Attributes:
      name: its full name in its own module, ``adalink_jax.methods.adalink.AdaLink``.
      module: dotted name of the module that it was first imported from.
      path: its name within that module.
      object: the function or class itself.
    """

    name: str
    module: str = dataclasses.field(compare=False)
    path: str = dataclasses.field(compare=False)
    object: Any = dataclasses.field(compare=False)

    @property
    def short(self) -> str:
        """The name in gin files, ``adalink.AdaLink``."""
        return f"{self.module.rpartition('.')[2]}.{self.path}"

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of its signature, including ``*args`` and ``**kwargs``."""
        return dict(inspect.signature(self.object).parameters)

    @property
    def groups(self) -> "dict[str, Target]":
        """The parameters that are groups of settings, each with its class.

        A group is a parameter annotated with a frozen dataclass, whose default, if any, has that
        class. If it has a default, the class's own bindings configure it.
        """
        groups = {}
        for name, parameter in self.parameters.items():
            kind, default = parameter.annotation, parameter.default
            if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
                if default is parameter.empty or type(default) is kind:
                    full = f"{kind.__module__}.{kind.__qualname__}"
                    groups[name] = Target(full, kind.__module__, kind.__qualname__, kind)
        return groups

    @property
    def reads_gin(self) -> bool:
        """Whether it is decorated by ``gin.configurable`` and so reads its bindings itself."""
        function = self.object.__init__ if inspect.isclass(self.object) else self.object
        return getattr(getattr(function, "__code__", None), "co_name", "") == "gin_wrapper"


@dataclasses.dataclass(frozen=True)
class Reference:
    """``@scope/target`` in a value, or ``@scope/target()`` if `call` is true."""

    scope: str
    target: Target
    call: bool


class Key(NamedTuple):
    """What a statement sets: a macro (with empty `target`) or a parameter of a target."""

    scope: str
    target: str
    name: str


class Setting(NamedTuple):
    """A value and where it was set (``file:line`` or ``command line``).

    `shipped` is true for the library's own files, which may set values that nothing reads.
    """

    value: Any
    origin: str
    shipped: bool


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A resolved configuration.

    Attributes:
      entry: dotted name of the configured function.
      values: its JSON-able arguments by name, in the order of its signature, with defaults and
        with macros expanded. A configured object is ``{"@": "module.Class", "rank": 4, …}``, a
        reference without a call ``{"@partial": …}``.
      text: a gin text that gives the same `values` without any other file.
      origins: where each macro (``RANK``) and binding (``runs.train.seed``) of `text` was set:
        ``file:line`` or ``command line``, after the name of the macro that a binding reads, if any.
      environment: the macros of `ENVIRONMENT` that gin sets.
      command: the arguments of the command line.
    """

    entry: str
    values: dict[str, Any]
    text: str
    origins: dict[str, str]
    environment: dict[str, str]
    command: tuple[str, ...] = ()

    def explain(self, message: str) -> str:
        """Adds to an error message where the setting that it mentions was set.

        A message mentions a setting if it begins with a bound parameter's name, or contains a
        macro's name or a parameter's name with an underscore (which no English word has).
        """
        words = re.findall(r"[\w.]*\w", message)
        for word in (w for i, w in enumerate(words) if i == 0 or w.isupper() or "_" in w):
            keys = [key for key in self.origins if f".{key}".endswith(f".{word}")]
            if len(keys) == 1:
                origin = self.origins[keys[0]]
                place = origin[1:] if origin.startswith("%") else f"{keys[0]}, {origin}"
                return f"{message} ({place})"
        return message


class Resolver:
    """Resolves all settings that a function reads, directly or through other settings.

    Attributes:
      read: the keys that were read, in order.
      missing: keys without a value, with the origin of their declaration or None.
    """

    def __init__(self, settings: Mapping[Key, Setting]):
        self.read: dict[Key, None] = {}
        self.missing: dict[Key, str | None] = {}
        self._settings = settings
        self._following: list[Key] = []

    def arguments(
        self, target: Target, scope: tuple[str, ...] = (), *, call: bool = True, skip=()
    ) -> dict[str, Any]:
        """Returns the JSON-able arguments that gin passes to `target`, in signature order.

        Args:
          target: the configured function or class.
          scope: the scopes that it is called in, outermost first; inner bindings win, as in gin.
          call: whether it is called with only these arguments. Then defaults are included, and a
            parameter with neither a default nor a binding is missing.
          skip: parameters that the caller passes.

        Raises:
          UserError: a setting refers to itself.
        """
        bound: dict[str, Key] = {}
        for depth in range(len(scope) + 1):
            prefix = "/".join(scope[:depth])
            at = (k for k in self._settings if (k.scope, k.target) == (prefix, target.name))
            bound.update({key.name: key for key in at})
        values = {}
        for name, parameter in target.parameters.items():
            if name in bound:
                values[name] = self.value(bound.pop(name), scope)
            elif not call or name in skip or parameter.kind in (2, 4):  # *args, **kwargs
                continue
            elif parameter.default is parameter.empty:
                self.missing[Key("", target.name, name)] = None
            else:
                values.update(_default(name, parameter.default))
        return values | {name: self.value(key, scope) for name, key in bound.items()}

    def value(self, key: Key, scope: tuple[str, ...] = ()) -> Any:
        """Returns the value of one setting, expanded and JSON-able."""
        setting = self._settings[key]
        if key in self._following:
            raise UserError(f"{setting.origin}: {key.name} refers to itself")
        self.read[key] = None
        self._following.append(key)
        value = self._expand(setting.value, key, scope)
        self._following.pop()
        return value

    def _expand(self, value: Any, key: Key, scope: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {str(name): self._expand(item, key, scope) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._expand(item, key, scope) for item in value]
        if value == REQUIRED:
            self.missing[key] = self._settings[key].origin
            return None
        if isinstance(value, Macro):
            # gin evaluates a macro's value in a scope of the macro's name.
            return self.value(Key("", "", value.name), tuple(value.name.split("/")))
        if isinstance(value, Reference):
            scope = tuple(value.scope.split("/")) if value.scope else scope
            mark = "@" if value.call else "@partial"
            arguments = self.arguments(value.target, scope, call=value.call)
            return {mark: value.target.name, **arguments}
        return value


def _default(name: str, value: Any) -> dict[str, Any]:
    """Returns ``{name: value}`` with a JSON-able default, or ``{}`` if JSON cannot hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return {name: value}
    if isinstance(value, (list, tuple)):
        items = [_default(name, item) for item in value]
        return {name: [item[name] for item in items]} if all(items) else {}
    if isinstance(value, dict):
        items = {str(key): _default(name, item) for key, item in value.items()}
        return {name: {k: v[name] for k, v in items.items()}} if all(items.values()) else {}
    if callable(value) and hasattr(value, "__qualname__"):
        return {name: {"@partial": f"{value.__module__}.{value.__qualname__}"}}
    return {}


def map_leaves(function: Callable, value: Any) -> Any:
    """Applies `function` to the leaves of nested lists, tuples and dicts."""
    if isinstance(value, dict):
        return {key: map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def display(key: Key, targets: Mapping[str, Target]) -> str:
    """Returns a key in the form that users write: ``RANK`` or ``runs.train.seed``."""
    if not key.target:
        return key.name
    scope = f"{key.scope}/" if key.scope else ""
    return f"{scope}{targets[key.target].short}.{key.name}"


def resolve(
    entry: Target,
    settings: Mapping[Key, Setting],
    targets: Mapping[str, Target],
    imports: Iterable[str],
    *,
    supplied: Iterable[str] = (),
    command: Iterable[str] = (),
) -> Configuration:
    """Checks settings and resolves them for `entry`.

    Args:
      entry: the function to call.
      settings: all settings; those that are only declared have the value `REQUIRED`.
      targets: all targets in the settings, including `entry`, by full name.
      imports: the modules that the files import.
      supplied: parameters of `entry` that the caller passes itself.
      command: the command line, which is kept in the result.

    Raises:
      UserError: an undefined macro; a user's setting that nothing reads; a required value not
        set; a setting that refers to itself.
    """
    _refuse_undefined(settings)
    settings = dict(settings)
    for target in [target for target in targets.values() if inspect.isfunction(target.object)]:
        for name, group in target.groups.items():
            if target.parameters[name].default is not inspect.Parameter.empty:
                group = targets.get(group.name, group)
                reference = Setting(Reference("", group, call=True), DEFAULT, shipped=True)
                settings.setdefault(Key("", target.name, name), reference)
    decorated = {name for name, target in targets.items() if target.reads_gin}
    everything = Resolver(settings)
    for target in targets.values():
        # train and evaluate share files, so settings of one count as read when the other runs.
        if target.module == entry.module and inspect.isfunction(target.object):
            everything.arguments(target, call=False)
    used = Resolver(settings)
    values = used.arguments(entry, skip=tuple(supplied))
    environment = {}
    for key in settings:
        if key.target in decorated:
            used.value(key, tuple(key.scope.split("/")) if key.scope else ())
        elif not key.target and key.name in ENVIRONMENT:
            environment[key.name] = _path(used.value(key), settings[key], key.name)
    _refuse_unread(settings, everything.read | used.read, targets)
    _refuse_missing(used.missing, targets)
    shown = [key for key in settings if key in used.read]
    text, origins = _write(entry, {key: settings[key] for key in shown}, targets, imports)
    return Configuration(entry.name, values, text, origins, environment, tuple(command))


def _path(value: Any, setting: Setting, name: str) -> str:
    if isinstance(value, str) and value:
        return value
    raise UserError(f"{setting.origin}: {name} must be a path, got {value!r}")


def _refuse_undefined(settings: Mapping[Key, Setting]) -> None:
    known = [key.name for key in settings if not key.target]
    for setting in settings.values():
        for leaf in _leaves(setting.value):
            if isinstance(leaf, Macro) and leaf != REQUIRED and leaf.name not in known:
                guess = nearest(leaf.name.upper(), known)
                raise UserError(f"{setting.origin}: %{leaf.name} is defined nowhere{guess}")


def _refuse_unread(settings: Mapping[Key, Setting], read: Mapping[Key, None], targets) -> None:
    for key, setting in settings.items():
        if key in read or setting.shipped:
            continue
        name = display(key, targets)
        guess = "" if key.target else nearest(name.upper(), [k.name for k in read if not k.target])
        raise UserError(f"{setting.origin}: nothing reads {name}{guess}")


def _refuse_missing(missing: Mapping[Key, str | None], targets: Mapping[str, Target]) -> None:
    if not missing:
        return
    names = [display(key, targets) for key in missing]
    declared = ", ".join(dict.fromkeys(origin for origin in missing.values() if origin))
    where = f" (declared in {declared})" if declared else ""
    if len(names) == 1:
        raise UserError(f"{names[0]} is required: set it with --gin.{names[0]}=…{where}")
    flags = " ".join(f"--gin.{name}=…" for name in names)
    raise UserError(f"{', '.join(names)} are required: set them with {flags}{where}")


def _write(
    entry: Target,
    settings: Mapping[Key, Setting],
    targets: Mapping[str, Target],
    imports: Iterable[str],
) -> tuple[str, dict[str, str]]:
    """Returns settings as one gin text, with the origins of its macros and bindings."""
    leaves = [leaf for setting in settings.values() for leaf in _leaves(setting.value)]
    used = {leaf.target for leaf in leaves if isinstance(leaf, Reference)}
    used |= {targets[key.target] for key in settings if key.target} | {entry}
    # An import without a target is kept for its side effect, such as registering a user's tasks.
    idle = {target.module for target in targets.values()} - {target.module for target in used}
    modules = {target.module for target in used} | (set(imports) - idle)
    names = _module_names(modules)

    def selector(target: Target) -> str:
        return f"{names[target.module]}.{target.path}"

    def literal(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k!r}: {literal(v)}' for k, v in value.items())}}}"
        if isinstance(value, list):
            return f"[{', '.join(map(literal, value))}]"
        if isinstance(value, tuple):
            return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
        if isinstance(value, Macro):
            return f"%{value.name}"
        if isinstance(value, Reference):
            scope = f"{value.scope}/" if value.scope else ""
            return f"@{scope}{selector(value.target)}{'()' * value.call}"
        return repr(value)

    lines = [
        f"# What {entry.name} was given, resolved.",
        "from __gin__ import dynamic_registration",
    ]
    lines += ["", *_import_lines(names)]
    origins: dict[str, str] = {}
    order = list(targets[entry.name].parameters)
    section = None
    for key in sorted(settings, key=lambda k: _place(k, entry, order)):
        if section != (key.scope, key.target):
            section = (key.scope, key.target)
            lines.append("")
        scope = f"{key.scope}/" if key.scope else ""
        name = f"{scope}{selector(targets[key.target])}.{key.name}" if key.target else key.name
        value, origin, _ = settings[key]
        lines.append(f"{name} = {literal(value)}  # {origin}")
        origins[name] = _origin(settings, key)
    return "\n".join(lines) + "\n", origins


def _place(key: Key, entry: Target, order: list[str]) -> tuple:
    """Sort key: macros first, then the entry's parameters in signature order, then the others."""
    if not key.target:
        return (0, "", "", 0, key.name)
    if key.target == entry.name and key.name in order:
        return (1, "", key.scope, order.index(key.name), "")
    return (2, key.target, key.scope, 0, key.name)


def _origin(settings: Mapping[Key, Setting], key: Key) -> str:
    """Returns where a key's value was set; follows a macro to where that was set."""
    value, origin, _ = settings[key]
    if isinstance(value, Macro):
        source = _origin(settings, Key("", "", value.name))
        return source if source.startswith("%") else f"%{value.name}, {source}"
    return origin


def _module_names(modules: Iterable[str]) -> dict[str, str]:
    """Names each module by its last part, or by its full name if two modules share that part."""
    names: dict[str, str] = {}
    taken = {"gin"}  # gin reserves its own name.
    for module in sorted(modules, key=lambda name: (name.count("."), name)):
        name = module.rpartition(".")[2]
        if name in taken:
            name = module.replace(".", "_")
        while name in taken:
            name += "_"
        names[module] = name
        taken.add(name)
    return names


def _import_lines(names: Mapping[str, str]) -> Iterator[str]:
    for module, name in names.items():
        package, _, last = module.rpartition(".")
        statement = f"from {package} import {last}" if package else f"import {last}"
        yield statement if name == last else f"{statement} as {name}"
