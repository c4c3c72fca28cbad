"""Tasks made from examples in Python, registered under a hash of their content."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import metrics
from tasks.registry import EVAL_SPLITS, add_classification, output_features, text_to_text
from tasks.sources import dataset_from_columns
from tasks.vocabulary import UserVocabulary

Examples = Sequence[tuple[str, str]]


class ExamplesSource(seqio.DataSource):
    """Pairs of input and target texts in memory, by split."""

    def __init__(self, splits: Mapping[str, Examples], labels: Sequence[str]):
        """Takes the splits, and the labels used as targets, which may be empty."""
        super().__init__(splits=tuple(splits))
        self._splits = {split: list(pairs) for split, pairs in splits.items()}
        self._labels = list(labels)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Whether any number of shards can be read: yes."""
        return True

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Returns examples with the strings `inputs` and `targets`."""
        inputs, targets = zip(*self._splits[split], strict=True)
        columns = {"inputs": np.array(inputs, object), "targets": np.array(targets, object)}
        return dataset_from_columns(columns, shuffle, seed, shard_info)

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns one shard, named after the split."""
        return [split]

    def num_input_examples(self, split: str) -> int:
        """Returns the number of examples in a split."""
        return len(self._splits[split])

    def identity(self, split: str) -> dict:
        """Returns the hash and labels of a split's examples; JSON-able."""
        content = json.dumps(self._splits[split], ensure_ascii=False).encode()
        digest = hashlib.sha256(content).hexdigest()
        return {"kind": "examples", "split": split, "sha256": digest, "labels": self._labels}


def add_examples(
    splits: Mapping[str, Examples],
    labels: Sequence[str] = (),
    vocabulary: seqio.Vocabulary | None = None,
) -> str:
    """Registers pairs of texts as a task; equal pairs give the same task.

    Args:
      splits: "train", "validation" or both, to pairs of input and target text.
      labels: the texts used as targets, in the order of their class ids. The task is then scored
        by ranking them, with accuracy as its metric. If empty, by generation and exact match.
      vocabulary: by default the user's SentencePiece file.

    Returns:
      The task's name, ``examples_`` with a hash of its content.
    """
    source = ExamplesSource(splits, labels)
    vocabulary = vocabulary or UserVocabulary()
    model = hashlib.sha256(getattr(vocabulary, "sp_model", None) or b"").hexdigest()
    known = [source.identity(split) for split in sorted(splits)]
    whole = json.dumps([known, model, vocabulary.vocab_size], sort_keys=True).encode()
    name = f"examples_{hashlib.sha256(whole).hexdigest()[:12]}"
    if name in seqio.TaskRegistry.names():
        return name
    evaluated = tuple(split for split in ("validation",) if split in splits)
    if labels:
        add_classification(
            name,
            source,
            None,
            labels,
            [metrics.accuracy],
            eval_splits=evaluated,
            vocabulary=vocabulary,
        )
        return name
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=text_to_text(None),
        metric_fns=[metrics.sequence_accuracy],
        output_features=output_features(vocabulary),
    )
    EVAL_SPLITS[name] = evaluated
    return name
