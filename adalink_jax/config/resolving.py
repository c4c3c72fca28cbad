"""Resolves the settings of gin files for one function, and checks what they set.

Nothing here needs gin.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from adalink_jax.config.records import (
    DEFAULT,
    ENVIRONMENT,
    REQUIRED,
    Configuration,
    Key,
    Macro,
    Reference,
    Setting,
    Target,
    display,
    leaves,
    write,
)
from adalink_jax.errors import UserError, nearest
from adalink_jax.values import Promise, checked

# T5X's macros that have no equal here -> what to do instead.
_OF_T5X: Mapping[str, str] = {
    "MIXTURE_OR_TASK_MODULE": "import the module in a gin file instead: import {value}",
    "USE_CACHED_TASKS": "leave it out; tokens are cached by themselves",
    "LOSS_NORMALIZING_FACTOR": "leave it out; the loss is the mean over target tokens",
    "RANDOM_SEED": "it is SEED here",
    "CHECKPOINT_PATH": "it is INITIAL_CHECKPOINT_PATH here, and ADAPTER_PATH for an adapter",
}


class Resolver:
    """Resolves all settings that a function reads, directly or through other settings.

    Attributes:
      read: the keys that were read, in order.
      missing: keys without a value, with the origin of their declaration or None.
      paths: the paths with ``~`` that were read, expanded, by the key that holds them.
    """

    def __init__(self, settings: Mapping[Key, Setting], checks: bool = True):
        """Starts with nothing read.

        Args:
          settings: all settings.
          checks: whether values are checked against the annotations of what they are bound to.
        """
        self.read: dict[Key, None] = {}
        self.missing: dict[Key, str | None] = {}
        self.paths: dict[Key, str] = {}
        self._settings = settings
        self._checks = checks
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
          UserError: a setting refers to itself, or does not fit its parameter.
        """
        bound: dict[str, Key] = {}
        for depth in range(len(scope) + 1):
            prefix = "/".join(scope[:depth])
            at = (k for k in self._settings if (k.scope, k.target) == (prefix, target.name))
            bound.update({key.name: key for key in at})
        values = {}
        for name, parameter in target.parameters.items():
            if name in bound:
                # The annotations of others' functions may be wrong, and the functions still work.
                wanted = parameter.annotation if target.is_ours else Any
                values[name] = self.value(bound.pop(name), scope, wanted, f"{target.short}.{name}")
            elif not call or name in skip or parameter.kind in (2, 4):  # *args, **kwargs
                continue
            elif parameter.default is parameter.empty:
                self.missing[Key("", target.name, name)] = None
            else:
                values.update(_default(name, parameter.default))
        return values | {name: self.value(key, scope) for name, key in bound.items()}

    def value(
        self, key: Key, scope: tuple[str, ...] = (), wanted: Any = Any, name: str = ""
    ) -> Any:
        """Returns the value of one setting, expanded and JSON-able.

        Args:
          key: the setting.
          scope: the scopes that it is read in.
          wanted: the annotation that it must fit.
          name: what it is called in an error, unless a macro holds it.
        """
        setting = self._settings[key]
        if key in self._following:
            raise UserError(f"{setting.origin}: {key.name} refers to itself")
        self.read[key] = None
        self._following.append(key)
        value = self._expand(setting.value, key, scope)
        self._following.pop()
        return self._checked(value, key, wanted, name) if self._checks else value

    def _checked(self, value: Any, key: Key, wanted: Any, name: str) -> Any:
        """Checks a setting; returns its expanded value, with ``~`` expanded in a path."""
        source = self._source(key)
        given = self._promised(self._settings[source].value)
        try:
            settled = checked(name if source.target else source.name, given, wanted)
        except UserError as error:
            raise UserError(f"{self._settings[source].origin}: {error}") from None
        if isinstance(settled, str) and settled != given:
            self.paths[source] = settled
        return self.paths.get(source, value)

    def _source(self, key: Key) -> Key:
        """Returns the key that holds a setting's value, which may be another key's macro."""
        value = self._settings[key].value
        if isinstance(value, Macro) and value != REQUIRED:
            return self._source(Key("", "", value.name))
        return key

    def _promised(self, value: Any) -> Any:
        """Returns a value with its macros expanded, and with promises for what is not made yet."""
        if isinstance(value, dict):
            return {name: self._promised(item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._promised, value))
        if value == REQUIRED:
            return Promise("%gin.REQUIRED", None, call=True)  # It is missing, but not wrong.
        if isinstance(value, Macro):
            return self._promised(self._settings[Key("", "", value.name)].value)
        if isinstance(value, Reference):
            return Promise(str(value), value.target.made, value.call)
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
        set; a setting that refers to itself, or does not fit what it is bound to.
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
    everything = Resolver(settings, checks=False)
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
            kind = ENVIRONMENT[key.name].kind
            environment[key.name] = str(used.value(key, (), kind, key.name))
    _refuse_unread(settings, everything.read | used.read, targets)
    _refuse_missing(used.missing, targets)
    settings |= {key: settings[key]._replace(value=path) for key, path in used.paths.items()}
    shown = {key: setting for key, setting in settings.items() if key in used.read}
    text, origins = write(entry, shown, targets, imports)
    return Configuration(entry.name, values, text, origins, environment, tuple(command))


def _refuse_undefined(settings: Mapping[Key, Setting]) -> None:
    known = [key.name for key in settings if not key.target]
    for setting in settings.values():
        for leaf in leaves(setting.value):
            if isinstance(leaf, Macro) and leaf != REQUIRED and leaf.name not in known:
                guess = nearest(leaf.name.upper(), known)
                raise UserError(f"{setting.origin}: %{leaf.name} is defined nowhere{guess}")


def _refuse_unread(settings: Mapping[Key, Setting], read: Mapping[Key, None], targets) -> None:
    for key, setting in settings.items():
        if key in read or setting.shipped:
            continue
        name = display(key, targets)
        if name in _OF_T5X:
            advice = _OF_T5X[name].format(value=setting.value)
            raise UserError(f"{setting.origin}: nothing reads T5X's {name} here; {advice}")
        guess = "" if key.target else nearest(name.upper(), [k.name for k in read if not k.target])
        raise UserError(f"{setting.origin}: nothing reads {name}{guess}")


def _refuse_missing(missing: Mapping[Key, str | None], targets: Mapping[str, Target]) -> None:
    if not missing:
        return
    names = [display(key, targets) for key in missing]
    declared = ", ".join(dict.fromkeys(origin for origin in missing.values() if origin))
    where = f" (declared in {declared})" if declared else ""
    if "METHOD" in names:
        where += "; a file such as --gin_file=methods/adalink.gin sets METHOD and what goes with it"
    if len(names) == 1:
        raise UserError(f"{names[0]} is required: set it with --gin.{names[0]}=…{where}")
    flags = " ".join(f"--gin.{name}=…" for name in names)
    raise UserError(f"{', '.join(names)} are required: set them with {flags}{where}")
