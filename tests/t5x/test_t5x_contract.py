"""What the bridge leans on in T5X, pinned as data in tests/golden/t5x/contract.json.

Without T5X the bridge's code and gin files are held against the data; where T5X is installed, the
data is held against T5X (`--update-goldens` rewrites it).
"""

import ast
import importlib
import inspect
import json
import pathlib
import re

import pytest

from adalink_jax.config.gin_files import gin_folder

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = sorted((ROOT / "adalink_jax/t5x").glob("*.py"))
GIN = sorted((gin_folder() / "t5x").rglob("*.gin"))
CONTRACT = json.loads((ROOT / "tests/golden/t5x/contract.json").read_text(encoding="utf-8"))
# What T5X calls of ours, or calls ours by, without our naming it.
CALLED = (
    "t5x.checkpoints.RestoreStateTransformationFn.__call__",
    "t5x.checkpoints.SaveStateTransformationFn.__call__",
    "t5x.examples.t5.network.Transformer.__call__",
    "t5x.examples.t5.network.Transformer.decode",
    "t5x.examples.t5.network.Transformer.encode",
    "t5x.models.BaseTransformerModel.input_vocabulary",
    "t5x.models.EncoderDecoderModel.__init__",
)
# The stock model files of which one comes before ours; they set the macros that ours read.
MODEL_FILES = ("t5x/examples/t5/t5_1_0/base.gin", "t5x/examples/t5/t5_1_1/base.gin")
SCRIPTS = {"train_script": "train", "eval_script": "eval", "infer_script": "infer"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def used_in_code() -> set[str]:
    """Every dotted name of T5X in the bridge, and the methods that its classes override."""
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = dotted(node) if isinstance(node, ast.Attribute) else ""
            if name.startswith("t5x.") and name.count(".") > 1:
                found.add(name)
            if isinstance(node, ast.ClassDef):
                for base in map(dotted, node.bases):
                    if base.startswith("t5x."):
                        found |= {f"{base}.{name}" for name in overridden(node)}
    return found


def overridden(node: ast.ClassDef) -> set[str]:
    """Names of methods that are the parent's: those that call it."""
    return {
        item.name
        for item in node.body
        if isinstance(item, ast.FunctionDef) and f".{item.name}(" in ast.unparse(item)
    }


def bound_in_gin() -> dict[str, set[str]]:
    """Every configurable of T5X in the gin files, and its parameters that are bound there."""
    found = {}
    for path in GIN:
        text = path.read_text(encoding="utf-8")
        aliases = {}
        for package, name, alias in re.findall(
            r"^from (t5x[\w.]*) import (\w+)(?: as (\w+))?$", text, re.MULTILINE
        ):
            aliases[alias or name] = f"{package}.{name}"
        for alias in re.findall(r"^import __main__ as (\w+)$", text, re.MULTILINE):
            aliases[alias] = f"t5x.{SCRIPTS[alias]}"
        for alias, name, parameter in re.findall(
            r"^(?:\w+/)?(\w+)\.(\w+)\.(\w+) =", text, re.MULTILINE
        ):
            if alias in aliases:
                found.setdefault(f"{aliases[alias]}.{name}", set()).add(parameter)
        for alias, name in re.findall(r"@(?:\w+/)?(\w+)\.(\w+)", text):
            if alias in aliases:
                found.setdefault(f"{aliases[alias]}.{name}", set())
    return found


def macros(pattern: str, text: str) -> set[str]:
    return set(re.findall(pattern, text, re.MULTILINE)) - {"gin"}


def stock_files() -> set[str]:
    """The gin files of T5X that ours include or come after."""
    ours = {path.relative_to(gin_folder()).as_posix() for path in GIN}
    text = "\n".join(path.read_text(encoding="utf-8") for path in GIN)
    return {*re.findall(r"^include '(.*)'$", text, re.MULTILINE), *MODEL_FILES} - ours


def test_the_bridge_names_nothing_beyond_the_contract():
    names = used_in_code()
    assert {"t5x.models.EncoderDecoderModel", "t5x.checkpoints.load_t5x_checkpoint"} <= names
    assert "t5x.models.EncoderDecoderModel._compute_logits" in names
    assert names | set(CALLED) | set(bound_in_gin()) == set(CONTRACT["signatures"])


def test_gin_binds_parameters_that_t5x_has():
    bound = bound_in_gin()
    assert "fallback_to_scratch" in bound["t5x.utils.RestoreCheckpointConfig"]
    for name, parameters in bound.items():
        assert parameters <= set(CONTRACT["signatures"][name]), name


def test_gin_reads_macros_that_our_files_or_t5xs_set():
    assert stock_files() == set(CONTRACT["macros"])
    text = "\n".join(path.read_text(encoding="utf-8") for path in GIN)
    read = macros(r"%([A-Z_]+)", text)
    ours = macros(r"^([A-Z_]+) *=", text)
    runs = set().union(*(v for k, v in CONTRACT["macros"].items() if k not in MODEL_FILES))
    models = set.intersection(*(set(CONTRACT["macros"][name]) for name in MODEL_FILES))
    assert read <= ours | runs | models
    assert "Z_LOSS" in read & models - ours


def test_the_network_takes_what_t5x_passes():
    """T5X's parameters in T5X's order, then this network's own by keyword."""
    from adalink_jax.models.t5 import T5Config, Transformer

    for method in ("__call__", "encode", "decode"):
        theirs = CONTRACT["signatures"][f"t5x.examples.t5.network.Transformer.{method}"]
        ours = inspect.signature(getattr(Transformer, method)).parameters
        assert list(ours)[: len(theirs)] == theirs
        more = list(ours.values())[len(theirs) :]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is None for p in more)
    fields = set(inspect.signature(T5Config).parameters)
    assert set(CONTRACT["signatures"]["t5x.examples.t5.network.T5Config"]) <= fields


def test_overrides_take_what_t5x_passes():
    tree = ast.parse((ROOT / "adalink_jax/t5x/models.py").read_text(encoding="utf-8"))
    (model,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    for item in model.body:
        name = f"t5x.models.EncoderDecoderModel.{getattr(item, 'name', '')}"
        if name in CONTRACT["signatures"]:
            given = [argument.arg for argument in item.args.args]
            theirs = CONTRACT["signatures"][name]
            assert given == theirs[: len(given)]
            assert item.args.kwarg or len(given) == len(theirs)


@pytest.mark.slow
def test_t5x_is_as_the_contract_says(t5x, update_goldens):
    def resolve(name: str):
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ImportError:
                continue
            for part in parts[count:]:
                found = getattr(found, part)
            return found
        raise AssertionError(name)

    signatures = {}
    for name in sorted(used_in_code() | set(CALLED) | set(bound_in_gin())):
        found = resolve(name)
        known = inspect.signature(found).parameters if callable(found) else ()
        signatures[name] = list(known)
    package = pathlib.Path(t5x.__path__[0]).parent
    stock = {
        name: sorted(macros(r"^([A-Z_]+) *=", (package / name).read_text(encoding="utf-8")))
        for name in sorted(stock_files())
    }
    update_goldens("t5x/contract.json", {"signatures": signatures, "macros": stock})
