"""Checks this installation: versions, devices, folders and data; and says how to fix what fails.

adalink doctor

The exit code is 0 if adalink train and adalink eval can run, else 2.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import adalink_jax
from adalink_jax import compile_cache
from adalink_jax.errors import UserError

# What each extra is for.
_EXTRAS = {
    "plan": "adalink plan compiles for TPUs with it",
    "int8": "frozen bases in int8 (Precision.frozen_dtype = 'int8')",
    "wandb": "values of runs go to Weights & Biases too (WANDB)",
    "tensorboard": "shows the curves of a run: tensorboard --logdir MODEL_DIR/tensorboard",
    "reference": "adalink convert compares its copies with it, benchmarks and tests too",
}
_BASES = ("mini", "mini_raw")


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
      state: "ok", "--" (missing, but not needed to train) or "!!" (train and eval cannot run).
      text: what was found.
      mend: a command line that fixes it, or "".
    """

    state: str
    text: str
    mend: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: every check is always made."""


def run(arguments: argparse.Namespace) -> int:
    """Prints all findings; returns the exit code."""
    del arguments
    ill = 0
    for title, findings in (
        ("Packages", packages()),
        ("Devices", devices()),
        ("Folders", folders()),
        ("Data", data()),
    ):
        print(title)
        for state, text, mend in findings:
            ill += state == "!!"
            print(f"  {state} {text}" + (f"\n     mend it: {mend}" if mend else ""), flush=True)
    cannot = "cannot run: mend what is marked !!"
    print(f"adalink train and adalink eval {cannot if ill else 'can run'}")
    return 2 if ill else 0


def packages() -> Iterator[Finding]:
    """Checks Python, this package and its requirements."""
    root = pathlib.Path(adalink_jax.__file__).resolve().parent.parent
    yield Finding("ok", f"python {platform.python_version()}, {sys.executable}")
    yield Finding("ok", f"adalink_jax {adalink_jax.__version__}, {root}")
    try:
        required = importlib.metadata.requires("adalink_jax") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("--", "adalink_jax is not installed", f"pip install -e {root}")
        return
    for line in required:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if extra is None:
            yield _package(requirement.strip(), "!!", "pip install adalink_jax")
        elif extra[1] in _EXTRAS:
            finding = _package(requirement.strip(), "--", f"pip install 'adalink_jax[{extra[1]}]'")
            yield finding._replace(text=f"{finding.text}: {_EXTRAS[extra[1]]}")


def _package(requirement: str, absent: str, mend: str) -> Finding:
    """Checks that a package is installed, in a version within the bounds."""
    name, bounds = re.findall(r"^([\w.-]+)(.*)", requirement)[0]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(absent, f"{name} is not installed ({bounds})", mend)
    if not _within(version, bounds):
        text = f"{name} {version} is not what was tested ({bounds})"
        return Finding("--", text, f"pip install '{requirement}'")
    return Finding("ok", f"{name} {version}")


def _within(version: str, bounds: str) -> bool:
    """Returns whether a version satisfies bounds with >=, < and ==."""
    ours = _numbers(version)
    for operator, bound in re.findall(r"(>=|==|<)\s*([\d.]+)", bounds):
        theirs = _numbers(bound)
        if operator == ">=" and ours < theirs or operator == "<" and ours >= theirs:
            return False
        if operator == "==" and ours != theirs:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.split(r"[^\d.]", version, maxsplit=1)[0].split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()  # 2.0 equals 2.
    return tuple(numbers)


def devices() -> Iterator[Finding]:
    """Lists the devices JAX computes on."""
    try:
        import jax

        present = jax.devices()
    except Exception as error:  # Even with a broken driver, the other checks are useful.
        line = str(error).partition("\n")[0] or type(error).__name__
        yield Finding("!!", f"JAX finds no device: {line}", "JAX_PLATFORMS=cpu adalink doctor")
        return
    kinds = ", ".join(sorted({device.device_kind for device in present}))
    yield Finding("ok", f"{len(present)} of {present[0].platform} ({kinds})")


def folders() -> Iterator[Finding]:
    """Checks the folders of tokenized data and compiled programs."""
    # The same default as in adalink_jax.data.cache, which would import NumPy.
    tokens = os.environ.get("ADALINK_CACHE_DIR") or "~/.cache/adalink_jax"
    yield _folder("token cache", tokens, "!!", "export ADALINK_CACHE_DIR=FOLDER")
    try:
        compiled = compile_cache.folder()
    except UserError as error:
        yield Finding("--", f"compiled programs are not kept: {error}")
        return
    if compiled is None:
        text = "compiled programs are not kept: every start compiles again"
        yield Finding("--", text, "unset JAX_ENABLE_COMPILATION_CACHE")
    elif "://" not in str(compiled):
        mend = "export JAX_COMPILATION_CACHE_DIR=FOLDER"
        found = _folder("compiled programs", str(compiled), "--", mend)
        if compiled.is_dir():
            size = sum(path.stat().st_size for path in compiled.glob("*-cache"))
            found = found._replace(text=f"{found.text}, {size / 2**20:,.0f} MiB")
        yield found


def _folder(name: str, path: str, fault: str, mend: str) -> Finding:
    """Checks that a folder, or the one it would be created in, is writable."""
    folder = pathlib.Path(path).expanduser().absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("ok", f"{name} {folder}")
    return Finding(fault, f"{name} {folder} cannot be written", mend)


def data() -> Iterator[Finding]:
    """Checks the bases that come with the package, and the environment variables for GLUE."""
    bases = pathlib.Path(adalink_jax.__file__).resolve().parent / "bases"
    lost = [name for name in _BASES if not (bases / name / "adapter.safetensors").is_file()]
    if lost:
        mend = "pip install --force-reinstall --no-deps adalink_jax"
        yield Finding("--", f"the bases {', '.join(lost)} are not in {bases}", mend)
    else:
        yield Finding("ok", f"the bases {', '.join(_BASES)} in {bases}")
    glue = os.environ.get("GLUE_DIR")
    if not glue:
        yield Finding("--", "GLUE_DIR is not set: GLUE comes from TensorFlow Datasets")
    else:
        tasks = [path.parent.name for path in pathlib.Path(glue).glob("*/train.tsv")]
        mend = "" if tasks else "export GLUE_DIR=FOLDER, with CoLA/train.tsv, RTE/train.tsv, …"
        text = f"GLUE_DIR={glue}: {', '.join(sorted(tasks)) or 'no TASK/train.tsv to read'}"
        yield Finding("ok" if tasks else "--", text, mend)
    vocabulary = os.environ.get("VOCABULARY")
    if not vocabulary:
        text = "VOCABULARY is not set: all tasks but those of the mini world need it"
        yield Finding("--", text, "export VOCABULARY=spiece.model")
    elif "://" in vocabulary or os.access(vocabulary, os.R_OK):
        yield Finding("ok", f"VOCABULARY={vocabulary}")
    else:
        text = f"VOCABULARY={vocabulary} cannot be read"
        yield Finding("--", text, "export VOCABULARY=spiece.model")
