"""The settings of gin files as plain records, and the one gin text of all of them.

`reader` fills these records, `resolving` resolves them for a function. Nothing here needs gin.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from adalink_jax.values import AnyPath, Seed

COMMAND_LINE = "command line"
DEFAULT = "default"


class Variable(NamedTuple):
    """A macro that is copied to an environment variable: its type, and its meaning."""

    kind: Any
    meaning: str


# What data sources and vocabularies read.
ENVIRONMENT: Mapping[str, Variable] = {
    "GLUE_DIR": Variable(
        AnyPath, "GLUE's folder in the official layout. Without it GLUE comes from TFDS."
    ),
    "IMAGE_DIR": Variable(
        AnyPath, "The folder of data sets of images: a folder for each, in its official layout."
    ),
    "ROBUSTNESS_DIR": Variable(AnyPath, "The folder of AdvGLUE, ANLI, SNLI, SciTail, PAWS, HANS."),
    "SUPER_GLUE_DIR": Variable(AnyPath, "SuperGLUE's folder in the official layout."),
    "TEMPLATE_SEED": Variable(Seed, "Chooses one prompt for the tasks of FLAN. Without it, all."),
    "TEXT_FILE": Variable(AnyPath, "A text file to pre-train on, one text a line."),
    "VOCABULARY": Variable(
        AnyPath, "T5's SentencePiece file, or `english`. The mini world needs none."
    ),
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
    def is_ours(self) -> bool:
        """Whether it belongs to this package."""
        return self.name.partition(".")[0] == __name__.partition(".")[0]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of its signature, including ``*args`` and ``**kwargs``."""
        return dict(self._signature.parameters)

    @property
    def made(self) -> type | None:
        """The class of what a call returns; None if the function does not say."""
        if inspect.isclass(self.object):
            return self.object
        made = self._signature.return_annotation
        if typing.get_origin(made) is Callable:
            return types.FunctionType
        return made if inspect.isclass(made) and made is not inspect.Signature.empty else None

    @property
    def _signature(self) -> inspect.Signature:
        try:
            return inspect.signature(self.object)
        except ValueError:  # Some classes of Python have none.
            return inspect.Signature()

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

    def __str__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        return f"@{scope}{self.target.short}{'()' * self.call}"


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


def map_leaves(function: Callable, value: Any) -> Any:
    """Applies `function` to the leaves of nested lists, tuples and dicts."""
    if isinstance(value, dict):
        return {key: map_leaves(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, item) for item in value)
    return function(value)


def leaves(value: Any) -> Iterator[Any]:
    """Yields the leaves of nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def display(key: Key, targets: Mapping[str, Target]) -> str:
    """Returns a key in the form that users write: ``RANK`` or ``runs.train.seed``."""
    if not key.target:
        return key.name
    scope = f"{key.scope}/" if key.scope else ""
    return f"{scope}{targets[key.target].short}.{key.name}"


def write(
    entry: Target,
    settings: Mapping[Key, Setting],
    targets: Mapping[str, Target],
    imports: Iterable[str],
) -> tuple[str, dict[str, str]]:
    """Returns settings as one gin text, with the origins of its macros and bindings."""
    values = [leaf for setting in settings.values() for leaf in leaves(setting.value)]
    used = {leaf.target for leaf in values if isinstance(leaf, Reference)}
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
