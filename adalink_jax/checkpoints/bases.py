"""Opens, loads and writes bases in all supported formats."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from adalink_jax import shipped
from adalink_jax.checkpoints import hub, sums
from adalink_jax.checkpoints.formats import huggingface, native, orbax, packed, t5x, t5x_writer
from adalink_jax.checkpoints.lazy import StoredBase
from adalink_jax.checkpoints.storage import Folder
from adalink_jax.errors import UserError, nearest
from adalink_jax.files import new_folder
from adalink_jax.models.t5 import T5Config

# One reader per format: find_checkpoint(folder, children) → its folder or None,
# open_base(folder, configured). Orbax first: its older folders hold a file named like T5X's index.
_READERS = (orbax, t5x, huggingface, native, packed)

# Writers: write(empty folder, base).
WRITERS: Mapping[str, Callable[..., None]] = {
    "t5x": t5x_writer.write,
    "huggingface": huggingface.write,
    "native": native.write,
}


# Bases that come with the package; these names can be used as paths.
EMBEDDED = ("mini", "mini_raw", "mini_images", "mini_images_raw")
EMBEDDED_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "bases"


def is_embedded(path: Any) -> bool:
    """Returns whether a path is the name of an embedded base, and no file or folder has it."""
    return isinstance(path, str) and path in EMBEDDED and not os.path.lexists(path)


def open_base(path: str | os.PathLike[str], configured: T5Config | None = None) -> StoredBase:
    """Opens a base: detects its format and infers its architecture from its arrays.

    Supported are T5X's native and Orbax checkpoints (a ``checkpoint_N`` folder, or its parent, for
    which the latest one is used), with one array per layer or scanned; Hugging Face folders of T5,
    FLAN-T5 and mT5; and this project's own (the ``adapter`` folder of a full fine-tuning run, or
    the run's folder; and those of `formats.packed`).

    Args:
      path: a local folder, ``gs://BUCKET/PATH``, or, if no such folder exists, a name in `EMBEDDED`
        or `shipped.NAMES`, or that of a model in the cache of Hugging Face's tools, as
        ``google/flan-t5-base``.
      configured: the expected architecture; another one is an error. Its MLP activations are used
        if the checkpoint does not store them. None expects nothing and assumes the published
        activations.

    Returns:
      The base: its architecture, with T5Config's defaults for dropout and dtypes, and its arrays
      by their T5X names. Every parameter has one array and every array is used. None is read yet.
      If ``SHA256SUMS`` lies beside them on this machine, all files are checked before the first
      array is read.

    Raises:
      UserError: one line: the path does not exist, is empty, truncated, damaged or still being
        written, is in an unknown or unsupported format, or has another architecture.
    """
    if is_embedded(path):
        path = EMBEDDED_FOLDER / path
    elif shipped.is_name(path):
        path = shipped.folder(os.fspath(path))
    elif hub.is_name(path):
        path = _from_hub(os.fspath(path))
    folder = Folder.at(path)
    if folder.local:
        _check_local(pathlib.Path(folder.path))
    children = folder.children()
    if not children:
        empty = "is an empty folder" if folder.local else "does not exist: nothing is in it"
        raise UserError(f"base checkpoint {folder} {empty}")
    for reader in _READERS:
        checkpoint = reader.find_checkpoint(folder, children)
        if checkpoint is not None:
            base = reader.open_base(checkpoint, configured)
            place = pathlib.Path(checkpoint.path)
            if base.verify is None and checkpoint.local and sums.are_in(place):
                base = dataclasses.replace(base, verify=functools.partial(sums.check, place))
            return base
    shown = ", ".join(children[:5]) + (" …" if len(children) > 5 else "")
    raise UserError(
        f"base checkpoint {folder} is in no known format: looked for T5X's index file"
        f" '{t5x.INDEX}', Orbax' {orbax.METADATA} or folders checkpoint_N, for"
        f" {huggingface.CONFIG} with {huggingface.WEIGHTS}, and for adapter.safetensors with"
        f" adapter.json of a full fine-tuning run; found {shown}"
    )


def _from_hub(name: str) -> pathlib.Path:
    if folder := hub.cached(name):
        return folder
    raise UserError(
        f"base checkpoint {name}: no such folder, and no such model in Hugging Face's cache, "
        f"{hub.cache()}; if it is a model there: pip install huggingface_hub && hf download {name}"
    )


def _check_local(path: pathlib.Path) -> None:
    try:
        if not os.path.lexists(path):
            raise UserError(f"base checkpoint {path} does not exist{_meant(path)}")
        path.stat()
    except OSError as error:  # For example a loop of symbolic links.
        raise UserError(f"base checkpoint {path} cannot be read: {error}") from error
    if not path.is_dir():
        hint = "" if path.suffix in (".bin", ".pt") else f"; give its folder {path.parent}"
        raise UserError(f"base checkpoint {path} is a file, expected a folder{hint}")


def _meant(path: pathlib.Path) -> str:
    """Returns what to give in place of a path where nothing is: its neighbour, or an address."""
    beside: list[str] = []
    with contextlib.suppress(OSError):
        folders = (one.name for one in path.parent.iterdir() if one.is_dir())
        beside = [name for name in folders if name.isprintable()]
    known = [*beside, *EMBEDDED, *shipped.NAMES] if path.parent == pathlib.Path.cwd() else beside
    return nearest(path.name, known) or "; docs/howto/files.md says where to get T5 and FLAN-T5"


def load_base(
    path: str | os.PathLike[str],
    configured: T5Config | None = None,
    shardings: Mapping[str, Any] | None = None,
) -> tuple[T5Config, dict]:
    """Loads a base: `open_base`, then reads the arrays one by one.

    Args:
      path: as in `open_base`.
      configured: the expected architecture, or None.
      shardings: nested dicts with a ``jax.sharding.NamedSharding`` for each parameter. Each process
        then reads only the parts that its devices hold. None returns NumPy arrays.

    Returns:
      The architecture and the parameters: nested dicts of float32 arrays by their T5X names.

    Raises:
      UserError: as in `open_base`; or an array's contents are damaged.

    Examples:
      >>> config, base = al.load_base("mini")
      >>> config.emb_dim, base["token_embedder"]["embedding"].shape
      (128, (384, 128))
    """
    base = open_base(path, configured)
    return base.config, base.load(shardings)


def save_base(
    path: str | os.PathLike[str],
    base: StoredBase,
    format_name: str,
    check: Callable[[pathlib.Path], None] = lambda folder: None,
) -> None:
    """Writes a base into a new folder atomically, one array at a time, with ``SHA256SUMS``.

    Args:
      path: a local path that must not exist.
      base: an open base, or arrays: ``StoredBase(config, "folded", {name: array})``.
      format_name: a name in `WRITERS`.
      check: called with the written folder before it is renamed to its final name. If it raises,
        nothing is left behind.

    Raises:
      UserError: the format is unknown or cannot hold this base; `path` exists; an array cannot be
        read; the folder cannot be written.
    """
    if format_name not in WRITERS:
        raise UserError(
            f"format {format_name!r} is unknown; expected {', '.join(WRITERS)}"
            f"{nearest(format_name, WRITERS)}"
        )
    with new_folder(path) as folder:
        WRITERS[format_name](folder, base)
        sums.write(folder)
        check(folder)
