"""Writes the reference pages when the site is built: a hook of mkdocs."""

import ast
import os
import pathlib
import re
import subprocess
import sys

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ("train", "eval", "describe", "cost", "plan", "report", "sweep", "convert", "export")


def on_config(config):
    """Adds the pages of the API to the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"API": [f"reference/api/{part}.md" for part in parts()]})
    return config


def on_files(files, config):
    """Adds the generated pages to those of the folder."""
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    return files


def pages() -> dict[str, str]:
    """The generated pages by their names below reference/."""
    made = {"gin.md": gin_page(), "command_line.md": command_line_page()}
    return made | {f"api/{part}.md": api_page(part) for part in parts()}


def parts() -> list[str]:
    """The parts of the package, in the order of the architecture's table."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    return [part for part in named if not part.endswith(".command")]


def api_page(part: str) -> str:
    """A page with every public module of a part."""
    place = ROOT / ("tasks" if part == "tasks" else f"adalink_jax/{part.replace('.', '/')}")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    lines = [f"# {part}", ""]
    for path in files:
        if not has_public_names(path):
            continue
        names = path.relative_to(ROOT).with_suffix("").parts
        lines += [f"::: {'.'.join(names[:-1] if names[-1] == '__init__' else names)}", ""]
    return "\n".join(lines)


def has_public_names(path: pathlib.Path) -> bool:
    """Whether a module defines something for others, beside what it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AnnAssign))
        and not getattr(node, "name", "").startswith("_")
        for node in tree.body
    )


def gin_page() -> str:
    """A page with every shipped gin file: its header, and the file."""
    folder = ROOT / "gin"
    lines = ["# Gin files", ""]
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        lines += [f"## {kind.name}", ""]
        for path in sorted(kind.rglob("*.gin")):
            text = path.read_text(encoding="utf-8").rstrip()
            lines += [f"### {path.relative_to(folder)}", "", "```python", text, "```", ""]
    return "\n".join(lines)


def command_line_page() -> str:
    """A page with the help of every command."""
    lines = ["# Command line", ""]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "88", "JAX_PLATFORMS": "cpu"}
    for name in SCRIPTS:
        command = [sys.executable, str(ROOT / f"scripts/{name}.py"), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        lines += [f"## {name}", "", "```text", done.stdout.rstrip(), "```", ""]
    return "\n".join(lines)
