"""What is known of a method only where methods are: its class, its fields, its name."""

import ast
import dataclasses
import pathlib

import pytest

from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "adalink_jax"
# The formats of another library, which has names of its own for some methods' fields.
EXCEPT = [
    *(PACKAGE / "checkpoints/formats/peft").glob("*.py"),
    *(PACKAGE / "methods").glob("*.py"),
]
MODULES = sorted(set(PACKAGE.rglob("*.py")) - set(EXCEPT))
CLASSES = {cls.__name__ for cls in METHODS.values()}
# A whole model is a base too, and bases are told by that name.
NAMES = {name for name, cls in METHODS.items() if not cls.trains_base}
FIELDS = {f.name for cls in METHODS.values() for f in dataclasses.fields(cls)} - {*dir(Method)}


def name_of(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def is_method(node: ast.AST) -> bool:
    """Whether an expression is called as methods are, e.g. ``case.method`` or ``self._kind``."""
    return name_of(node).lstrip("_") in ("method", "kind", "exported", "wide")


def asks(call: ast.Call) -> bool:
    """Whether a call looks at, or sets, what is not everybody's."""
    function, first = name_of(call.func), call.args[0]
    fixed = {argument.value for argument in call.args if isinstance(argument, ast.Constant)}
    if function in ("getattr", "hasattr"):
        return bool(fixed & FIELDS) or (is_method(first) and bool(fixed))
    if function == "isinstance":
        return name_of(first) == "method"
    named = {keyword.arg for keyword in call.keywords}
    return function == "replace" and is_method(first) and bool(named & FIELDS)


def told(tree: ast.AST) -> list[str]:
    """What a module says of methods that only methods should."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            of_method = isinstance(node, ast.Attribute) and is_method(node.value)
            wrong = name_of(node) in CLASSES or (of_method and name_of(node) in FIELDS)
        elif isinstance(node, ast.ImportFrom):
            wrong = any(alias.name in CLASSES for alias in node.names)
        elif isinstance(node, ast.Compare):
            parts = (node.left, *node.comparators)
            wrong = any(isinstance(part, ast.Constant) and part.value in NAMES for part in parts)
        else:
            wrong = isinstance(node, ast.Call) and bool(node.args) and asks(node)
        found += [f"line {node.lineno}: {ast.unparse(node)}"] if wrong else []
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_module_names_a_methods_class_or_field(path):
    assert not told(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "method.rank",
        "self._kind.alpha",
        "case.method.linears",
        "getattr(method, 'routes', 1)",
        "hasattr(thing, 'rank')",
        "isinstance(method, Method)",
        "from adalink_jax.methods.lora import LoRA",
        "lora.LoRA",
        "method_name == 'lora'",
        "dataclasses.replace(method, rank=3)",
    ],
)
def test_it_would_be_seen(code):
    assert told(ast.parse(code))


def test_other_things_may_have_such_names():
    assert not told(
        ast.parse("a.rank, replace(config, dropout_rate=0), method.routes, method.size")
    )
