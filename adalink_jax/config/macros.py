"""What the shipped gin files say of their macros, in their comments. Reads text; needs no gin."""

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
      name: as it is set, ``--gin.NAME=VALUE``.
      file: the file that sets or requires it, below the folder of gin files; "" for what may be an
        environment variable as well and is set by no file.
      default: its value as the file writes it; "" where there is none.
      meaning: the comment above it or beside it, as one line. Where a file has no comment of its
        own, and in experiments (whose comments say why a value was chosen), that of an included
        file or of the run file that declares the macro.
      required: whether the file leaves the value to others.
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
    """Returns the macros of all shipped gin files: run files first, then by file as they stand."""
    folder = gin_folder()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gin"))
    runs = ["runs/finetune.gin", *(name for name in names if name.startswith("runs/"))]
    names = list(dict.fromkeys([*runs, *names]))
    found = [macro for name in names for macro in _read(name)]
    environment = [Macro(name, "", "", text, False) for name, text in ENVIRONMENT.items()]
    result = []
    for macro in found:
        own = [] if macro.file.startswith("experiments/") else [macro]
        inherited = [inner for file in _included(macro.file) for inner in _read(file)]
        meanings = (
            each.meaning
            for each in (*own, *inherited, *found, *environment)
            if each.name == macro.name and each.meaning
        )
        result.append(dataclasses.replace(macro, meaning=next(meanings, "")))
    return result + environment


@functools.cache
def _read(name: str) -> tuple[Macro, ...]:
    """The macros of one file, each with the file's own comment alone."""
    found, above = [], []
    for line in (gin_folder() / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
            continue
        if match := _MACRO.fullmatch(line):
            macro, value, beside = match.groups()
            required = value == _REQUIRED
            text = " ".join([*above, beside or ""]).strip()
            found.append(Macro(macro, name, "" if required else value, text, required))
        above = []
    return tuple(found)


def _included(name: str) -> list[str]:
    """The shipped files that a file includes."""
    text = (gin_folder() / name).read_text(encoding="utf-8")
    names = re.findall(r"^include '(.*)'$", text, re.MULTILINE)
    return [inner for inner in names if (gin_folder() / inner).is_file()]
