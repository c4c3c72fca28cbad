"""SeqIO tasks as token arrays: tokenized once, cached on disk, memory-mapped.

SeqIO and TensorFlow are only imported inside functions. So importing this module is cheap, and
code that needs no task works on machines without them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adalink_jax import shipped
from adalink_jax.data import cache, reading
from adalink_jax.data.ragged import Texts
from adalink_jax.data.reading import FEATURES
from adalink_jax.data.tokenized import Tokens, as_tokens
from adalink_jax.errors import UserError, nearest
from adalink_jax.notices import load_tasks

# Part of every cache key. Increase it when the same text would give other arrays.
FORMAT = 2

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A registered mixture, or a task as a mixture of one task.

    Attributes:
      name: its registered name.
      tasks: names of its tasks in alphabetical order; the index of a task is its route.
      rates: the mixing rate of each task; 0 without a train split.
      trained: the tasks that have a train split.
      vocabulary: the vocabulary of both inputs and targets.
    """

    name: str
    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    trained: tuple[str, ...]
    vocabulary: Any


def check_registered(name: str) -> None:
    """Raises `UserError` unless a mixture or task of this name is registered; reads no data."""
    load_tasks()
    import seqio

    known = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
    if name not in known:
        hint = nearest(name, known)
        if pathlib.Path("tasks.py").exists():
            hint = f"{hint or ';'} tasks.py is not read, as adalink_jax has a module of that name"
            hint += ": give it another"
        raise UserError(f"unknown mixture or task '{name}'{hint}")


def check_ready(name: str) -> None:
    """Checks what can be wrong with a mixture or task before its data is read.

    Raises:
      UserError: the name is unknown, the folder of its data is not there, or its vocabulary cannot
        be opened.
    """
    check_registered(name)
    import seqio

    import tasks

    for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)):
        _splits(task)
        tasks.available_splits(task.name)
        for feature in task.output_features.values():
            try:
                vocabulary_identity(feature.vocabulary)
            except tasks.DataError:
                # A name whose package is not here says so; any other file is said as it is.
                shipped.vocabulary(os.environ.get("VOCABULARY", ""))
                raise


def mixture(name: str) -> Mixture:
    """Looks up a registered mixture or task.

    Raises:
      UserError: the name is unknown, its features are not inputs and targets, its tasks do not
        share one vocabulary, or a mixing rate cannot be computed.
    """
    check_registered(name)
    import seqio

    registered = seqio.get_mixture_or_task(name)
    members = seqio.get_subtasks(registered)
    vocabularies = {}
    for task in members:
        given = sorted(task.output_features)
        if not set(FEATURES) <= set(given):
            raise UserError(
                f"task '{task.name}' has the features {given}; "
                "an encoder-decoder needs 'inputs' and 'targets'"
            )
        if blind := [feature for feature in given if feature not in FEATURES]:
            raise UserError(
                f"task '{task.name}' has the features {given}; a text model reads 'inputs' and "
                f"'targets' only, and would be blind to '{blind[0]}'"
            )
        for feature in FEATURES:
            vocabulary = task.output_features[feature].vocabulary
            vocabularies.setdefault(vocabulary_identity(vocabulary), vocabulary)
    if len(vocabularies) > 1:
        raise UserError(f"'{name}' uses {len(vocabularies)} vocabularies; T5 has one for all text")
    trained = [task for task in members if "train" in _splits(task)]
    rates = tuple(
        1.0 if registered is task else _rate(registered, task) if task in trained else 0.0
        for task in members
    )
    if trained and not any(rates):
        raise UserError(f"mixture '{name}': all its mixing rates are 0")
    _check_sampling(registered)
    (vocabulary,) = vocabularies.values()
    names, trained = (tuple(task.name for task in some) for some in (members, trained))
    return Mixture(name, names, rates, trained, vocabulary)


def _rate(mixture_, task) -> float:
    import tasks

    try:
        rate = float(mixture_.get_rate(task))
    except tasks.DataError:
        raise
    except (TypeError, ValueError) as error:
        # The rate needs a number of examples that the source does not know, or is no number.
        known = task.num_input_examples("train")
        reason = error if known is not None else "its source has no num_input_examples"
        raise UserError(
            f"mixture '{mixture_.name}': the rate of task '{task.name}' cannot be computed: "
            f"{reason}; give it a number as its rate"
            + (", or its source num_input_examples={'train': …}" if known is None else "")
        ) from error
    if not 0 <= rate < float("inf"):
        raise UserError(f"mixture '{mixture_.name}': task '{task.name}' has rate {rate}")
    return rate


def _check_sampling(registered) -> None:
    """Warns where a mixture samples by a function of its own, which nothing here calls."""
    import tensorflow as tf

    sample = getattr(registered, "_sample_fn", None)
    usual = tf.data.Dataset.sample_from_datasets
    if sample is not None and getattr(sample, "func", sample) != usual:
        logger.warning(
            "mixture '%s' has a sample_fn, which is not used: examples are drawn by their rates",
            registered.name,
        )


def vocabulary_identity(vocabulary) -> str:
    """Returns a string that is equal for two vocabularies if and only if they give equal tokens.

    It is the vocabulary's `identity` if it has one, else a hash of its SentencePiece model, else
    its class and size.
    """
    if isinstance(identity := getattr(vocabulary, "identity", None), str):
        return identity
    if model := getattr(vocabulary, "sp_model", None):
        return hashlib.sha256(model).hexdigest()
    return f"{type(vocabulary).__name__} of {vocabulary.vocab_size}"


def tokens(
    task_name: str,
    split: str,
    cache_dir: str | os.PathLike | None = None,
    lengths: Mapping[str, int] | None = None,
    draw_seed: int = 0,
) -> Tokens:
    """Returns a split of a task as token arrays, from the cache if possible.

    The cache key is a hash of the task's name, the split, the identities of source and vocabulary,
    the preprocessors and their code. For most tasks registered by users, it cannot be known what
    the source or a preprocessor does, so a stale cache could not be detected. Such a task is
    tokenized again each time, and identified by its tokens.

    Args:
      task_name: a registered SeqIO task.
      split: one of its splits.
      cache_dir: the cache folder; default ADALINK_CACHE_DIR, else ~/.cache/adalink_jax.
      lengths: the configured lengths in tokens, for preprocessors that take `sequence_length`.
        Sequences are not cut to them here.
      draw_seed: seed of random numbers that preprocessors draw.

    Raises:
      UserError: unknown task or split, no examples, tokens that are not integers, lengths that a
        preprocessor needs are missing, or a cache folder that cannot be written.
    """
    task = _task(task_name, split)
    key = _cache_key(task, split, lengths)
    if key is None:
        return as_tokens(*reading.tokenize(task, split, lengths, draw_seed, None))
    hashed = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", f"{task_name}.{split}")
    path = cache.folder(cache_dir) / f"{stem}.{hashed[:32]}.safetensors"
    return _cached(path, lambda: reading.tokenize(task, split, lengths, draw_seed, key["source"]))


def examples(
    task_name: str, split: str, lengths: Mapping[str, int], count: int
) -> list[dict[str, Any]]:
    """Returns the first examples of `tokens` with all features; see `reading.examples`."""
    return reading.examples(_task(task_name, split), split, lengths, count)


def _task(name: str, split: str):
    load_tasks()
    import seqio

    if name not in seqio.TaskRegistry.names():
        raise UserError(f"unknown task '{name}'{nearest(name, seqio.TaskRegistry.names())}")
    task = seqio.TaskRegistry.get(name)
    if split not in (splits := _splits(task)):
        raise UserError(f"task '{name}' has no split '{split}'; it has {', '.join(sorted(splits))}")
    return task


def _splits(task) -> tuple[str, ...]:
    try:
        return tuple(task.splits)
    except ValueError as error:  # SeqIO's word for a source that names none
        raise UserError(f"task '{task.name}' has no splits; is its source there?") from error


def check_labels(task_name: str, split: str, targets: Texts) -> None:
    """Raises `UserError` if targets of a classification task are none of its labels."""
    import tasks

    labels = tasks.LABELS.get(task_name)
    if not labels:
        return
    strange = {text: n for text, n in targets.counts().items() if text not in labels}
    if strange:
        most = max(strange, key=lambda text: strange[text])
        raise UserError(
            f"task '{task_name}', split '{split}': {sum(strange.values()):,} of {len(targets):,} "
            f"targets are none of its labels {', '.join(labels)}: the most frequent is '{most}'"
            f"{nearest(most, labels)}"
        )


def _cache_key(task, split: str, lengths: Mapping[str, int] | None = None) -> dict | None:
    """Returns everything that the tokens of a task depend on, or None if it cannot be known."""
    import seqio

    import tasks

    steps = _steps(task.preprocessors)
    if steps is None or not hasattr(task.source, "identity"):
        return None
    code = hashlib.sha256()
    for file in sorted(pathlib.Path(tasks.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    key = {
        "task": task.name,
        "split": split,
        "source": tasks.source_identity(task.name, split),
        "vocabulary": [
            vocabulary_identity(task.output_features[feature].vocabulary) for feature in FEATURES
        ],
        "steps": steps,
        "tasks": code.hexdigest(),
        "seqio": seqio.__version__,
        "format": FORMAT,
    }
    return key | ({"lengths": dict(lengths)} if lengths and reading.needs_lengths(task) else {})


def _steps(preprocessors) -> list | None:
    """Names preprocessors with their arguments, if all are top-level functions of `tasks` or SeqIO.

    Otherwise it returns None: other functions may change while their names stay the same.
    """
    import seqio

    steps = []
    for step in preprocessors:
        if isinstance(step, seqio.CacheDatasetPlaceholder):
            continue
        arguments = []
        while isinstance(step, functools.partial):
            arguments.append([list(step.args), dict(step.keywords)])
            step = step.func
        module, name = getattr(step, "__module__", ""), getattr(step, "__qualname__", "")
        if module.split(".")[0] not in ("tasks", "seqio"):
            return None
        if getattr(sys.modules[module], name, None) is not step:  # made by another function
            return None
        steps.append([f"{module}.{name}", arguments])
    try:
        return json.loads(json.dumps(steps))
    except TypeError:  # an argument that JSON cannot hold
        return None


def _cached(
    path: pathlib.Path, tokenize: Callable[[], tuple[dict[str, np.ndarray], dict]]
) -> Tokens:
    if path.exists():
        try:
            return as_tokens(*cache.read(path))
        except cache.Damaged as error:
            logger.warning("token cache %s is damaged (%s): building it anew", path, error)
    arrays, identity = tokenize()
    if "drawn" in identity:  # The key knows no seed.
        return as_tokens(arrays, identity)
    try:
        cache.write(path, arrays, identity)
    except UserError as error:
        raise UserError(
            f"token cache {error}; set ADALINK_CACHE_DIR to a folder that can be written"
        ) from error
    # Read again, because memory-mapped pages can be shared and dropped; the arrays cannot.
    with contextlib.suppress(cache.Damaged):  # Another process may have removed it.
        return as_tokens(*cache.read(path))
    return as_tokens(arrays, identity)
