"""Which vocabulary a base has: an embedded world's, the user's, or the file beside the base."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax import shipped
from adalink_jax.adapters.texts import opened_vocabulary
from adalink_jax.checkpoints.bases import EMBEDDED_FOLDER, is_embedded
from adalink_jax.notices import load_tasks


def vocabulary_of(base: Any, trained: Mapping[str, Any] | None = None) -> Any:
    """Returns the vocabulary of a base.

    That is the embedded world's; else the file that the environment variable VOCABULARY names;
    else the one beside the base, as in adalink-jax-bases.

    Args:
      base: the base's path, or the base.
      trained: what an adapter of the base records of its data, with the vocabulary.
    """
    load_tasks()
    import tasks

    path = pathlib.Path(base) if isinstance(base, str) else None
    if path and (path.resolve().parent == EMBEDDED_FOLDER or is_embedded(base)):
        of_images = path.name.startswith("mini_images")
        return tasks.MINI_IMAGE_VOCABULARY if of_images else tasks.MINI_VOCABULARY
    if isinstance(base, str) and not os.environ.get("VOCABULARY"):
        if beside := shipped.beside(base):
            return opened_vocabulary(beside)
    recorded = (trained or {}).get("vocabulary")
    worlds = (tasks.MINI_VOCABULARY, tasks.MINI_IMAGE_VOCABULARY)
    return next((one for one in worlds if one.identity == recorded), tasks.UserVocabulary())
