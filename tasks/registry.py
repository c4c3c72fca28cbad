"""Registers tasks with SeqIO, with what evaluation and caching need to know about them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import seqio

from tasks import sources
from tasks.vocabulary import UserVocabulary

#: Task name → the texts of its labels, in the order of their class ids. Tasks that are not here are
#: evaluated by generation.
LABELS: dict[str, tuple[str, ...]] = {}
#: Task name → the splits for its evaluation.
EVAL_SPLITS: dict[str, tuple[str, ...]] = {}
#: Task name → the metric that is its score; of other tasks it is the mean of all metrics.
SCORED_BY: dict[str, str] = {}
#: Name of a source of drawn pictures → a function from a picture's index to uint8 [H, W, 3]. The
#: feature `image` of an example is ``name:index`` of such a picture, or a file's path.
PICTURES: dict[str, Callable[[int], np.ndarray]] = {}
#: The target text of examples whose label is not known, as T5 writes it.
UNLABELED = "<unk>"


def label_id(text: str, *, labels: Sequence[str], **unused) -> int:
    """Returns the class id of a label's text, or -1 if it is no label (T5's postprocessing)."""
    return labels.index(text) if text in labels else -1


def output_features(vocabulary: seqio.Vocabulary | None = None) -> dict[str, Any]:
    """Returns the two features of a text-to-text task, `inputs` and `targets`, each with EOS.

    Args:
      vocabulary: encodes both; by default the user's SentencePiece file.
    """
    vocabulary = vocabulary or UserVocabulary()
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }


def tokenize(dataset, output_features):
    """Opens the vocabularies, then calls SeqIO's `tokenize`.

    If a vocabulary is missing, opening it inside the traced function would give a long report by
    TensorFlow instead of one line.
    """
    for feature in output_features.values():
        if isinstance(feature.vocabulary, UserVocabulary):
            feature.vocabulary.load_model()
    return seqio.preprocessors.tokenize(dataset, output_features)


def text_to_text(preprocess: Callable | None) -> list[Callable]:
    """Returns the preprocessors of every task here: format, tokenize, cache, trim, append EOS.

    Args:
      preprocess: a function of datasets, from raw examples to ones with the strings `inputs` and
        `targets`; None if the source already yields these.
    """
    return [
        *([preprocess] if preprocess else []),
        tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ]


def add_classification(
    name: str,
    source: seqio.DataSource,
    preprocess: Callable | None,
    labels: Sequence[str],
    metric_fns: Sequence[Callable],
    *,
    eval_splits: Sequence[str] = ("validation",),
    vocabulary: seqio.Vocabulary | None = None,
    postprocess_fn: Callable | None = None,
) -> seqio.Task:
    """Registers a task whose targets are a few known texts.

    It is evaluated by scoring every label (rank classification), or by generation on request.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: any SeqIO data source.
      preprocess: turns its examples into ones with the strings `inputs` and `targets`; None if they
        already have these.
      labels: the texts used as targets, in the order of their class ids.
      metric_fns: functions of (targets, predictions), lists of results of `postprocess_fn`.
      eval_splits: the source's splits for evaluation.
      vocabulary: by default the user's SentencePiece file.
      postprocess_fn: turns a text into what the metrics compare; by default `label_id`.

    Returns:
      The registered task.

    Raises:
      ValueError: labels are missing or repeated, or the name is taken.
    """
    labels = tuple(labels)
    if len(set(labels)) < max(2, len(labels)):
        raise ValueError(f"task '{name}' needs two or more different labels, got {labels}")
    task = seqio.TaskRegistry.add(
        name,
        source=cast(seqio.DataSourceInterface, source),  # seqio.DataSource may lack a count.
        preprocessors=text_to_text(preprocess),
        postprocess_fn=postprocess_fn or functools.partial(label_id, labels=labels),
        metric_fns=list(metric_fns),
        output_features=output_features(vocabulary),
    )
    LABELS[name] = labels
    EVAL_SPLITS[name] = tuple(eval_splits)
    return task


def add_generation(
    name: str,
    source: seqio.DataSource,
    preprocess: Callable | None,
    metric_fns: Sequence[Callable],
    *,
    eval_splits: Sequence[str] = ("validation",),
    vocabulary: seqio.Vocabulary | None = None,
    postprocess_fn: Callable | None = None,
) -> seqio.Task:
    """Registers a task whose targets are any texts; it is evaluated by generation.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: as for `add_classification`.
      preprocess: as for `add_classification`.
      metric_fns: as for `add_classification`.
      eval_splits: the source's splits for evaluation.
      vocabulary: by default the user's SentencePiece file.
      postprocess_fn: turns a text into what the metrics compare; by default the text itself.

    Returns:
      The registered task.
    """
    task = seqio.TaskRegistry.add(
        name,
        source=cast(seqio.DataSourceInterface, source),  # seqio.DataSource may lack a count.
        preprocessors=text_to_text(preprocess),
        postprocess_fn=postprocess_fn,
        metric_fns=list(metric_fns),
        output_features=output_features(vocabulary),
    )
    EVAL_SPLITS[name] = tuple(eval_splits)
    return task


def available_splits(task_name: str) -> tuple[str, ...]:
    """Returns the splits of a task that its current source really has.

    A GLUE folder may lack a file, for instance MNLI's dev_mismatched.

    Raises:
      DataError: the source's folder does not exist.
    """
    source = seqio.TaskRegistry.get(task_name).source
    ask = getattr(source, "available_splits", None)
    return tuple(ask() if ask else source.splits)


def source_identity(task_name: str, split: str) -> dict:
    """Identifies the data of a task's split, for `run.json` and cache keys.

    Returns:
      A JSON-able dictionary that is equal if and only if the raw examples are. It has the base name
      and SHA-256 for GLUE's files; name, version and split for GLUE from TFDS; the generator's
      version and seed for generated tasks. For any other source the examples are hashed, which
      takes one pass over them.
    """
    source = seqio.TaskRegistry.get(task_name).source
    if identity := getattr(source, "identity", None):
        return identity(split)
    return {
        "kind": type(source).__name__,
        "split": split,
        "sha256": sources.examples_digest(source, split),
    }
