"""The bases of a package adalink-jax-bases, by their names, and vocabularies beside bases."""

import importlib.util
import os
import pathlib
from typing import Any

from adalink_jax.errors import UserError

NAMES = ("english", "english_raw")
_PACKAGE = "adalink_jax_bases"
VOCABULARY = "vocabulary.model"  # The file beside a base.


def is_name(path: Any) -> bool:
    """Returns whether a path is one of `NAMES`, and no file or folder has that name."""
    return isinstance(path, str) and path in NAMES and not os.path.lexists(path)


def folder(name: str) -> pathlib.Path:
    """Returns the folder of a base.

    Raises:
      UserError: the package is not there.
    """
    found = importlib.util.find_spec(_PACKAGE)
    roots = list(found.submodule_search_locations or ()) if found else []
    # In a checkout the package lies beside this one, and need not be installed.
    roots.append(str(pathlib.Path(__file__).resolve().parent.parent / _PACKAGE))
    for root in roots:
        if (place := pathlib.Path(root, name)).is_dir():
            return place
    raise UserError(
        f"'{name}' is a base of the package adalink-jax-bases, which is not here: pip install "
        "./adalink_jax_bases in a checkout, or give a base's folder (docs/howto/english_base.md)"
    )


def beside(base: str) -> str | None:
    """Returns the vocabulary's file that comes with a base, by its name or folder; else None.

    Raises:
      UserError: it is one of `NAMES`, and the package is not there.
    """
    path = (folder(base) if is_name(base) else pathlib.Path(base)) / VOCABULARY
    return str(path) if path.is_file() else None


def vocabulary(path: str) -> str:
    """Returns a vocabulary's path; a base's name or folder stands for the file beside it."""
    return beside(path) or path
