"""Which vocabulary a base has: the embedded worlds', the file beside it, or the user's."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax import shipped
from adalink_jax.checkpoints.bases import EMBEDDED_FOLDER, is_embedded
from adalink_jax.errors import UserError


def vocabulary_of(base: Any, trained: Mapping[str, Any] | None = None) -> Any:
    """Returns the vocabulary of a base: its own where one comes with it, else the user's file.

    Args:
      base: the base's path, or the base.
      trained: what an adapter of the base records of its data, with the vocabulary.
    """
    from adalink_jax.data.corpus import load_tasks

    load_tasks()
    import tasks

    path = pathlib.Path(base) if isinstance(base, str) else None
    if path and (path.resolve().parent == EMBEDDED_FOLDER or is_embedded(base)):
        of_images = path.name.startswith("mini_images")
        return tasks.MINI_IMAGE_VOCABULARY if of_images else tasks.MINI_VOCABULARY
    if isinstance(base, str) and not os.environ.get("VOCABULARY"):
        if (beside := shipped.vocabulary(base)) != base:
            return opened(beside)
    recorded = (trained or {}).get("vocabulary")
    worlds = (tasks.MINI_VOCABULARY, tasks.MINI_IMAGE_VOCABULARY)
    return next((one for one in worlds if one.identity == recorded), tasks.UserVocabulary())


def opened(path: str | os.PathLike[str]) -> Any:
    """Opens a SentencePiece model with T5's sentinels.

    Args:
      path: its file, or a base that has one beside it.

    Raises:
      UserError: there is no such file.
    """
    import seqio

    from tasks.vocabulary import EXTRA_IDS, say_added_tokens

    path = shipped.vocabulary(os.fspath(path))
    if not os.path.isfile(path):
        raise UserError(f"vocabulary {path}: no such file; expected a SentencePiece model")
    found = seqio.SentencePieceVocabulary(path, extra_ids=EXTRA_IDS)
    say_added_tokens(path, found.tokenizer)
    return found
