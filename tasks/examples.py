"""Tasks made from examples in Python, registered under a hash of their content."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from tasks import metrics
from tasks.errors import DataError
from tasks.registry import LABELS, add_classification, add_generation
from tasks.sources import ColumnsSource
from tasks.vocabulary import UserVocabulary

Examples = Sequence[tuple[str, str]]


class ExamplesSource(ColumnsSource):
    """Pairs of input and target texts in memory, by split."""

    def __init__(
        self,
        splits: Mapping[str, Examples],
        labels: Sequence[str],
        record: Mapping[str, Any] | None = None,
        images: Mapping[str, Sequence[str]] | None = None,
    ):
        """Takes the splits, labels (which may be empty), more to record, and keys of pictures."""
        super().__init__(splits=tuple(splits))
        self._splits = {split: list(pairs) for split, pairs in splits.items()}
        self._labels = list(labels)
        self._record = dict(record or {})
        self._images = {split: list(keys) for split, keys in (images or {}).items()}

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Returns examples with the strings `inputs` and `targets`, perhaps also `image`."""
        inputs, targets = zip(*self._splits[split], strict=True)
        columns = {"inputs": np.array(inputs, object), "targets": np.array(targets, object)}
        if split in self._images:
            columns["image"] = np.array(self._images[split], object)
        return columns

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples in a split."""
        return len(self._splits[split])

    def identity(self, split: str) -> dict:
        """Returns the hash and labels of a split's examples; JSON-able."""
        digest = examples_digest(self._splits[split])
        identity = {"kind": "examples", "split": split, "sha256": digest, "labels": self._labels}
        if split in self._images:
            identity["images"] = examples_digest([(key,) for key in self._images[split]])
        return identity | self._record


def examples_digest(examples: Sequence[Sequence[str]]) -> str:
    """Returns the SHA-256 of pairs of texts, in their order."""
    content = json.dumps([list(pair) for pair in examples], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def number(text: str, *, labels: Sequence[str], **unused) -> float:
    """Returns a text's number; the lowest of the labels if it is none of them."""
    return float(text if text in labels else labels[0])


def add_examples(
    splits: Mapping[str, Examples],
    labels: Sequence[str] = (),
    vocabulary: seqio.Vocabulary | None = None,
    *,
    name: str | None = None,
    numbers: bool = False,
    record: Mapping[str, Any] | None = None,
    images: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Registers pairs of texts as a task; equal pairs give the same task.

    Args:
      splits: "train", "validation" or both, to pairs of input and target text.
      labels: the texts used as targets, in the order of their class ids. The task is then scored
        by ranking them, with accuracy as its metric. If empty, by generation and exact match.
      vocabulary: by default the user's SentencePiece file.
      name: the task's name, which takes the place of earlier examples of this name; None for
        ``examples_`` with a hash of the content.
      numbers: whether the labels are numbers, whose correlations are the metrics.
      record: more for the identity of the splits, JSON-able.
      images: the key of each example's picture, by split; None for texts alone.

    Returns:
      The task's name.

    Raises:
      DataError: the name is that of another task or of a mixture, or cannot be one.
    """
    source = ExamplesSource(splits, labels, record, images)
    vocabulary = vocabulary or UserVocabulary()
    name = _free(name) if name else _named(source, splits, vocabulary)
    if name in seqio.TaskRegistry.names():
        return name
    evaluated = tuple(split for split in ("validation",) if split in splits)
    if labels:
        add_classification(
            name,
            source,
            None,
            labels,
            [metrics.pearson_corrcoef, metrics.spearman_corrcoef]
            if numbers
            else [metrics.accuracy],
            eval_splits=evaluated,
            vocabulary=vocabulary,
            postprocess_fn=functools.partial(number, labels=tuple(labels)) if numbers else None,
        )
        return name
    add_generation(
        name,
        source,
        None,
        [metrics.sequence_accuracy],
        eval_splits=evaluated,
        vocabulary=vocabulary,
    )
    return name


def _named(
    source: ExamplesSource, splits: Mapping[str, Examples], vocabulary: seqio.Vocabulary
) -> str:
    """Returns a name that says the content."""
    model = hashlib.sha256(getattr(vocabulary, "sp_model", None) or b"").hexdigest()
    known = [source.identity(split) for split in sorted(splits)]
    whole = json.dumps([known, model, vocabulary.vocab_size], sort_keys=True).encode()
    return f"examples_{hashlib.sha256(whole).hexdigest()[:12]}"


def _free(name: str) -> str:
    """Returns a name after making room for it."""
    if not re.fullmatch(r"[\w.:]+", name):
        raise DataError(f"'{name}' cannot be a task's name; it takes letters, digits and _ . :")
    if name in seqio.MixtureRegistry.names():
        raise DataError(f"'{name}' is a mixture; give the table another MIXTURE_OR_TASK_NAME")
    if name in seqio.TaskRegistry.names():
        if not isinstance(seqio.TaskRegistry.get(name).source, ExamplesSource):
            raise DataError(
                f"'{name}' is another task; give the table another MIXTURE_OR_TASK_NAME"
            )
        seqio.TaskRegistry.remove(name)
        LABELS.pop(name, None)
    return name
