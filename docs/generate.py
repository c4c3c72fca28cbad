"""Writes the reference pages when the site is built: a hook of mkdocs."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

os.environ.setdefault("COLUMNS", "92")  # The width of argparse's help.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mkdocs.structure.files import File

import adalink_jax
from adalink_jax import cli
from adalink_jax.config.macros import Macro, gin_folder, macros
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs import description, options, scoring, training
from adalink_jax.training import optimizers
from adalink_jax.values import expected

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What the folders of gin/ are for; files of one folder are alternatives of each other.
KINDS = {
    "runs": "What a command does: every macro that it reads, most of them required.",
    "methods": "What trains: `METHOD`, its settings, learning rate and optimizer.",
    "optimizers": "What trains it in place of the method's `OPTIMIZER`; goes after the method.",
    "schedules": "How the learning rate changes; goes after the method.",
    "models": "The architecture, `MODEL`. Not needed where a checkpoint says it.",
    "experiments": "A run, ready but for what only you know. Only these include other files.",
    "hardware": "How a model lies on a machine. They set options and no macros.",
    "t5x": "The same methods for T5X's launcher ([how](../howto/t5x.md)).",
}

# Everything whose parameters a gin file can set, under a title each.
TARGETS = {
    "Groups of options": options.GROUPS,
    "Runs": (training.train, scoring.evaluate, description.describe),
    "Optimizers and schedules": (
        *(getattr(optimizers, name) for name in ("adafactor", "adamw", "adam", "sgd", "lion")),
        optimizers.factors,
    ),
    "The architecture": (T5Config,),
    "Methods": tuple(kind for kind in METHODS.values() if dataclasses.fields(kind)),
}
# Parameters that a run gives itself.
GIVEN = ("configuration", "json")
# A line of a gin file that sets a parameter: what it belongs to, its name and its value.
BINDING = re.compile(r"^(?:\w+\.)*(\w+)\.(\w+) *= *(.*?)(?: +#.*)?$", re.MULTILINE)


def on_config(config):
    """Adds the pages of the API to the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"Parts": [f"reference/api/{part}.md" for part in parts()]})
    return config


def on_files(files, config):
    """Adds the generated pages to those of the folder."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def pages() -> dict[str, str]:
    """The generated pages by their names below reference/."""
    made = {"python.md": python_page(), "gin.md": gin_page(), "settings.md": settings_page()}
    made["command_line.md"] = command_line_page()
    return made | {f"api/{part}.md": api_page(part) for part in parts()}


def parts() -> list[str]:
    """The parts of the package with an API, in the order of the architecture's table."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    return [part for part in named if modules(part)]


def modules(part: str) -> list[str]:
    """The modules of a part that define something for others, beside commands' own."""
    place = ROOT / ("tasks" if part == "tasks" else f"adalink_jax/{part.replace('.', '/')}")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    if part.endswith("command"):
        return []
    found = []
    for path in files:
        if path.stem == "command" or not (path.is_file() and defines(path)):
            continue
        names = path.relative_to(ROOT).with_suffix("").parts
        found.append(".".join(names[:-1] if names[-1] == "__init__" else names))
    return found


def defines(path: pathlib.Path) -> bool:
    """Whether a module defines a public name, beside what it imports."""
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign)
        and not getattr(node, "name", "").startswith("_")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


def api_page(part: str) -> str:
    """A page with every public module of a part."""
    return "\n\n".join([f"# {part}", *(f"::: {name}" for name in modules(part))])


def python_page() -> str:
    """A page with the names of ``import adalink_jax as al``, each with its place in the API."""
    lines = ["# import adalink_jax as al", "", inline(adalink_jax.__doc__ or "")]
    lines += ["", "| name | |", "|---|---|"]
    for name in sorted(adalink_jax._HOME_OF, key=str.lower):
        value = getattr(adalink_jax, name)
        if callable(value):
            link = f"[`al.{name}`][{value.__module__}.{name}]"
            lines.append(cells(link, (value.__doc__ or "").partition("\n")[0]))
        else:  # METHODS
            lines.append(cells(f"[`al.{name}`](../methods.md)", "the methods by name"))
    return "\n".join(lines)


def gin_page() -> str:
    """A page with every shipped gin file, its macros and its text."""
    found = macros()
    lines = ["# Gin files", "", "Macros are set as `--gin.NAME=VALUE`, or in a gin file of yours."]
    lines += ["[Settings](settings.md) lists all that they can set."]
    for kind, about in KINDS.items():
        lines += ["", f"## {kind}/", "", about, ""]
        for path in sorted((gin_folder() / kind).rglob("*.gin")):
            lines += file_entry(path, [m for m in found if m.file == name_of(path)])
    return "\n".join(lines)


def settings_page() -> str:
    """A page with every macro and every parameter: type, default, meaning, and its files."""
    lines = [
        "# Settings",
        "",
        "Set as `--gin.NAME=VALUE`, or in a gin file of yours. What a value may",
    ]
    lines += ["be is checked where it is bound. Groups go by their own name: `Batches.packing`."]
    lines += ["", "## Macros", "", *heads("macro", "type", "default", "meaning", "files")]
    found = [macro for macro in macros() if not macro.file.startswith("t5x/")]
    for name in sorted({macro.name for macro in found}):
        lines.append(macro_entry(name, [macro for macro in found if macro.name == name]))
    for title, targets in TARGETS.items():
        lines += ["", f"## {title}", ""]
        for target in targets:
            lines += target_entry(target)
    return "\n".join(lines)


def macro_entry(name: str, found: list[Macro]) -> str:
    """A line about a macro, from what the gin files say of it."""
    bound = [one for one in bindings() if one.value == f"%{name}"]
    bound.sort(key=lambda one: one.file != "runs/finetune.gin")
    types = [
        expected(parameters(target)[one.parameter].annotation)
        for one in bound
        for target in targets_of(one)
    ]
    own = next((m for m in found if m.file.startswith("runs/")), found[0])
    if not own.file:
        default = "*not set*"
    elif own.required:
        default = "*required*"
    elif own.file.startswith("runs/") or len({m.default for m in found}) == 1:
        default = f"`{own.default}`"
    else:
        default = "*by file*"
    meaning = next(m.meaning for m in found if m.meaning)
    files = named(sorted({m.file for m in found if m.file}))
    return cells(f"`{name}`", [*types, "a path"][0], default, meaning, files)


def target_entry(target: Callable) -> list[str]:
    """A function or class: each parameter with its type, default and meaning, and who sets it."""
    doc = inspect.getdoc(target) or ""
    about = inline(re.split(r"\n\n(?:Args|Attributes):", doc)[0].split("\n\n")[0])
    lines = [f"### {short(target)}", "", about, ""]
    lines += heads("parameter", "type", "default", "meaning", "files")
    meanings = dict(re.findall(r"^  (\w+): ((?:.+\n?(?:    .*\n?)*))", doc, re.MULTILINE))
    for name, parameter in parameters(target).items():
        if parameter.annotation in options.GROUPS:
            continue  # Its own fields are set.
        missing = parameter.default is parameter.empty
        default = "*required*" if missing else f"`{parameter.default!r}`"
        files = sorted({one.file for one in bindings()
                        if one.parameter == name and target in targets_of(one)})  # fmt: skip
        meaning = inline(meanings.get(name, ""))
        lines.append(
            cells(f"`{name}`", expected(parameter.annotation), default, meaning, named(files))
        )
    return [*lines, ""]


def short(target: Callable) -> str:
    """A name as gin files have it: of a group alone, else with its module."""
    module = {"training": "runs", "scoring": "runs", "description": "runs", "config": "t5"}
    last = target.__module__.rpartition(".")[2]
    return (
        target.__name__
        if target in options.GROUPS
        else f"{module.get(last, last)}.{target.__name__}"
    )


def parameters(target: Callable) -> dict[str, inspect.Parameter]:
    """The parameters that a gin file may set; a schedule comes from the run."""
    given = (*GIVEN, *(["learning_rate"] if target.__module__ == optimizers.__name__ else []))
    found = inspect.signature(target).parameters
    return {name: one for name, one in found.items() if name not in given}


class Binding(NamedTuple):
    """A line of a gin file that sets a parameter."""

    file: str
    target: str
    parameter: str
    value: str


@functools.cache
def bindings() -> list[Binding]:
    """What all shipped gin files set, but those for T5X."""
    files = sorted(gin_folder().rglob("*.gin"))
    names = [(path, name_of(path)) for path in files if not name_of(path).startswith("t5x/")]
    return [
        Binding(name, *found)
        for path, name in names
        for found in BINDING.findall(path.read_text(encoding="utf-8"))
    ]


def targets_of(binding: Binding) -> list[Callable]:
    """The functions and classes that a binding can mean: one, as their names differ."""
    return [
        target
        for some in TARGETS.values()
        for target in some
        if target.__name__ == binding.target and binding.parameter in parameters(target)
    ]


def named(files: Iterable[str]) -> str:
    """Gin files in a cell: their names, or how many of a folder there are."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(file.partition("/")[0], []).append(f"`{file}`")
    return ", ".join(
        ", ".join(some) if len(some) <= 3 else f"{len(some)} files of `{folder}/`"
        for folder, some in folders.items()
    )


def file_entry(path: pathlib.Path, found: Iterable[Macro]) -> list[str]:
    """A gin file: its header, its macros, and its text."""
    text = path.read_text(encoding="utf-8").rstrip()
    header = re.match(r"(?:#.*\n)+", text + "\n")[0]
    about = re.split(r"\n\s*\n|\n#\n", header)[0]
    lines = [f"### {name_of(path)}", "", inline(about.replace("#", " ")), ""]
    rows = [
        cells(f"`{m.name}`", "*required*" if m.required else f"`{m.default}`", m.meaning)
        for m in found
    ]
    if rows:
        lines += [*heads("macro", "value", "meaning"), *rows, ""]
    source = "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
    return [*lines, f'??? note "{name_of(path)}"', "", "    ```python", source + "    ```", ""]


def name_of(path: pathlib.Path) -> str:
    """A gin file as flags name it."""
    return path.relative_to(gin_folder()).as_posix()


def heads(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [cells(*names), "|---" * len(names) + "|"]


def cells(*texts: str) -> str:
    """A line of a table."""
    return "".join(f"| {text.replace('|', chr(92) + '|')} " for text in texts) + "|"


def inline(text: str) -> str:
    """Text on one line."""
    return " ".join(text.split())


def command_line_page() -> str:
    """A page with the help of every command."""
    lines = ["# Command line", "", "```text", cli.help_text(), "```", ""]
    for title, commands in cli.GROUPS.items():
        lines += [f"## {title}", ""]
        for name, command in commands.items():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                cli.main([name, "--help"])
            about = f"{command.help[0].upper()}{command.help[1:]}."
            lines += [f"### adalink {name}", "", about, ""]
            text = printed.getvalue().rstrip().replace(f"{ROOT}/", "")  # No path of this machine.
            lines += ["```text", text, "```", ""]
    return "\n".join(lines)
