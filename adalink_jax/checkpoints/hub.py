"""Names of models on the Hugging Face Hub, as paths: found in the cache that its tools fill.

Nothing is downloaded here.
"""

import os
import pathlib
import re

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def cache() -> pathlib.Path:
    """Returns the folder in which ``hf download`` and transformers keep models."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    place = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return pathlib.Path(place or os.path.join(home, "hub")).expanduser()


def is_name(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path may be a name such as ``google/flan-t5-base``.

    It is none if it exists here, or if the folder before its slash does.
    """
    text = os.fspath(path)
    return bool(_NAME.fullmatch(text)) and not os.path.lexists(text.partition("/")[0])


def cached(name: str) -> pathlib.Path | None:
    """Returns the folder of a model's latest downloaded version; None if there is none.

    Args:
      name: as `is_name` accepts it.
    """
    folder = cache() / f"models--{name.replace('/', '--')}"
    try:
        version = (folder / "refs/main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / version
    return snapshot if version and snapshot.is_dir() else None
