"""What arrays need beside them to be used on texts: the vocabulary and the labels."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax import shipped
from adalink_jax.checkpoints import Adapter
from adalink_jax.checkpoints.adapter_record import AdapterRecord
from adalink_jax.checkpoints.bases import EMBEDDED_FOLDER, is_embedded
from adalink_jax.errors import UserError
from adalink_jax.models import decoding
from adalink_jax.notices import load_tasks

LABELS = "labels.json"
TOKENIZER = "spiece.model"


def opened_vocabulary(path: str) -> Any:
    """Opens a vocabulary; no environment variable changes it afterwards.

    Args:
      path: T5's SentencePiece file, or a base that has one beside it; "mini" for the embedded
        bases' own vocabulary, "english" for that of adalink-jax-bases.

    Raises:
      UserError: the file cannot be read, or is no vocabulary of T5's kind.
    """
    load_tasks()
    import tasks

    if path == "mini":
        return tasks.MINI_VOCABULARY
    vocabulary = tasks.FileVocabulary(shipped.vocabulary(path))
    try:
        vocabulary.load_model()
    except tasks.DataError as error:
        raise UserError(str(error)) from error
    return vocabulary


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


def files_beside(adapter: Adapter, vocabulary: Any | None) -> dict[str, bytes]:
    """Returns the files that an export of an adapter needs beside its arrays, by name.

    ``labels.json`` has each route's labels, in the order of their class ids, with a vocabulary also
    their token ids and what the ids mean; ``spiece.model`` is the vocabulary's own file.

    Args:
      adapter: the adapter.
      vocabulary: its base's; None if it is not known here.

    Raises:
      UserError: the vocabulary is not the base's, or not the one the adapter was trained with; or
        two labels are the same tokens in it.
    """
    load_tasks()
    import tasks

    routes = {}
    for name in adapter.route_names:
        labels = labels_of(adapter, name, tasks.LABELS)
        routes[name] = {"labels": list(labels)}
        if vocabulary is not None:
            ids = decoding.encoded_options(labels, vocabulary).tolist()
            routes[name]["token_ids"] = [[i for i in row if i] for row in ids]
    record: dict[str, Any] = {"routes": routes}
    files: dict[str, bytes] = {}
    if vocabulary is not None:
        adapter.architecture.check_vocabulary(vocabulary.vocab_size)
        check_vocabulary(adapter, vocabulary)
        record |= {"eos_id": vocabulary.eos_id, "pad_id": vocabulary.pad_id}
        record["vocabulary"] = vocabulary.identity
        if vocabulary is not tasks.MINI_VOCABULARY:
            files[TOKENIZER] = vocabulary.content
    files[LABELS] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def labels_of(
    adapter: AdapterRecord, route: str, known: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """Returns the labels that a route was trained on; none if any text may be its answer.

    They are those of the user's own examples, or of the task that the record names, or of the task
    that the route is named after.

    Args:
      adapter: the adapter's record.
      route: one of its routes.
      known: name of a task → its labels, as in `tasks.LABELS`.
    """
    names = (adapter.task(route).get("name", ""), route)
    found = (known[name] for name in names if name in known)
    return adapter.labels(route) or tuple(next(found, ()))


def check_vocabulary(adapter: AdapterRecord, vocabulary: Any, who: str = "the adapter") -> None:
    """Raises `UserError` unless a vocabulary is that of an adapter's training.

    A model file is recorded by its hash, or by that of what SeqIO makes of it.
    """
    trained, own = adapter.vocabulary, getattr(vocabulary, "identity", None)
    if trained is None or own is None or trained == own:
        return
    made = getattr(vocabulary, "sp_model", None)
    if made is None or hashlib.sha256(made).hexdigest() != trained:
        raise UserError(
            f"{who} was trained with another vocabulary, {trained[:12]}…; this one is {own[:12]}…"
        )


def described(files: Mapping[str, bytes]) -> str:
    """Returns a line that says what lies beside the arrays."""
    routes = json.loads(files[LABELS])["routes"]
    some = [f"{name}: {', '.join(one['labels'])}" for name, one in routes.items() if one["labels"]]
    said = f"{LABELS} has the labels of {'; '.join(some)}" if some else f"{LABELS} has no labels"
    return f"{said}; with {TOKENIZER}" if TOKENIZER in files else said
