"""Runs SeqIO tasks: their examples as token arrays, or with all their features.

What SeqIO promises of a task holds here: its preprocessors get the lengths if they ask for them,
and random numbers are drawn from a seed. TensorFlow is only imported inside functions.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax import progress
from adalink_jax.data import cache
from adalink_jax.data.ragged import Ragged, Texts
from adalink_jax.errors import UserError
from adalink_jax.notices import without_notices

FEATURES = ("inputs", "targets")

logger = logging.getLogger(__name__)


def needs_lengths(task) -> bool:
    """Returns whether a preprocessor of the task asks for the lengths (SeqIO's `sequence_length`).

    `append_eos_after_trim` does not count: sequences are cut after it, and then counted.
    """
    return any(_takes_lengths(step) and not _only_trims(step) for step in task.preprocessors)


def _takes_lengths(step) -> bool:
    if dataclasses.is_dataclass(step):
        return any(field.name == "sequence_length" for field in dataclasses.fields(step))
    bound = step.keywords if isinstance(step, functools.partial) else {}
    return (
        "sequence_length" in inspect.signature(step).parameters and "sequence_length" not in bound
    )


def _only_trims(step) -> bool:
    import seqio

    while isinstance(step, functools.partial):
        step = step.func
    return step is seqio.preprocessors.append_eos_after_trim


def tokenize(
    task, split: str, lengths: Mapping[str, int] | None, seed: int, source: dict | None
) -> tuple[dict[str, np.ndarray], dict]:
    """Runs a SeqIO task over a split.

    Args:
      task: the task.
      split: one of its splits.
      lengths: the configured lengths, for preprocessors that ask for them.
      seed: seed of the random numbers that the pipeline draws.
      source: the source's part of the identity.

    Returns:
      The arrays of `tokenized.Tokens` (each with its offsets), and its identity. This has "drawn"
      if the pipeline draws random numbers.

    Raises:
      UserError: the task cannot be read, has no examples, or its features are no tokens.
    """
    with _reading(task, split):
        dataset, drawn = _dataset(task, split, lengths, seed)
        count = _count(task, split)
    said = f"{count:,} examples of " if count else ""
    logger.info("tokenizing %stask '%s', split '%s'", said, task.name, split)
    texts = _checked_features(task, dataset.element_spec)
    more = _optional_features(task, dataset.element_spec)
    wanted = (*FEATURES, *texts.values(), *more)
    parts = {name: [] for name in wanted}
    dataset = dataset.map(lambda example: {name: example[name] for name in wanted})
    with _reading(task, split), progress.bar("tokenizing", count, "examples") as bar:
        for batch in dataset.ragged_batch(1024):
            for name in wanted:
                parts[name].append(batch[name])
            bar.advance(int(batch["inputs"].shape[0]))
    if not parts["inputs"]:
        raise UserError(f"task '{task.name}', split '{split}': there are no examples")

    arrays = {}
    for feature in FEATURES:
        ragged = _joined(parts[feature])
        arrays[feature], arrays[f"{feature}_offsets"] = ragged.flat, ragged.offsets
    identity = {"source": source, "examples": len(arrays["inputs_offsets"]) - 1}
    identity["sha256"] = cache.digest(arrays)
    if drawn:
        identity["drawn"] = {"seed": seed}
    for feature in FEATURES:
        if feature in texts:
            strings = [text for part in parts[texts[feature]] for text in part.numpy().tolist()]
        else:
            vocabulary = task.output_features[feature].vocabulary
            ragged = Ragged(arrays[feature], arrays[f"{feature}_offsets"])
            strings = [_decoded(vocabulary, sequence) for sequence in ragged]
        _add_texts(arrays, f"{feature[:-1]}_texts", strings)
    if "image" in more:
        _add_texts(arrays, "images", [key for part in parts["image"] for key in part.numpy()])
    if "references" in more:
        lists = [one for part in parts["references"] for one in _lists(part)]
        _add_texts(arrays, "references", [json.dumps(one).encode() for one in lists])
        identity["references"] = hashlib.sha256(arrays["references"]).hexdigest()
    return arrays, identity


def _count(task, split: str) -> int:
    """Returns the number of examples of a split as its source says it; 0 if it does not."""
    try:
        return task.num_input_examples(split) or 0
    except (KeyError, TypeError, ValueError, NotImplementedError):
        return 0


def _add_texts(arrays: dict[str, np.ndarray], name: str, texts: Sequence[bytes]) -> None:
    ragged = Texts.of(texts).ragged
    arrays[name], arrays[f"{name}_offsets"] = ragged.flat, ragged.offsets


def _lists(part) -> list[list[str]]:
    """Returns a batch of lists of strings, [n, k] or ragged."""
    rows = part.to_list() if hasattr(part, "row_lengths") else part.numpy().tolist()
    return [[text.decode("utf-8", errors="replace") for text in row] for row in rows]


def examples(
    task, split: str, lengths: Mapping[str, int] | None, count: int
) -> list[dict[str, Any]]:
    """Returns the first examples with all features, as SeqIO hands them to `postprocess_fn`.

    They are in the order of `tokenize` with seed 0.

    Args:
      task: the task.
      split: one of its splits.
      lengths: as for `tokenize`.
      count: number of examples.
    """
    import tensorflow_datasets as tfds

    with _reading(task, split):
        dataset, _ = _dataset(task, split, lengths, 0)
        return list(tfds.as_numpy(dataset.take(count)))  # pyright: ignore[reportArgumentType]: it is iterable


def _dataset(task, split: str, lengths: Mapping[str, int] | None, seed: int) -> tuple[Any, bool]:
    """Returns a task's dataset, and whether it draws random numbers."""
    import seqio
    import tensorflow as tf

    _leave_gpus()
    if not needs_lengths(task):
        lengths = None
    elif lengths is None:
        raise UserError(
            f"task '{task.name}': a preprocessor takes sequence_length; give its lengths"
        )
    # A copy, because sequences are cut, and counted, after the task: `arrays.Sequences`.
    task = copy.copy(task)
    task.preprocessors = [
        step
        if isinstance(step, seqio.CacheDatasetPlaceholder) or not _only_trims(step)
        else functools.partial(step, sequence_length=None)
        for step in task.preprocessors
    ]
    # The seed of whatever draws: SeqIO's seeds of preprocessors, TensorFlow's own operations. It
    # is not given to `get_dataset`, which hands it on to sources that take none.
    tf.random.set_seed(seed)
    dataset = task.get_dataset(
        sequence_length=lengths,
        split=split,
        shuffle=False,
        use_cached=task.requires_caching,
        trim_output_features=False,
    )
    draws = _random_operations(dataset)
    if any("Dataset" not in operation for operation in draws):
        # Several threads would share TensorFlow's generator, and take its numbers in any order.
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        dataset = dataset.with_options(options)
    return dataset, bool(draws)


@functools.cache
def _leave_gpus() -> None:
    """Keeps TensorFlow from taking the memory of GPUs, which JAX needs."""
    import tensorflow as tf

    # Once TensorFlow is initialized, it is too late, and says so.
    with without_notices(), contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _reading(task, split: str) -> Iterator[None]:
    """Turns what SeqIO and TensorFlow say of data that they cannot read into one line."""
    import tensorflow as tf

    try:
        yield
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        # A mistake inside a user's function has a report of many lines, which says where it is.
        text = str(getattr(error, "message", error)).strip()
        if "\n" in text or type(error).__module__.split(".")[0] == "tasks":
            raise
        raise UserError(f"task '{task.name}', split '{split}': {text}") from error


def _random_operations(dataset) -> set[str]:
    """Returns the operations of a pipeline that draw random numbers.

    Stateless ones draw nothing: they compute numbers from a seed, which is another operation's or
    the example's own.
    """
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(
        dataset._as_serialized_graph(
            external_state_policy=tf.data.experimental.ExternalStatePolicy.IGNORE
        ).numpy()
    )
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    words = ("Random", "Shuffle", "Multinomial")
    return {
        node.op
        for node in nodes
        if any(word in node.op for word in words) and not node.op.startswith("Stateless")
    }


def _checked_features(task, spec: Mapping[str, Any]) -> dict[str, str]:
    """Checks that the features are tokens; returns the features that hold their texts."""
    for feature in FEATURES:
        tensor = spec.get(feature)
        if tensor is None or not tensor.dtype.is_integer or tensor.shape.rank != 1:
            problem = (
                "missing" if tensor is None else f"{tensor.dtype.name} of shape {tensor.shape}"
            )
            raise UserError(
                f"task '{task.name}': feature '{feature}' is {problem}; "
                "expected a sequence of tokens"
            )
    return {
        feature: f"{feature}_pretokenized"
        for feature in FEATURES
        if _is_text(spec.get(f"{feature}_pretokenized"))
    }


def _optional_features(task, spec: Mapping[str, Any]) -> list[str]:
    """Returns which of `image`, a string, and `references`, a list of strings, a task has.

    Raises:
      UserError: `image` is something else, to which a model would be blind.
    """
    image, references = spec.get("image"), spec.get("references")
    if image is not None and not _is_text(image):
        raise UserError(
            f"task '{task.name}': feature 'image' is {image.dtype.name} of shape {image.shape}; "
            "expected a string, the path of a file below Images.folder; leave it out to train on "
            "the text alone"
        )
    found = ["image"] if image is not None else []
    if references is not None and references.dtype.name == "string" and references.shape.rank == 1:
        found.append("references")
    return found


def _is_text(spec) -> bool:
    return spec is not None and spec.dtype.name == "string" and spec.shape.rank == 0


def _joined(parts: list) -> Ragged:
    """Joins the batches of a feature, [n, length] or ragged, into one ragged int32 array."""
    flat, lengths = [], []
    for part in parts:
        if hasattr(part, "row_lengths"):
            flat.append(part.flat_values.numpy())
            lengths.append(part.row_lengths().numpy())
        else:  # all sequences of the task have the same length
            flat.append(part.numpy().reshape(-1))
            lengths.append(np.full(len(part), part.shape[1]))
    return Ragged.joined(np.concatenate(flat).astype(np.int32), np.concatenate(lengths))


def _decoded(vocabulary, sequence: np.ndarray) -> bytes:
    text = vocabulary.decode(sequence.tolist())
    return (text if isinstance(text, str) else " ".join(map(str, text))).encode()
