"""Registering tasks with SeqIO, and what evaluation and caching need to know of them."""

import functools
from collections.abc import Callable, Sequence

import seqio

from tasks import sources
from tasks.vocabulary import UserVocabulary

#: Task name to the texts of its labels, in the order of their class ids. A task that is not here
#: is evaluated by generation.
LABELS: dict[str, tuple[str, ...]] = {}
#: Task name to the splits on which it is evaluated.
EVAL_SPLITS: dict[str, tuple[str, ...]] = {}


def label_id(text: str, *, labels: Sequence[str], **unused) -> int:
    """The class id of a label's text, or -1 for a text that is no label (T5's postprocessing)."""
    return labels.index(text) if text in labels else -1


def output_features(vocabulary: seqio.Vocabulary | None = None) -> dict[str, seqio.Feature]:
    """The two features of a text-to-text task, `inputs` and `targets`, each ending in eos.

    Args:
      vocabulary: encodes both; default the user's SentencePiece file.
    """
    vocabulary = vocabulary or UserVocabulary()
    return {
        "inputs": seqio.Feature(vocabulary, add_eos=True, required=False),
        "targets": seqio.Feature(vocabulary, add_eos=True),
    }


def tokenize(dataset, output_features):
    """SeqIO's `tokenize`, after opening the vocabularies.

    Opened inside the traced function, a missing vocabulary would surface as TensorFlow's
    many-lined report of it.
    """
    for feature in output_features.values():
        if isinstance(feature.vocabulary, UserVocabulary):
            feature.vocabulary.load_model()
    return seqio.preprocessors.tokenize(dataset, output_features)


def text_to_text(preprocess: Callable | None) -> list[Callable]:
    """The preprocessors of every task here: format, tokenize, cache, trim and end.

    Args:
      preprocess: from raw examples to examples with the strings `inputs` and `targets` (a function
        of datasets); None where the source yields them already.
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

    Such a task is evaluated by scoring every label (rank classification), and by generation if
    that is asked for.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: any SeqIO data source.
      preprocess: from its examples to ones with the strings `inputs` and `targets`; None if they
        are there already.
      labels: the texts that targets take, in the order of their class ids.
      metric_fns: functions of (targets, predictions), lists of what `postprocess_fn` returns.
      eval_splits: splits of the source on which the task is evaluated.
      vocabulary: default the user's SentencePiece file.
      postprocess_fn: from a text to what the metrics compare; default `label_id`.

    Returns:
      The registered task.

    Raises:
      ValueError: labels missing or repeated, or a name that is taken.
    """
    labels = tuple(labels)
    if len(set(labels)) < max(2, len(labels)):
        raise ValueError(f"task '{name}' needs two or more different labels, got {labels}")
    task = seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=text_to_text(preprocess),
        postprocess_fn=postprocess_fn or functools.partial(label_id, labels=labels),
        metric_fns=list(metric_fns),
        output_features=output_features(vocabulary),
    )
    LABELS[name] = labels
    EVAL_SPLITS[name] = tuple(eval_splits)
    return task


def available_splits(task_name: str) -> tuple[str, ...]:
    """Which of a task's splits its present source really has.

    A GLUE folder may lack a file, for instance MNLI's dev_mismatched.

    Raises:
      DataError: if the source's folder is not there at all.
    """
    source = seqio.TaskRegistry.get(task_name).source
    ask = getattr(source, "available_splits", None)
    return tuple(ask() if ask else source.splits)


def source_identity(task_name: str, split: str) -> dict:
    """What a split of a task is read from, for `run.json` and cache keys.

    Returns:
      A JSON-able dictionary that is equal exactly where the raw examples are: for GLUE's files the
      base name and SHA-256, for GLUE from TFDS the name, version and split, for generated tasks
      the generator's version and seed. Of any other source the examples themselves are hashed,
      which takes one pass over them.
    """
    source = seqio.TaskRegistry.get(task_name).source
    if hasattr(source, "identity"):
        return source.identity(split)
    return {
        "kind": type(source).__name__,
        "split": split,
        "sha256": sources.examples_digest(source, split),
    }
