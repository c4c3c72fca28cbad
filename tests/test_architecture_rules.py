"""The house's rules: which way imports point, how long files are, what is documented."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = [
    *sorted((ROOT / "adalink_jax").rglob("*.py")),
    *sorted((ROOT / "tasks").rglob("*.py")),
]
ALL = [
    *CODE,
    *(p for d in ("tests", "scripts", "benchmarks") for p in sorted((ROOT / d).rglob("*.py"))),
    ROOT / "setup.py",
]

# What of ours each part may import, by its longest matching name; everything may import itself and
# the modules of BASIS.
BASIS = ("adalink_jax.errors",)
MATHS = (
    "adalink_jax.checkpoints",
    "adalink_jax.methods",
    "adalink_jax.models",
    "adalink_jax.sharding",
    "adalink_jax.training",
)
ARROWS = {
    "adalink_jax": (),
    "adalink_jax.errors": (),
    "adalink_jax.methods": (),
    "adalink_jax.models": ("adalink_jax.methods.base",),
    "adalink_jax.sharding": ("adalink_jax.methods", "adalink_jax.models"),
    "adalink_jax.checkpoints": (
        "adalink_jax.methods",
        "adalink_jax.models",
        "adalink_jax.sharding",
    ),
    "adalink_jax.training": MATHS,
    "adalink_jax.adaptations": (*MATHS, "adalink_jax.verification"),
    "adalink_jax.cost": MATHS,
    "adalink_jax.cost.command": (*MATHS, "adalink_jax.config", "adalink_jax.cost"),
    "adalink_jax.describe": MATHS,
    "adalink_jax.verification": MATHS,
    "adalink_jax.convert": (*MATHS, "adalink_jax.verification"),
    "adalink_jax.export": (
        *MATHS,
        "adalink_jax.adaptations",
        "adalink_jax.stablehlo",
        "adalink_jax.verification",
    ),
    "adalink_jax.stablehlo": MATHS,
    "adalink_jax.data": ("tasks",),
    "adalink_jax.evaluation": (*MATHS, "adalink_jax.data", "tasks"),
    "adalink_jax.hosts": ("adalink_jax.roll_call",),
    "adalink_jax.roll_call": (),
    "adalink_jax.planning": (*MATHS, "adalink_jax.cost"),
    "adalink_jax.planning.command": (
        *MATHS,
        "adalink_jax.config",
        "adalink_jax.cost",
        "adalink_jax.planning",
        "adalink_jax.runs",
    ),
    "adalink_jax.preparation": (
        *MATHS,
        "adalink_jax.data",
        "adalink_jax.evaluation",
        "adalink_jax.hosts",
        "tasks",
    ),
    "adalink_jax.settings": (),
    "adalink_jax.sweep": ("adalink_jax.config",),
    "adalink_jax.flags": (),
    "adalink_jax.config": ("adalink_jax.flags", "adalink_jax.settings"),
    "adalink_jax.runs": (
        *MATHS,
        "adalink_jax.adaptations",
        "adalink_jax.cost",
        "adalink_jax.data",
        "adalink_jax.describe",
        "adalink_jax.evaluation",
        "adalink_jax.hosts",
        "adalink_jax.preparation",
        "adalink_jax.settings",
        "tasks",
    ),
    "adalink_jax.serving": (*MATHS, "adalink_jax.adaptations"),
    "adalink_jax.serving.command": ("adalink_jax.preparation", "adalink_jax.serving", "tasks"),
    "adalink_jax.report": (*MATHS, "adalink_jax.cost"),
    "adalink_jax.t5x": (*MATHS, "adalink_jax.preparation"),  # One mapping of tasks to routes.
    "tasks": (),
}
# Who may import what is not ours; for all other packages there is no rule.
OUTSIDERS = {
    "gin": ("adalink_jax.config",),
    "tensorflow": ("adalink_jax.data", "adalink_jax.evaluation", "adalink_jax.t5x", "tasks"),
    "tensorflow_datasets": ("adalink_jax.data", "adalink_jax.t5x", "tasks"),
    "seqio": ("adalink_jax.data", "adalink_jax.evaluation", "adalink_jax.t5x", "tasks"),
    "t5x": ("adalink_jax.t5x",),
    "clu": (),
    "torch": ("adalink_jax.verification",),
    "transformers": ("adalink_jax.verification",),
}
# The loop and its run folder write TensorBoard's files, and the cards' command line reads gin; all
# other maths is free of such packages.
HEAVY = ("clu", "gin", "matplotlib", "seqio", "tasks", "tensorboardX", "tensorflow")
FREE = ("adalink_jax.training.folder", "adalink_jax.training.loop", "adalink_jax.cost.command")


def name_of(path: pathlib.Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: pathlib.Path) -> set[str]:
    """All modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name their package in full"
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {member if is_module(member) else node.module for member in members}
    return found


def within(name: str, parents) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_imports_of_ours_follow_the_arrows(path):
    name = name_of(path)
    part = max((p for p in ARROWS if within(name, [p])), key=len)
    ours = {i for i in imports(path) if within(i, ["adalink_jax", "tasks"])}
    allowed = {*ARROWS[part], *BASIS, *([] if part == "adalink_jax" else [part])}
    wrong = {i for i in ours if not within(i, allowed) and i != "adalink_jax"}
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("package", OUTSIDERS)
def test_other_packages_stay_where_they_belong(package):
    wrong = [
        name_of(path)
        for path in CODE
        if any(within(i, [package]) for i in imports(path))
        and not within(name_of(path), OUTSIDERS[package])
    ]
    assert not wrong, f"{package} must not be imported by {', '.join(wrong)}"


def test_the_package_itself_imports_nothing():
    assert imports(ROOT / "adalink_jax/__init__.py") == set()


def test_scripts_call_one_module_of_ours():
    for path in (ROOT / "scripts").glob("*.py"):
        ours = {i for i in imports(path) if within(i, ["adalink_jax", "tasks"])}
        assert len(ours) == 1, path.name


def test_the_maths_loads_neither_data_nor_configuration_packages():
    light = (*MATHS, "adalink_jax.cost", "adalink_jax.settings")
    names = [name for name in map(name_of, CODE) if within(name, light) and name not in FREE]
    code = f"import sys, {', '.join(names)}; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_table_of_arrows_is_complete():
    """A new part is given its place in the house by a line of ARROWS."""
    parts = {name for name in map(name_of, CODE) if name.count(".") <= 1 and name[:5] != "tasks"}
    assert parts <= set(ARROWS)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (60 if path.parent.name == "scripts" else 500)
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
            assert node.end_lineno - first.lineno < 60, f"{node.name}, line {node.lineno}"


def test_no_module_is_named_for_nothing():
    vague = {"utils", "util", "helper", "helpers", "misc", "common", "manager"}
    assert not [name_of(path) for path in ALL if path.stem in vague]


@functools.cache
def overridable() -> frozenset[str]:
    """Names of methods that classes of ours, or flax, document where they are declared."""
    names = {"setup", "__call__"}
    for path in CODE:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                names |= {
                    m.name
                    for m in node.body
                    if isinstance(m, ast.FunctionDef) and ast.get_docstring(m)
                }
    return frozenset(names)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_what_is_public_is_documented(path):
    tree, missing = parse(path), []
    if not ast.get_docstring(tree):
        missing.append("the module")
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                inherits = node.bases and method.name in overridable()
                if not ast.get_docstring(method) and not inherits:
                    missing.append(f"{node.name}.{method.name}")
    assert not missing, f"no docstring: {', '.join(missing)}"
