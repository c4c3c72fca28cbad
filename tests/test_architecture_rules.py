"""The house's rules: which way imports point, how long files are, what is documented."""

import ast
import functools
import pathlib
import re
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

# Everything may import itself and these.
BASIS = tuple(
    f"adalink_jax.{part}"
    for part in (
        "errors",
        "files",
        "locks",
        "pages",
        "shipped",
        "signals",
        "values",
        "compile_cache",
        "progress",
        "notices",
    )
)


def _arrows() -> dict[str, tuple[str, ...]]:
    """What of ours each part may import, from the table of docs/architecture.md."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    arrows = {"adalink_jax": ()}
    for part, allowed in re.findall(r"^\| `([\w.]+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE):
        arrows[_ours(part)] = tuple(map(_ours, re.findall(r"`([\w.]+)`", allowed)))
    return arrows


def _ours(part: str) -> str:
    return part if part == "tasks" else f"adalink_jax.{part}"


ARROWS = _arrows()
MATHS = (
    "adalink_jax.checkpoints",
    "adalink_jax.methods",
    "adalink_jax.models",
    "adalink_jax.distributed.sharding",
    "adalink_jax.training",
)
# Who may import what is not ours; for all other packages there is no rule.
OUTSIDERS = {
    "gin": ("adalink_jax.config.gin_files", "adalink_jax.config.reader"),
    "tensorflow": (
        "adalink_jax.data",
        "adalink_jax.evaluation",
        "adalink_jax.runs.board",
        "adalink_jax.t5x",
        "tasks",
    ),
    "tensorflow_datasets": ("adalink_jax.data", "adalink_jax.t5x", "tasks"),
    "seqio": (
        "adalink_jax.data",
        "adalink_jax.evaluation",
        "adalink_jax.t5x",
        "tasks",
    ),
    "t5x": ("adalink_jax.t5x",),
    "clu": (),
    "torch": ("adalink_jax.adapters.probe",),
    "transformers": ("adalink_jax.adapters.probe",),
}
# A run's folder writes TensorBoard's files by TensorFlow, and the cards' command line reads gin.
# All other maths is free of such packages.
HEAVY = ("clu", "gin", "matplotlib", "seqio", "tasks", "tensorflow")
FREE = ("adalink_jax.training.loop", "adalink_jax.tools.cost.command")


def name_of(path: pathlib.Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: pathlib.Path) -> set[str]:
    """All modules that a file imports, at any depth of its code."""
    return {name for node in ast.walk(parse(path)) for name in _imported(node)}


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"line {node.lineno}: imports name their package in full"
    members = [f"{node.module}.{alias.name}" for alias in node.names]
    return {member if is_module(member) else node.module or "" for member in members}


def within(name: str, parents) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_imports_of_ours_follow_the_arrows(path):
    name = name_of(path)
    part = max((p for p in ARROWS if within(name, [p])), key=len)
    if path == ROOT / "adalink_jax/__init__.py":
        return  # It names what it loads later.
    ours = {i for i in imports(path) if within(i, ["adalink_jax", "tasks"])}
    allowed = {*ARROWS[part], *BASIS, *([] if part == "adalink_jax" else [part])}
    wrong = {i for i in ours if not within(i, allowed) and i != "adalink_jax"}
    assert not wrong, f"{name} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_tasks_are_imported_where_they_are_needed(path):
    """Then TensorFlow is loaded by `notices.load_tasks`, in silence, and only by who needs it."""
    top = {i for node in parse(path).body for i in _imported(node)}
    assert name_of(path).startswith("tasks") or not {i for i in top if within(i, ["tasks"])}


@pytest.mark.parametrize("package", OUTSIDERS)
def test_other_packages_stay_where_they_belong(package):
    wrong = [
        name_of(path)
        for path in CODE
        if any(within(i, [package]) for i in imports(path))
        and not within(name_of(path), OUTSIDERS[package])
    ]
    assert not wrong, f"{package} must not be imported by {', '.join(wrong)}"


# What turns data into code. gin's parser imports what a file names, so it gets the user's alone.
EXECUTING = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml")
CALLS = ("eval", "exec", "__import__", "run_path", "run_module", "import_module", "parse_config")
CALLERS = {
    # The name is one of ours, or stands in a gin file of the user's.
    "adalink_jax": ("import_module",),
    "adalink_jax.cli": ("import_module",),
    "adalink_jax.tools.completion": ("import_module",),
    "adalink_jax.config.gin_files": ("import_module", "parse_config"),
    "adalink_jax.config.reader": ("import_module",),
    "adalink_jax.adapters.probe": ("eval",),  # PyTorch's: a model's mode.
}


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_nothing_executes_or_unpickles_data(path):
    """Bases, adapters, records and requests may come from anybody."""
    assert not {name for name in imports(path) if within(name, EXECUTING)}
    called = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            called |= {name} & {*CALLS}
            assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, node.lineno
            owner = getattr(getattr(node.func, "value", None), "id", "")
            assert (owner, name) not in {("torch", "load"), ("os", "system")}, node.lineno
    assert called <= {*CALLERS.get(name_of(path), ())}, f"{name_of(path)} calls {called}"


def test_the_package_itself_loads_nothing():
    code = "import sys, adalink_jax; print([n for n in sys.modules if n[:12] == 'adalink_jax.'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_scripts_call_one_module_of_ours():
    for path in (ROOT / "scripts").glob("*.py"):
        ours = {i for i in imports(path) if within(i, ["adalink_jax", "tasks"])}
        assert len(ours) == (path.name != "chaos.py"), path.name  # That one calls the tests.


def test_the_maths_loads_neither_data_nor_configuration_packages():
    light = (*MATHS, "adalink_jax.tools.cost", "adalink_jax.config.records")
    names = [name for name in map(name_of, CODE) if within(name, light) and name not in FREE]
    code = f"import sys, {', '.join(names)}; print(*(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_table_of_arrows_is_complete():
    """A new part is given its place in the house by a line of the table."""
    parts = {name for name in map(name_of, CODE) if name.count(".") == 1 and name[:5] != "tasks"}
    parts |= {name for name in map(name_of, CODE) if re.fullmatch(r"adalink_jax.tools.\w+", name)}
    assert parts - {"adalink_jax.tools"} <= set(ARROWS)


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
