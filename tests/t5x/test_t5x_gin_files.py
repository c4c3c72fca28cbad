"""The gin files for T5X: T5X's own gin reads them, with other rules than this project's."""

import ast
import dataclasses
import importlib
import importlib.util  # gin 0.5's reader of files uses it without importing it.
import inspect
import pathlib
import re

import gin
import pytest
from gin import config_parser

from adalink_jax.config.gin_files import gin_folder, shipped

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = gin_folder()
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in (FOLDER / "t5x").rglob("*.gin"))
# What has a file here that has one in gin/methods too.
OF_METHODS = [
    path.stem for path in (FOLDER / "methods").glob("*.gin") if f"t5x/methods/{path.name}" in FILES
]
KINDS = ("methods", "models", "optimizers", "runs", "tasks")


class Names(config_parser.ParserDelegate):
    """Remembers what values refer to."""

    def __init__(self):
        self.macros, self.references = set(), set()

    def configurable_reference(self, scoped_configurable_name, evaluate):
        self.references.add(scoped_configurable_name.rpartition("/")[2])
        return scoped_configurable_name

    def macro(self, macro_name):
        self.macros.add(macro_name)
        return macro_name


class File:
    """What a gin file says, by gin's own parser."""

    def __init__(self, name: str):
        self.text = (FOLDER / name).read_text(encoding="utf-8")
        names = Names()
        statements = list(config_parser.ConfigParser(self.text, names))
        kind = config_parser.BindingStatement
        bindings = [s for s in statements if isinstance(s, kind)]
        self.keys = [
            f"{s.scope}/{s.selector}.{s.arg_name}" if s.arg_name else s.selector for s in bindings
        ]
        declared = re.findall(r"^(\w+) = %gin.REQUIRED$", self.text, re.MULTILINE)
        self.macros = {s.selector for s in bindings if not s.arg_name} - set(declared)
        self.read = names.macros - {"gin.REQUIRED"}
        self.bound = {(s.selector, s.arg_name) for s in bindings if s.arg_name}
        self.references = names.references
        self.includes = [
            s.filename for s in statements if isinstance(s, config_parser.IncludeStatement)
        ]
        self.modules = {}
        for s in statements:
            if isinstance(s, config_parser.ImportStatement) and s.module != "__main__":
                self.modules[s.alias or s.module.rpartition(".")[2]] = s.module


def header(name: str) -> dict[str, list[str]]:
    text = File(name).text
    text = " ".join(re.findall(r"^# *(.*)$", text.partition("\n\n")[0], re.MULTILINE))
    found = re.search(r"Provides: (.*) Requires: (.*) Commonly overridden: (.*)", text)
    assert found, f"{name} opens with Provides, Requires and Commonly overridden, in this order"
    names = ("provides", "requires", "overridden")
    return {
        key: re.findall(r"\b[A-Z][A-Z_]{2,}\b", part)
        for key, part in zip(names, found.groups(), strict=True)
    }


def test_files_are_of_methods_and_of_these_kinds():
    assert {name.split("/")[1] for name in FILES} == set(KINDS)
    assert {"stored", *OF_METHODS} == {
        pathlib.PurePath(name).stem for name in FILES if "/methods/" in name
    }


@pytest.mark.parametrize("name", FILES)
def test_header_says_what_the_file_sets_and_needs(name):
    file, stated = File(name), header(name)
    assert set(stated["provides"]) == file.macros
    assert file.read - file.macros <= set(stated["requires"])
    assert len(file.keys) == len(set(file.keys))


@pytest.mark.parametrize("name", FILES)
def test_includes_and_imports_are_there(name):
    file = File(name)
    for included in file.includes:
        ours = (FOLDER / included).is_file()
        assert ours or re.fullmatch(r"t5x/configs/runs/\w+\.gin", included)
    for module in file.modules.values():
        if module.split(".")[0] in ("adalink_jax", "tasks"):
            path = ROOT.joinpath(*module.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("name", FILES)
def test_what_is_bound_of_ours_exists(name):
    """Read from the code, so that it needs no T5X."""
    file = File(name)
    named = {selector for selector, _ in file.bound} | file.references
    for alias, configurable in (key.split(".") for key in named if key.count(".") == 1):
        module = file.modules.get(alias, "")
        if module.startswith("adalink_jax.t5x"):
            parameters = declared(module, configurable)
        elif module.startswith(("adalink_jax", "tasks")):
            found = getattr(importlib.import_module(module), configurable)
            parameters = set(inspect.signature(found).parameters)
        else:
            continue
        bound = {key for selector, key in file.bound if selector == f"{alias}.{configurable}"}
        assert bound <= parameters or "**" in parameters, (name, configurable)


def declared(module: str, name: str) -> set[str]:
    """Parameters of a function, or of a class by its constructor or its fields."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    (found,) = (node for node in tree.body if getattr(node, "name", "") == name)
    if isinstance(found, ast.ClassDef):
        made = [n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not made:
            return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign)}
        found = made[0]
    arguments = found.args
    names = {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    return names | ({"**"} if arguments.kwarg else set())


@pytest.mark.parametrize("run", [name for name in FILES if "/runs/" in name])
@pytest.mark.parametrize("method", [name for name in FILES if "/methods/" in name])
def test_files_of_a_run_set_different_keys(method, run):
    """But for a run's OPTIMIZER: where nothing trains it is None."""
    files = [method, *(n for n in File(method).includes if (FOLDER / n).is_file()), run]
    files += [name for name in FILES if "/tasks/" in name]
    keys = [key for name in files for key in File(name).keys]
    doubled = {key for key in keys if keys.count(key) > 1}
    required = re.compile(r"^(\w+) = %gin.REQUIRED$", re.MULTILINE)
    assert doubled <= {"OPTIMIZER", *required.findall("\n".join(File(n).text for n in files))}
    # Every macro of ours is read somewhere, by us or by T5X's files.
    read = set().union(*(File(name).read for name in files))
    ours = {macro for name in files for macro in File(name).macros if "/methods/" in name}
    assert ours <= read | {"LEARNING_RATE", "PACK"}


def test_methods_have_the_settings_of_this_projects_own_files():
    """RANK, ROUTES, LEARNING_RATE and PROMPT_LENGTH are those of gin/methods."""
    for method in OF_METHODS:
        one, other = (
            dict(re.findall(r"^([A-Z_]+) = ([\d.e-]+)$", (FOLDER / f).read_text(), re.MULTILINE))
            for f in (f"methods/{method}.gin", f"t5x/methods/{method}.gin")
        )
        assert one == other and "LEARNING_RATE" in one


@pytest.mark.parametrize("name", OF_METHODS)
def test_methods_are_those_of_this_projects_own_files(name):
    """As gin itself builds them, but for rates of their own, which T5X's optimizers lack."""
    # What is included needs T5X, and sets nothing of the method.
    text = re.sub("^include .*", "", File(f"t5x/methods/{name}.gin").text, flags=re.MULTILINE)
    gin.clear_config()
    try:
        gin.parse_config(text)
        made = gin.query_parameter("METHOD/gin.macro.value").scoped_configurable_fn()
    finally:
        gin.clear_config()
    ours = shipped("tiny", name, [])[1]
    assert made == (dataclasses.replace(ours, rate_factors=None) if ours.rate_factors else ours)
