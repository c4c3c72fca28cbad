"""Loads a base from a folder in any format that this version reads."""

import os
import pathlib

from adalink_jax.checkpoints import native, t5x
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

_HUGGING_FACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
    "tf_model.h5",
)

# Readers of one format each: find_checkpoint(folder) → folder or None, load(folder, configured).
_FORMATS = (t5x, native)


def load_base(
    path: str | os.PathLike[str], configured: T5Config | None = None
) -> tuple[T5Config, dict]:
    """Loads a base, recognising its format and inferring its architecture from its arrays.

    Read are T5X's native checkpoints (a ``checkpoint_N`` folder, or the folder above: its latest
    one counts) and this project's own (the ``adapter`` folder of a full fine-tuning run, or the
    run's folder).

    Args:
      path: a local folder.
      configured: the architecture that the configuration asks for. Another one is an error;
        where arrays do not tell which functions an MLP uses, its are taken. None: as published.

    Returns:
      The architecture, with T5Config's defaults for dropout and dtypes, and the parameters:
      nested dicts of float32 NumPy arrays under T5X's names, every array used once, every
      parameter filled.

    Raises:
      UserError: one line: the path does not exist, is empty, truncated, damaged, in no format
        that is known or one that this version does not read, or of another architecture.
    """
    folder = pathlib.Path(path).expanduser()
    if "://" in os.fspath(path):
        raise UserError(f"base checkpoint {path}: this version reads local folders; copy it first")
    try:
        if not folder.exists():
            raise UserError(f"base checkpoint {folder} does not exist")
        if not folder.is_dir():
            hint = f"; give its folder {folder.parent}" if folder.name == t5x.INDEX else ""
            raise UserError(f"base checkpoint {folder} is a file, expected a folder{hint}")
        content = sorted(child.name for child in folder.iterdir())
        if not content:
            raise UserError(f"base checkpoint {folder} is an empty folder")
        for reader in _FORMATS:
            found = reader.find_checkpoint(folder)
            if found is not None:
                return reader.load(found, configured)
    except OSError as error:
        raise UserError(f"base checkpoint {folder} cannot be read: {error}") from error
    raise UserError(_unrecognised(folder, content))


def _unrecognised(folder: pathlib.Path, content: list[str]) -> str:
    weights = [name for name in content if name in _HUGGING_FACE_WEIGHTS]
    if "config.json" in content and weights:
        return (
            f"base checkpoint {folder} is a Hugging Face folder (config.json, {weights[0]});"
            " this version does not read that format, only T5X's native one and its own"
        )
    shown = ", ".join(content[:5]) + (" …" if len(content) > 5 else "")
    return (
        f"base checkpoint {folder} is in no known format: looked for T5X's index file"
        f" '{t5x.INDEX}' or folders checkpoint_N, and for adapter.safetensors with adapter.json"
        f" of a full fine-tuning run; found {shown}"
    )
