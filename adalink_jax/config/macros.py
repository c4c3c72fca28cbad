"""Reads the macros of the shipped gin files and their comments, as text and without gin."""

import dataclasses
import functools
import pathlib
import re

from adalink_jax.config.records import ENVIRONMENT

_REQUIRED = "%gin.REQUIRED"
_MACRO = re.compile(r"([A-Z][A-Z0-9_]+) = (.*?)(?:  # (.*))?")


@dataclasses.dataclass(frozen=True)
class Macro:
    """A macro of one gin file.

    Attributes:
      name: the name in ``--gin.NAME=VALUE``.
      file: the file that sets or requires it, relative to the folder of gin files; "" for macros
        that no file sets and that can also be environment variables.
      default: its value as written in the file; "" if there is none.
      meaning: the comment above it or beside it, as one line. If there is none, and in experiments
        (whose comments explain the choice of a value), it is the comment in an included file, or
        in the run file that declares the macro.
      required: whether the file declares it without a value.
    """

    name: str
    file: str
    default: str
    meaning: str
    required: bool


def gin_folder() -> pathlib.Path:
    """Returns the folder of the shipped gin files, in the installed package or in a checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    installed = package / "gin"
    return installed if installed.is_dir() else package.parent / "gin"


def macros() -> list[Macro]:
    """Returns the macros of all shipped gin files, run files first, in the order of each file."""
    folder = gin_folder()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gin"))
    runs = ["runs/finetune.gin", *(name for name in names if name.startswith("runs/"))]
    names = list(dict.fromkeys([*runs, *names]))
    listed = [macro for name in names for macro in _read(name)]
    environment = [Macro(name, "", "", one.meaning, False) for name, one in ENVIRONMENT.items()]
    result = []
    for macro in listed:
        own = [] if macro.file.startswith("experiments/") else [macro]
        inherited = [inner for file in _included(macro.file) for inner in _read(file)]
        meanings = (
            each.meaning
            for each in (*own, *inherited, *listed, *environment)
            if each.name == macro.name and each.meaning
        )
        result.append(dataclasses.replace(macro, meaning=next(meanings, "")))
    return result + environment


@functools.cache
def _read(name: str) -> tuple[Macro, ...]:
    """Returns the macros of one file; the meaning only comes from this file's comments."""
    result, above = [], []
    for line in (gin_folder() / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
            continue
        if match := _MACRO.fullmatch(line):
            macro, value, beside = match.groups()
            required = value == _REQUIRED
            text = " ".join([*above, beside or ""]).strip()
            result.append(Macro(macro, name, "" if required else value, text, required))
        above = []
    return tuple(result)


def _included(name: str) -> list[str]:
    """Returns the shipped files that a file includes."""
    text = (gin_folder() / name).read_text(encoding="utf-8")
    names = re.findall(r"^include '(.*)'$", text, re.MULTILINE)
    return [inner for inner in names if (gin_folder() / inner).is_file()]
