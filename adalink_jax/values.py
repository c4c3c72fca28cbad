"""What a setting may be, said once: by the annotation of the parameter or field that it sets.

``rank: Size = 4`` says that a rank is a whole number from 1. The same annotation is read where a
gin file binds a value, where a dataclass is made, and where a function is called from Python, so
all three say the same of a wrong value.
"""

import ast
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ParamSpec, TypeVar

from adalink_jax.errors import UserError, nearest
from adalink_jax.files import local_path

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A longer value is cut in messages.
_SHOWN = 80
# The longest name of a file and the longest path, in bytes, on all common file systems.
_LONGEST_NAME, _LONGEST_PATH = 255, 4095


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers, for ``Annotated[int, Range(1)]``.

    Attributes:
      least: the smallest value.
      most: the largest value.
      open_end: whether `most` itself is too large.
      open_start: whether `least` itself is too small.
    """

    least: float
    most: float = math.inf
    open_end: bool = False
    open_start: bool = False

    def admits(self, value: Any) -> bool:
        """Returns whether a number is in the range."""
        if (value == self.least and self.open_start) or (value == self.most and self.open_end):
            return False
        return self.least <= value <= self.most

    def describe(self, wanted: str) -> str:
        """Returns the text of a message, e.g. "a whole number from 1 to 10"."""
        if self.open_start and self.most == math.inf:
            return f"{wanted} > {self.least:,}"
        if self.most == math.inf:
            return f"{wanted} ≥ {self.least:,}"
        if self.open_start or self.open_end:
            signs = ">" if self.open_start else "≥", "<" if self.open_end else "≤"
            return f"{wanted} {signs[0]} {self.least:,} and {signs[1]} {self.most:,}"
        return f"{wanted} from {self.least:,} to {self.most:,}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The names that a string may be."""

    names: tuple[str, ...]

    def admits(self, value: Any) -> bool:
        """Returns whether a string is one of the names."""
        return value in self.names

    def describe(self, wanted: str) -> str:
        """Returns the text of a message, e.g. "one of none, minimal, full"."""
        return f"one of {', '.join(self.names)}"


@dataclasses.dataclass(frozen=True)
class Path:
    """A path, which is given to others with ``~`` expanded.

    Attributes:
      remote: whether a URL is allowed; who opens it says which.
    """

    remote: bool = False

    def admits(self, value: Any) -> bool:
        """Returns whether a file system can have this path; it need not exist."""
        if not value or "\0" in value:
            return False
        try:
            local, encoded = str(local_path(value)), os.fsencode(value)
        except UserError:  # A URL.
            return self.remote
        except UnicodeEncodeError:
            return False
        # A tilde that is left is that of a user who is not there.
        names = encoded.split(os.fsencode(os.sep))
        short = len(encoded) <= _LONGEST_PATH and max(map(len, names)) <= _LONGEST_NAME
        return short and not local.startswith("~")

    def describe(self, wanted: str) -> str:
        """Returns the text of a message."""
        place = "a path" if self.remote else "a path on this machine, no URL"
        return f"{place}, with names of at most {_LONGEST_NAME} bytes"


@dataclasses.dataclass(frozen=True)
class Says:
    """The text of a message, where what the type says would not help."""

    text: str

    def admits(self, value: Any) -> bool:
        """Returns True."""
        return True

    def describe(self, wanted: str) -> str:
        """Returns the text."""
        return self.text


_Rule = Range | OneOf | Path | Says

# A number of something that is counted, without a limit.
Count = Annotated[int, Range(1)]
# A size along which an array is made. The limit keeps products of a few sizes in 64 bits; whether
# there is memory for an array is asked where all its sizes are known.
Size = Annotated[int, Range(1, 2**28)]
# A number of tokens, or of layers; no text or network has more.
Length = Annotated[int, Range(1, 2**20)]
Depth = Annotated[int, Range(1, 2**10)]
# JAX counts steps in 32 bits, and a random key takes 32 bits of a seed.
Steps = Annotated[int, Range(1, 2**31 - 1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Rate = Annotated[float, Range(0, 1, open_end=True)]
NotNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, open_start=True)]
LocalPath = Annotated[str, Path()]
AnyPath = Annotated[str, Path(remote=True)]


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a value will be, where it still is a reference in a gin file.

    Attributes:
      text: the reference as it is written.
      made: the class of the object that a call returns; None if unknown.
      call: whether the value is that object, rather than the function or class that makes it.
    """

    text: str
    made: type | None
    call: bool

    def __repr__(self) -> str:
        return self.text

    def fits(self, wanted: Any) -> bool:
        """Returns whether the value will have a type, as far as the reference tells."""
        if _is_callable(wanted) and not self.call:
            wanted = (typing.get_args(wanted) or (None,))[-1]
        elif not self.call:
            return not inspect.isclass(wanted)
        if self.made is None or not (inspect.isclass(wanted) or _is_callable(wanted)):
            return True
        return issubclass(self.made, collections.abc.Callable if _is_callable(wanted) else wanted)


def _is_callable(wanted: Any) -> bool:
    return collections.abc.Callable in (wanted, typing.get_origin(wanted))


def checked(name: str, value: Any, wanted: Any) -> Any:
    """Checks a value against an annotation.

    Checked are numbers, strings, True and False, None, lists, mappings, functions and classes. All
    other annotations allow everything. True is no number; a whole number is a number; infinity and
    NaN are none.

    Args:
      name: what the value is called in the error.
      value: the value.
      wanted: the annotation, with or without a `Range`, `OneOf`, `Path` or `Says`.

    Returns:
      The value; a path with ``~`` expanded, a list as a tuple where that is annotated, and NumPy's
      number or text as Python's. One string where a list of strings is wanted is a list of one.

    Raises:
      UserError: the value does not fit.
    """
    # A command line reads settings without NumPy, and then none of them is NumPy's.
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        value = value.item()
    if not _fits(value, wanted):
        raise UserError(
            f"{name} is {shown(value)}; it takes {expected(wanted)}{_hint(value, wanted)}"
        )
    if isinstance(value, str) and any(isinstance(rule, Path) for rule in _rules(wanted)):
        return os.path.expanduser(value)
    if isinstance(value, str | list | tuple) and any(map(_is_list, _alternatives(wanted))):
        return (value,) if isinstance(value, str) else _as_tuple(value)
    return value


def _as_tuple(value: Any) -> Any:
    """Returns a list, and lists in it, as tuples; a value without lists itself."""
    if not isinstance(value, list | tuple):
        return value
    items = tuple(map(_as_tuple, value))
    same = isinstance(value, tuple) and all(a is b for a, b in zip(value, items, strict=True))
    return value if same else items


def _hint(value: Any, wanted: Any) -> str:
    """Returns what may have been meant, after a semicolon; "" if nothing comes to mind."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            if _fits(ast.literal_eval(value), wanted):
                return "; leave the quotes out"
    names = _names(wanted)
    words = value if isinstance(value, list | tuple) else [value]
    unknown = [word for word in words if isinstance(word, str) and word not in names]
    return nearest(unknown[0], names) if unknown else ""


def shown(value: Any) -> str:
    """Returns a value as a message shows it, on one line and cut to a readable length."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class Checked:
    """A dataclass that derives from it checks its fields when it is made."""

    def __post_init__(self):
        for field in dataclasses.fields(typing.cast(Any, self)):
            value = getattr(self, field.name)
            settled = checked(f"{type(self).__name__}.{field.name}", value, field.type)
            if settled is not value:
                object.__setattr__(self, field.name, settled)


def checks(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a function check its arguments."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = next((name for name in kwargs if name not in signature.parameters), "")
            hint = nearest(unknown, signature.parameters) if unknown else ""
            raise TypeError(f"{function.__name__}() {error}{hint}") from None
        for name, value in given.arguments.items():
            given.arguments[name] = checked(name, value, signature.parameters[name].annotation)
        return function(*given.args, **given.kwargs)

    return call


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is Any or wanted is inspect.Parameter.empty:
        return True
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        rules = [] if isinstance(value, Promise) else _own_rules(wanted)
        return _fits(value, parts[0]) and all(rule.admits(value) for rule in rules)
    if len(_alternatives(wanted)) > 1:
        return any(_fits(value, one) for one in parts)
    if isinstance(value, Promise):
        return value.fits(wanted)
    if _is_list(wanted):
        items = (value,) if isinstance(value, str) and value else value
        return (
            isinstance(items, list | tuple)
            and len(items) > 0
            and all(_fits(item, parts[0]) for item in items)
        )
    if origin is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(parts)
            and all(map(_fits, value, parts))
        )
    if origin is Mapping or origin is collections.abc.Mapping:
        return (
            isinstance(value, Mapping)
            and len(value) > 0
            and all(_fits(name, parts[0]) and _fits(item, parts[1]) for name, item in value.items())
        )
    return _fits_one(value, wanted)


def _fits_one(value: Any, wanted: Any) -> bool:
    """Returns whether a value has a type without parts; True if the type says nothing."""
    if wanted is None:
        return value is None
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if _is_callable(wanted):
        return callable(value)
    try:
        return not inspect.isclass(wanted) or isinstance(value, wanted)
    except TypeError:  # A class that cannot say, such as a protocol.
        return True


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number that no float holds.
        return False


def _is_list(wanted: Any) -> bool:
    """Returns whether a type is ``tuple[…, ...]``."""
    return typing.get_origin(wanted) is tuple and typing.get_args(wanted)[-1] is ...


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    """Returns the types of a union; a type alone otherwise."""
    is_union = typing.get_origin(wanted) in (types.UnionType, typing.Union)
    return typing.get_args(wanted) if is_union else (wanted,)


def _own_rules(wanted: Any) -> list[_Rule]:
    return [rule for rule in getattr(wanted, "__metadata__", ()) if isinstance(rule, _Rule)]


def _rules(wanted: Any) -> list[_Rule]:
    """Returns the rules of an annotation and of its alternatives, not of a list's items."""
    if typing.get_origin(wanted) is Annotated:
        return [*_own_rules(wanted), *_rules(typing.get_args(wanted)[0])]
    several = _alternatives(wanted)
    return [rule for one in several for rule in _rules(one)] if len(several) > 1 else []


def _names(wanted: Any) -> list[str]:
    """Returns all names that a string may be, in any part of an annotation."""
    own = [name for rule in _own_rules(wanted) if isinstance(rule, OneOf) for name in rule.names]
    return own + [name for part in typing.get_args(wanted) for name in _names(part)]


_WORDS = {
    None: "None",
    types.NoneType: "None",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
}


def expected(wanted: Any) -> str:
    """Returns what an annotation allows, in words, as messages say it."""
    origin, parts = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        text = expected(parts[0])
        for rule in _own_rules(wanted):
            text = rule.describe(text)
        return text
    if len(_alternatives(wanted)) > 1:
        return " or ".join(dict.fromkeys(map(expected, parts)))
    if origin is tuple and not _is_list(wanted):
        return f"({', '.join(map(expected, parts))})"
    if _is_list(wanted):
        return f"a list, each {expected(parts[0])}"
    if _is_callable(wanted):
        return "a function, as @module.function"
    if origin is Mapping or origin is collections.abc.Mapping:
        return f"a mapping, each value {expected(parts[1])}"
    name = getattr(wanted, "__qualname__", "value")
    return _WORDS.get(wanted) or f"a {name}, as @{wanted.__module__.rpartition('.')[2]}.{name}()"
