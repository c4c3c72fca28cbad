"""Checks this installation: versions, devices, folders and data; and says how to fix what fails.

adalink doctor
adalink doctor --base=google/flan-t5-base

GLUE_DIR and VOCABULARY are compared with what was published, by size and SHA-256. The exit code is
0 if adalink train and adalink eval can run (from the base, if one is given), else 2.
"""

import argparse
import hashlib
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import adalink_jax
from adalink_jax import compile_cache, shipped
from adalink_jax.errors import UserError, install

# What each extra is for.
_EXTRAS = {
    "plan": "adalink plan compiles for TPUs with it",
    "int8": "frozen bases in int8 (Precision.frozen_dtype = 'int8')",
    "wandb": "values of runs go to Weights & Biases too (WANDB)",
    "tensorboard": "shows the curves of a run: tensorboard --logdir MODEL_DIR/tensorboard",
    "serve": "adalink serve and its client need it",
    "reference": "adalink convert compares its copies with it, benchmarks and tests too",
}
# Files of /dev that a driver makes: the chip's name, and the extra with JAX's plugin.
_CHIPS = (("nvidiactl", "NVIDIA GPU", "cuda12"), ("accel[0-9]*", "TPU", "tpu"))
_BASES = ("mini", "mini_raw", "mini_images", "mini_images_raw")
# Published files as (bytes, SHA-256); docs/howto/files.md says where they come from.
T5_VOCABULARY = (791656, "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86")
GLUE = {
    "CoLA/train.tsv": (428590, "cb368ebeb9f27d7ad03720d27ddc95687a311bdb100781a2fe59a5f5b1bc0624"),
    "CoLA/dev.tsv": (53717, "8c013e21dc39957cac37378d87bebe225b694a0d5fe13eded66c2856628833fd"),
    "CoLA/test.tsv": (48788, "3b4df85f7a9a0633574b38d181e18090ac961a24b18fb6bcd74999ddea8ad0b8"),
    "SST-2/train.tsv": (
        3806081, "48eac26399f8456935f81dd9e3a745c1430adb6c62e233ccfe22db4a0d15d1d1",
    ),
    "SST-2/dev.tsv": (94931, "54a9c12c77e402fc14d6a66a506f24d999f596b0176eb777c972cccc2f9cc4b0"),
    "SST-2/test.tsv": (197335, "69a938605609b3e6663b4487918fe1565eb293734e6e520d0366d1d412fd2a13"),
    "MRPC/train.tsv": (919457, "122becc469405bc16f9defcb8715d2a4b7ce600e9d9381e6dc42bfdd1494c51d"),
    "MRPC/dev.tsv": (103255, "81c8a1a9e1dfe461dd2c1a4f98f43fe18bece44d2bf9e3d0b245b88e5aa5eaf7"),
    "MRPC/test.tsv": (435216, "4ee428d354c01fa35c2f0f6ab835398abb0bec01f17ed68fbcb6c04265505b0a"),
    "STS-B/train.tsv": (984099, "41c4d978b6162abdcada7e49a982211954cca5459c228db478af333124b257a2"),
    "STS-B/dev.tsv": (276928, "fe7dc0632a5033562f3cadff991f6e8d9b9b6311861660e78c3c82eb7db67f59"),
    "STS-B/test.tsv": (292587, "16b4223d7d44a644fbc10f1b449472cfe81e1715fb07cf44023b0aa88ce856eb"),
    "QNLI/dev.tsv": (1367333, "763e95932dd3578251de71582e06829015f9c3815a518c751dc537219b159de4"),
    "QNLI/test.tsv": (1300988, "6d856264e292fa7a7bc7b8e182efa1454ffd9532733c12ad813017dd5b377a5a"),
    "RTE/train.tsv": (846226, "41e3a9b063433392343fad9e962cf2f58b681c78d8f71592f4186f0837246c5c"),
    "RTE/dev.tsv": (90343, "80230dfa1347282e7b532b06a1004a76a710087541189bf874223ddf0e3819fb"),
    "RTE/test.tsv": (933969, "6e33f09b5c2bfd5fd5fde217070f3dd49e484e33b9752b5864cf36fc421a213f"),
}  # fmt: skip
# Of large files, the rows that GLUE's paper and TFDS count.
GLUE_ROWS = {"MNLI/train.tsv": 392702, "QNLI/train.tsv": 104743, "QQP/train.tsv": 363846}


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
    """Adds the base."""
    about = "a base to check too: a folder, gs://…, or a name on the Hugging Face Hub"
    parser.add_argument("--base", metavar="PATH", help=about)


def run(arguments: argparse.Namespace) -> int:
    """Prints all findings; returns the exit code."""
    ill = 0
    for title, findings in (
        ("Packages", packages()),
        ("Devices", devices()),
        ("Folders", folders()),
        ("Data", data()),
        *([("Base", base(arguments.base))] if arguments.base else []),
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
        yield Finding("--", "adalink_jax is not installed", install())
        return
    for line in required:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if extra is None:
            yield _package(requirement.strip(), "!!", install())
        elif extra[1] in _EXTRAS:
            finding = _package(requirement.strip(), "--", install(extra[1]))
            text = f"{finding.text}, of [{extra[1]}]: {_EXTRAS[extra[1]]}"
            yield finding._replace(text=text)


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
    if present[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        for there, name, extra in _CHIPS:
            if any(pathlib.Path("/dev").glob(there)):
                text = f"a {name} is here, but JAX has no plugin for it"
                yield Finding("--", text, install(extra))


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
    folder = os.environ.get("GLUE_DIR")
    if not folder:
        yield Finding("--", "GLUE_DIR is not set: GLUE comes from TensorFlow Datasets")
    else:
        yield from glue(pathlib.Path(folder).expanduser())
    path = os.environ.get("VOCABULARY")
    if not path:
        text = "VOCABULARY is not set: all tasks but those of the mini world need it"
        yield Finding("--", text, _GET_VOCABULARY)
    elif "://" in path:
        yield Finding("ok", f"VOCABULARY={path}, which is not read here")
    else:
        yield vocabulary(path, f"VOCABULARY={path}")


_GET_VOCABULARY = "export VOCABULARY=$(hf download -q google/flan-t5-base spiece.model)"


def vocabulary(path: str, said: str) -> Finding:
    """Compares a vocabulary with T5's.

    Args:
      path: the file, or the name or folder of a base with a vocabulary of its own.
      said: what the report calls it.
    """
    try:
        path = os.path.expanduser(path)
        if own := shipped.beside(path):
            return Finding("ok", f"{said}: the base's own, {own}")
        content = pathlib.Path(path).read_bytes()
    except UserError as error:
        return Finding("--", f"{said}: {error}", _GET_VOCABULARY)
    except OSError as error:
        return Finding("--", f"{said} cannot be read: {error.strerror}", _GET_VOCABULARY)
    if (len(content), hashlib.sha256(content).hexdigest()) == T5_VOCABULARY:
        return Finding("ok", f"{said}: T5's and FLAN-T5's, as published")
    text = f"{said} is not T5's: {len(content):,} bytes, where that has {T5_VOCABULARY[0]:,}"
    return Finding("--", text, _GET_VOCABULARY)


def glue(folder: pathlib.Path) -> Iterator[Finding]:
    """Compares a folder of GLUE with what was published, a line for each task."""
    tasks = sorted(path.parent.name for path in folder.glob("*/train.tsv"))
    if not tasks:
        mend = "export GLUE_DIR=FOLDER, with CoLA/train.tsv, RTE/train.tsv, …"
        yield Finding("--", f"GLUE_DIR={folder}: no TASK/train.tsv to read", mend)
    for task in tasks:
        files = sorted(folder.glob(f"{task}/*.tsv"))
        said = {path.stem: _differs(path, f"{task}/{path.name}") for path in files}
        names = [name for name, fault in said.items() if fault == ""]
        same = [f"{', '.join(names)} as published"] if names else []
        unknown = [name for name, fault in said.items() if fault is None]
        same += [f"{', '.join(unknown)} not compared"] if unknown else []
        faults = [fault for fault in said.values() if fault]
        text = f"GLUE_DIR={folder}: {task}: {'; '.join([*faults, *same])}"
        yield Finding("--" if faults else "ok", text)


def _differs(path: pathlib.Path, name: str) -> str | None:
    """Returns how a file differs from the published one, "" if it does not, None if unknown."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    if name in GLUE_ROWS:
        rows = content.count(b"\n") - 1
        # Versions of QQP's file differ by a few rows.
        if rows < 0.99 * GLUE_ROWS[name]:
            return f"{path.name} has {rows:,} rows of {GLUE_ROWS[name]:,}"
        return None
    if name not in GLUE:
        return None
    size, digest = GLUE[name]
    if len(content) != size:
        return f"{path.name} has {len(content):,} bytes, published are {size:,}"
    changed = hashlib.sha256(content).hexdigest() != digest
    return f"{path.name} is as long as the published one, but not the same" if changed else ""


def base(path: str) -> Iterator[Finding]:
    """Opens a base: its format, that its arrays are whole, and the vocabulary beside it."""
    from adalink_jax.checkpoints import open_base

    try:
        stored = open_base(path)
    except UserError as error:
        yield Finding("!!", str(error))
        return
    sizes = map(math.prod, stored.shapes.values())
    config = stored.config
    layers = f"{config.num_encoder_layers} + {config.num_decoder_layers} layers"
    text = f"{stored.where}: T5 of {sum(sizes):,} parameters, {layers} of width {config.emb_dim}"
    yield Finding("ok", text)
    if stored.verify is None:
        yield Finding("--", "no SHA256SUMS beside it: its files are not checked for damage")
    beside = pathlib.Path(stored.where, "spiece.model")
    if beside.is_file():
        yield vocabulary(str(beside), str(beside))
