"""Training data for bases from any text: span corruption and instructions, as SeqIO tasks.

`text_spans` is T5's span corruption of the text file in the environment variable TEXT_FILE (read
when the task is opened; each line is a text, every hundredth line is for validation). The two
`add_…` functions register the same for any other source and vocabulary. Mix their tasks with
`seqio.MixtureRegistry.add`.
"""

import functools
import hashlib
import os
import string
from collections.abc import Sequence
from typing import cast

import seqio
import tensorflow as tf

from tasks import metrics, tsv
from tasks.errors import DataError
from tasks.registry import EVAL_SPLITS, add_generation, output_features
from tasks.vocabulary import UserVocabulary

VARIABLE = "TEXT_FILE"
_HELD_OUT = 100  # Every hundredth line.


class TextFileSource(seqio.DataSource):
    """The lines of the text file TEXT_FILE, as `text`, without blank lines.

    Lines 0, 100, 200 … (counting blank ones) are the split "validation", all others "train".
    """

    def __init__(self):
        super().__init__(splits=("train", "validation"))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Yes, because lines are assigned to shards one by one."""
        return True

    def _path(self) -> str:
        path = os.environ.get(VARIABLE, "")
        if not path:
            raise DataError(
                f"no text: set {VARIABLE} to a text file, a text a line "
                f"(an environment variable, or --gin.{VARIABLE}='….txt')"
            )
        return path

    def _check_split(self, split: str) -> None:
        if split not in self.splits:
            raise DataError(f"{VARIABLE} has no split '{split}'; it has {', '.join(self.splits)}")

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the one file."""
        self._check_split(split)
        return [self._path()]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Returns the lines of a split; shuffled in windows of 10,000.

        Raises:
          DataError: TEXT_FILE is not set or cannot be read, or there is no such split.
        """
        self._check_split(split)
        path = os.path.expanduser(self._path())
        if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
            raise DataError(f"{VARIABLE}={self._path()}: no such file")
        held_out = split == "validation"
        # Windows' editors start a file with a byte order mark.
        lines = tf.data.TextLineDataset(path).map(
            lambda line: tf.strings.regex_replace(line, "^\ufeff", "")
        )
        dataset = lines.enumerate().filter(
            lambda i, line: (
                ((i % _HELD_OUT == 0) == held_out) & (tf.strings.length(tf.strings.strip(line)) > 0)
            )
        )
        dataset = dataset.map(lambda _, line: {"text": line})
        if shard_info and shard_info.num_shards > 1:
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        return dataset.shuffle(10_000, seed=seed) if shuffle else dataset

    def identity(self, split: str) -> dict[str, str]:
        """Returns the file's name and SHA-256, and the split; JSON-able, without absolute paths."""
        self._check_split(split)
        content = tsv.read_bytes(self._path())
        return {
            "kind": "text",
            "file": os.path.basename(self._path()),
            "sha256": hashlib.sha256(content).hexdigest(),
            "split": split,
        }


def _random_lengths(items: tf.Tensor, segments: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the lengths of a uniformly random division of items into non-empty segments."""
    starts = tf.cast(tf.range(items - 1) < segments - 1, tf.int32)
    starts = tf.random.experimental.stateless_shuffle(starts, seed)  # pyright: ignore[reportAttributeAccessIssue]: no stub
    return tf.math.segment_sum(tf.ones([items], tf.int32), tf.concat([[0], tf.cumsum(starts)], 0))


def noise_mask(
    length: tf.Tensor, seed: tf.Tensor, density: float, mean_span: float, max_spans: int
) -> tf.Tensor:
    """Chooses which tokens of a text to hide, as T5's `random_spans_noise_mask` does.

    Spans and the kept tokens between them are uniformly random divisions of their totals. The text
    starts with a kept token and ends with a hidden one.

    Args:
      length: number of tokens, at least 2.
      seed: two int32 for stateless random numbers.
      density: share of hidden tokens, rounded to a number of tokens.
      mean_span: average number of tokens in a span.
      max_spans: maximum number of spans.

    Returns:
      Bool [length].
    """
    size = tf.cast(length, tf.float32)
    hidden = tf.clip_by_value(tf.cast(tf.round(size * density), tf.int32), 1, length - 1)
    spans = tf.cast(tf.round(tf.cast(hidden, tf.float32) / mean_span), tf.int32)
    spans = tf.clip_by_value(spans, 1, tf.minimum(tf.minimum(hidden, length - hidden), max_spans))
    kept_lengths = _random_lengths(length - hidden, spans, seed)
    hidden_lengths = _random_lengths(hidden, spans, seed + 1)
    lengths = tf.reshape(tf.stack([kept_lengths, hidden_lengths], 1), [-1])
    return tf.repeat(tf.range(2 * spans) % 2 == 1, lengths)


def _with_sentinels(tokens: tf.Tensor, replaced: tf.Tensor, last_id: int) -> tf.Tensor:
    """Replaces the n-th run of replaced tokens by the n-th sentinel, counting down."""
    first = replaced & tf.logical_not(tf.concat([[False], replaced[:-1]], 0))
    sentinels = last_id + 1 - tf.cumsum(tf.cast(first, tf.int32))
    return tf.boolean_mask(tf.where(first, sentinels, tokens), first | tf.logical_not(replaced))


def corrupt_spans(dataset, output_features, *, max_tokens: int, density: float, mean_span: float):
    """Applies T5's span corruption: hidden spans become sentinels, which the targets fill in.

    A text is cut into pieces of at most `max_tokens`. The hidden tokens depend only on the piece,
    so they are the same in every process, order and epoch.

    Args:
      dataset: examples with a string `text`.
      output_features: the features `inputs` and `targets`, with one vocabulary whose last ids are
        sentinels.
      max_tokens: maximum length of a piece, in tokens.
      density: see `noise_mask`.
      mean_span: see `noise_mask`.

    Returns:
      Examples with int32 sequences `inputs` and `targets`, without their end-of-text.
    """
    vocabulary = output_features["inputs"].vocabulary
    if isinstance(vocabulary, UserVocabulary):
        vocabulary.load_model()

    def pieces(example):
        tokens = tf.cast(vocabulary.encode_tf(example["text"]), tf.int32)
        count = (tf.size(tokens) + max_tokens - 1) // max_tokens
        cut = tf.pad(tokens, [[0, count * max_tokens - tf.size(tokens)]], constant_values=-1)
        return tf.data.Dataset.from_tensor_slices(tf.reshape(cut, [-1, max_tokens]))

    def corrupt(piece):
        tokens = tf.boolean_mask(piece, piece >= 0)
        content = tf.strings.reduce_join(tf.strings.as_string(tokens), separator=" ")
        seed = tf.stack([tf.cast(tf.strings.to_hash_bucket_fast(content, 2**30), tf.int32), 0])
        mask = noise_mask(tf.size(tokens), seed, density, mean_span, vocabulary.extra_ids)
        last_id = vocabulary.vocab_size - 1
        return {
            "inputs": _with_sentinels(tokens, mask, last_id),
            "targets": _with_sentinels(tokens, tf.logical_not(mask), last_id),
        }

    dataset = dataset.flat_map(pieces).filter(lambda piece: piece[1] >= 0)
    return dataset.map(corrupt, num_parallel_calls=tf.data.AUTOTUNE)


def add_span_corruption(
    name: str,
    source: seqio.DataSource,
    vocabulary: seqio.Vocabulary | None = None,
    *,
    max_tokens: int = 128,
    density: float = 0.15,
    mean_span: float = 3.0,
) -> seqio.Task:
    """Registers T5's span corruption of a source's texts.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: yields strings `text`.
      vocabulary: has its sentinels as last ids; by default the user's SentencePiece file.
      max_tokens: maximum length of a piece of text; choose TASK_FEATURE_LENGTHS to fit it.
      density: share of hidden tokens.
      mean_span: average number of tokens in a hidden span.
    """
    EVAL_SPLITS[name] = ("validation",)
    return seqio.TaskRegistry.add(
        name,
        source=cast(seqio.DataSourceInterface, source),  # seqio.DataSource may lack a count.
        preprocessors=[
            functools.partial(
                corrupt_spans, max_tokens=max_tokens, density=density, mean_span=mean_span
            ),
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        metric_fns=[metrics.sequence_accuracy],
        output_features=output_features(vocabulary),
    )


def instruct(dataset, *, templates: Sequence, fields: Sequence[str]):
    """Turns examples into instructions; a hash of an example's texts chooses its template.

    Args:
      dataset: examples with the string fields and either an integer `label` or a string `answer`.
      templates: pairs of an instruction with places for the fields, "{}" or "{0}", "{1}", and the
        answers in the order of the labels; None for the example's own `answer`.
      fields: names of the fields, in the order of the places.

    Returns:
      Examples with the strings `inputs` and `targets`.
    """

    def fill(template: str, texts: Sequence[tf.Tensor]) -> tf.Tensor:
        parts, places = [], iter(range(len(fields)))
        for literal, place, _, _ in string.Formatter().parse(template):
            parts.append(literal)
            if place is not None:
                parts.append(texts[int(place) if place else next(places)])
        return tf.strings.join(parts)

    def convert(example):
        texts = [example[field] for field in fields]
        which = tf.strings.to_hash_bucket_fast(tf.strings.join(texts, "\t"), len(templates))
        filled = [fill(template, texts) for template, _ in templates]
        answered = [
            tf.gather(tf.constant(answers), example["label"]) if answers else example["answer"]
            for _, answers in templates
        ]
        return {"inputs": tf.stack(filled)[which], "targets": tf.stack(answered)[which]}

    return dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)


def add_instructions(
    name: str,
    source: seqio.DataSource,
    templates: Sequence,
    fields: Sequence[str],
    vocabulary: seqio.Vocabulary | None = None,
) -> seqio.Task:
    """Registers a source's examples as instructions, which are evaluated by generation.

    Args:
      name: the task's name, new to SeqIO's registry.
      source: yields the fields and `label` or `answer`.
      templates: see `instruct`.
      fields: see `instruct`.
      vocabulary: by default the user's SentencePiece file.
    """
    return add_generation(
        name,
        source,
        functools.partial(instruct, templates=tuple(templates), fields=tuple(fields)),
        [metrics.sequence_accuracy],
        vocabulary=vocabulary,
    )


add_span_corruption("text_spans", TextFileSource())
