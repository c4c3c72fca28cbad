"""Converts a base into another format and checks that the copy computes the same."""

import argparse
import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from adalink_jax.adapters import probe
from adalink_jax.checkpoints import StoredBase, open_base, save_base
from adalink_jax.checkpoints.bases import WRITERS
from adalink_jax.checkpoints.fingerprint import combined_fingerprint, leaf_digest
from adalink_jax.checkpoints.formats.companions import describe_tokenizer
from adalink_jax.checkpoints.formats.huggingface import CONFIG
from adalink_jax.errors import UserError
from adalink_jax.models.parameters import init_projection

# Largest difference of float32 logits at which two frameworks count as equal.
LOGITS_BOUND = 1e-4

_SOURCE = "a base: T5X's (native, Orbax, scanned), Hugging Face's, or this project's; or gs://…"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Watched(StoredBase):
    """A base that reports each array as it is read."""

    watch: Callable[[str, np.ndarray], None]

    def read(self, name, index=...):
        array = super().read(name, index)
        self.watch(name, array)
        return array


def convert(
    source: str, target: str, format_name: str, image_width: int | None = None, seed: int = 0
) -> None:
    """Writes a base in another format, one array at a time, and checks the result.

    The copy is loaded again. It must hold the same bits (equal fingerprints) and give the source's
    logits on fixed inputs. If transformers is installed and either side is a Hugging Face folder
    on this machine, transformers must give the same logits too. Only then is the copy kept.

    Args:
      source: a base's path, in any format that `open_base` reads.
      target: the folder to write; it must not exist.
      format_name: "t5x", "huggingface" or "native".
      image_width: the copy takes images of this width, by a new projection that is to be trained;
        its logits of text are compared. None: it is the base as it is.
      seed: seed of that projection.

    Raises:
      UserError: the source cannot be read, or takes images and is to get a projection; the format
        cannot hold it; `target` exists; or the
        copy's logits differ by more than `LOGITS_BOUND`. Nothing is left at `target`.
    """
    console = Console(stderr=True)
    base = open_base(source)
    if base.verify is None:
        console.print(f"{source} has no SHA256SUMS: its files are not checked for damage")
    if image_width is not None:
        base = _with_projection(base, image_width, seed)
    digests: dict[str, bytes] = {}
    with Progress(console=console) as progress:
        task = progress.add_task("arrays", total=len(base.arrays))

        def watch(name: str, array: np.ndarray) -> None:
            digests[name] = leaf_digest(name, array)
            progress.update(task, advance=1, description=name)

        def check(folder: pathlib.Path) -> None:
            progress.update(task, description="arrays")
            progress.stop()
            whole = combined_fingerprint(digests.values())
            _check(base.where, folder, whole, console, image_width is None)

        watched = _Watched(
            base.config, base.where, base.arrays, base.beside, base.verify, watch=watch
        )
        save_base(target, watched, format_name, check)
    if format_name == "huggingface":
        console.print(describe_tokenizer(target), soft_wrap=True)
    console.print(
        f"wrote {target}, fingerprint {combined_fingerprint(digests.values())}", soft_wrap=True
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the source, the target and the format."""
    parser.add_argument("--from", required=True, metavar="PATH", dest="source", help=_SOURCE)
    parser.add_argument("--to", required=True, metavar="PATH", dest="target", help="a new folder")
    parser.add_argument("--format", required=True, choices=list(WRITERS))
    parser.add_argument(
        "--image_width", type=int, help="add a new projection of image vectors of this width"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of that projection")


def run(arguments: argparse.Namespace) -> None:
    """Converts a base; see `convert`."""
    given = (arguments.source, arguments.target, arguments.format)
    convert(*given, arguments.image_width, arguments.seed)


def _with_projection(base: StoredBase, width: int, seed: int) -> StoredBase:
    """Returns a base of text with a new projection of images."""
    if base.config.image_width is not None:
        raise UserError(
            f"{base.where} takes images already, of width {base.config.image_width}; leave out "
            "--image_width"
        )
    if seed < 0:
        raise UserError(f"--seed is {seed}; it must be at least 0")
    config = dataclasses.replace(base.config, image_width=width)
    new = init_projection(config, jax.random.key(seed))
    arrays = {f"encoder/image_projection/{name}": np.asarray(leaf) for name, leaf in new.items()}
    return dataclasses.replace(base, config=config, arrays={**base.arrays, **arrays})


def _check(
    source: str, copy: pathlib.Path, fingerprint: str, console: Console, images: bool
) -> None:
    """Compares the copy with its source; with `images` on these too, where they take them."""
    expected, _ = probe.logits_of(source, "adalink_jax", images)
    actual, theirs = probe.logits_of(copy, "adalink_jax", images)
    _compare(actual, expected, "the copy's logits", console)
    if theirs != fingerprint:
        raise UserError(f"the copy of {source} does not hold its bits: it is not kept")
    folders = [os.fspath(p) for p in (copy, source) if os.path.isfile(os.path.join(p, CONFIG))]
    if folders and not probe.has_transformers():
        console.print("not compared with transformers, which is not installed")
    elif folders:
        actual, _ = probe.logits_of(folders[0], "transformers")
        _compare(actual, expected, "the logits of transformers", console)


def _compare(actual: np.ndarray, expected: np.ndarray, what: str, console: Console) -> None:
    if actual.shape != expected.shape:
        raise UserError(f"{what} have shape {actual.shape}, the source's {expected.shape}")
    difference = float(np.max(np.abs(actual - expected)))
    console.print(f"{what} differ from the source's by at most {difference:.2g}")
    if not difference <= LOGITS_BOUND:  # NaN counts as a difference.
        raise UserError(
            f"{what} differ from the source's by {difference:.3g}, more than {LOGITS_BOUND:g}:"
            " the copy is not kept"
        )
