"""Writes the reference pages when the site is built: a hook of mkdocs."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import pathlib
import re
from collections.abc import Iterable

os.environ.setdefault("COLUMNS", "92")  # The width of argparse's help.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from mkdocs.structure.files import File

import adalink_jax
from adalink_jax import cli
from adalink_jax.config.macros import Macro, gin_folder, macros
from adalink_jax.methods import METHODS

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

OPTIONS = (
    *("Data", "Batches", "Evaluation", "Periods", "Selection", "Precision", "Layout", "Layers"),
    "Loss",
)
BOUND = {
    "adalink_jax.runs.training.train": "what training takes beside the groups",
    "adalink_jax.runs.scoring.evaluate": "what evaluation takes beside the groups",
    **{
        f"{kind.__module__}.{kind.__name__}": f"{kind.__name__}'s fields"
        for kind in METHODS.values()
        if dataclasses.fields(kind)
    },
    **{
        f"adalink_jax.training.optimizers.{name}": "an optimizer"
        for name in ("adafactor", "adamw", "adam", "sgd", "lion")
    },
    "adalink_jax.training.optimizers.factors": "the learning rate's schedule",
    "adalink_jax.models.config.T5Config": "the architecture",
}


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
    made = {"python.md": python_page(), "gin.md": gin_page()}
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
    """A page with every macro, every group of options and every shipped gin file."""
    found = macros()
    lines = ["# Gin files", "", "Macros are set as `--gin.NAME=VALUE`, or in a gin file of yours."]
    lines += ["", "## Macros that are also environment variables", "", *heads("macro", "meaning")]
    lines += [cells(f"`{m.name}`", m.meaning) for m in found if not m.file]
    lines += ["", "## Groups of options", ""]
    lines += ["Set as `--gin.GROUP.FIELD=VALUE`; training and evaluation share them.", ""]
    for group in OPTIONS:
        lines += group_entry(getattr(adalink_jax, group))
    lines += ["## Other names that can be set", ""]
    lines += [f"* [`{name.partition('.')[2]}`][{name}]: {about}" for name, about in BOUND.items()]
    for kind, about in KINDS.items():
        lines += ["", f"## {kind}/", "", about, ""]
        for path in sorted((gin_folder() / kind).rglob("*.gin")):
            lines += file_entry(path, [m for m in found if m.file == name_of(path)])
    return "\n".join(lines)


def group_entry(group: type) -> list[str]:
    """A group of options: what it is for, and each field with its default and meaning."""
    about, _, described = (inspect.getdoc(group) or "").partition("\n\nAttributes:\n")
    meanings = dict(re.findall(r"^  (\w+): ((?:.+\n?(?:    .*\n?)*))", described, re.MULTILINE))
    lines = [f"### {group.__name__}", "", inline(about), "", *heads("option", "default", "meaning")]
    for field in dataclasses.fields(group):
        required = field.default is dataclasses.MISSING
        default = "*required*" if required else f"`{field.default!r}`"
        name = f"`{group.__name__}.{field.name}`"
        lines.append(cells(name, default, inline(meanings[field.name])))
    return [*lines, ""]


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
