"""The embedded mini world: tasks of a small English that need no download.

`mini_pretrain` (instructions 70 %, span corruption 30 %) turns a small random T5 into an
instruction-tuned base; `mini_sst2` and `mini_cola` are then new to it. They ask for the same two
judgements (`mini_language`) in GLUE's text form, "sst2 sentence: …", which no instruction uses.
Their answers are words that the base has learned to say, as the labels of real tasks are to a real
base: an adaptation of the input can then ask for them, and need not teach the decoder to spell.

All examples are generated, in about two seconds, from one seed. No sentence occurs in two splits,
nor in a held-out task and in pre-training.
"""

import functools
import hashlib
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import metrics
from tasks import mini_language as language
from tasks.errors import DataError
from tasks.glue import format_classes
from tasks.registry import EVAL_SPLITS, add_classification, output_features, text_to_text
from tasks.sources import dataset_from_columns

VERSION = 1  # raise it with any change of what is generated: caches and run records name it
SEED = 2310
SENTIMENT, ACCEPTABILITY = ("negative", "positive"), ("unacceptable", "acceptable")

# An instruction, and the answers to an unfavorable / faulty and a favorable / faultless sentence.
# Some ask for the opposite in the same words, so that the instruction has to be read.
SENTIMENT_TEMPLATES = (
    ("review : {} sentiment ?", SENTIMENT),
    ("is the opinion positive or negative ? {}", SENTIMENT),
    ("{} name the feeling of the text", SENTIMENT),
    ("what does the author think ? {}", SENTIMENT),
    ("opposite feeling : {}", SENTIMENT[::-1]),
    ("true or false : the author is pleased . {}", ("false", "true")),
    ("good or bad ? {}", ("bad", "good")),
    ("{} rate it", ("bad", "good")),
    ("does the author like it ? {}", ("no", "yes")),
    ("{} is this praise ?", ("no", "yes")),
    ("does the author complain ? {}", ("yes", "no")),
    ("how happy is the author ? {}", ("unhappy", "happy")),
)
ACCEPTABILITY_TEMPLATES = (
    ("grammar : {} verdict ?", ACCEPTABILITY),
    ("is the text acceptable or unacceptable english ? {}", ACCEPTABILITY),
    ("{} name the grammar of the text", ACCEPTABILITY),
    ("what does the editor think ? {}", ACCEPTABILITY),
    ("opposite grammar : {}", ACCEPTABILITY[::-1]),
    ("how good is the grammar ? {}", ("bad", "good")),
    ("correct or wrong ? {}", ("wrong", "correct")),
    ("{} check it", ("wrong", "correct")),
    ("would an editor keep it ? {}", ("no", "yes")),
    ("{} is this english ?", ("no", "yes")),
    ("does the text have a mistake ? {}", ("yes", "no")),
    ("true or false : the grammar is fine . {}", ("false", "true")),
)
HELD_OUT_WORDS = ("sst2", "cola", "sentence:")
SENTINELS = ("<span_0>", "<span_1>", "<span_2>")

SIZES = {
    "mini_instructions": {"train": 20_000, "validation": 400},
    "mini_spans": {"train": 10_000, "validation": 400},
    "mini_sst2": {"train": 2_000, "validation": 400},
    "mini_cola": {"train": 2_000, "validation": 400},
}
# Of every hundred sentences (told apart by a hash of their sorted words), those that a split may
# use: nothing that is measured on, and nothing of the held-out tasks, occurs in pre-training.
_SHARES = {
    ("pretrain", "train"): range(0, 60),
    ("pretrain", "validation"): range(60, 65),
    ("held_out", "train"): range(65, 90),
    ("held_out", "validation"): range(90, 100),
}


class MiniVocabulary(seqio.Vocabulary):
    """A fixed list of words; text is split at blanks.

    Ids: 0 pad, 1 end, 2 unknown, then the words.

    Args:
      words: the words, without the three special ones.
    """

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self._words = ("<pad>", "</s>", "<unk>", *words)
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._table = None

    def __getstate__(self):
        return self.__dict__ | {"_table": None}  # TensorFlow's tables do not pickle

    @property
    def bos_id(self) -> None:
        """There is none: T5's decoder starts with the padding id."""
        return None

    @property
    def eos_id(self) -> int:
        """1, as in T5."""
        return 1

    @property
    def unk_id(self) -> int:
        """2, as in T5."""
        return 2

    @property
    def _base_vocab_size(self) -> int:
        return len(self._words)

    @property
    def identity(self) -> str:
        """SHA-256 of the list of words, in hexadecimal."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def _encode(self, s: str) -> list[int]:
        return [self._ids.get(word, self.unk_id) for word in s.split()]

    def _decode(self, ids) -> str:
        return " ".join(self._words[i] for i in ids if i not in (self.pad_id, self.eos_id))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        if self._table is None:
            with tf.init_scope():  # the table outlives the function that is being traced
                self._table = tf.lookup.StaticHashTable(
                    tf.lookup.KeyValueTensorInitializer(
                        tf.constant(self._words), tf.range(len(self._words), dtype=tf.int32)
                    ),
                    default_value=self.unk_id,
                )
        return self._table.lookup(tf.strings.split(s))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        words = tf.gather(tf.constant(("", "", *self._words[2:])), ids)
        joined = tf.strings.reduce_join(words, axis=-1, separator=" ")
        return tf.strings.strip(tf.strings.regex_replace(joined, " +", " "))

    def __eq__(self, other) -> bool:
        return isinstance(other, MiniVocabulary) and self._words == other._words

    def __hash__(self) -> int:
        return hash(self._words)


def _words() -> list[str]:
    templates = (*SENTIMENT_TEMPLATES, *ACCEPTABILITY_TEMPLATES)
    asked = [word for template, _ in templates for word in template.split() if word != "{}"]
    answered = [word for _, answers in templates for word in answers]
    return list(
        dict.fromkeys((*language.lexicon(), *asked, *answered, *HELD_OUT_WORDS, *SENTINELS))
    )


VOCABULARY = MiniVocabulary(_words())


def _sentences(draw, share: range, judge: str, plain: float = 0) -> Iterator[tuple[str, int]]:
    """Endless different sentences of one share, labels 0 and 1 in turn.

    Args:
      draw: source of randomness.
      share: which hundredths of all sentences are drawn from.
      judge: "sentiment" or "acceptability", which the label is of.
      plain: which part of them is of the simplest form. A small model that is to learn from
        nothing needs some to start from.
    """
    seen, label = set(), 0
    while True:
        is_plain = draw.chance(plain)
        if judge == "sentiment":
            words = language.opinion(draw, bool(label), is_plain)
        elif draw.chance(0.5):
            words = language.opinion(draw, draw.chance(0.5), is_plain)
        else:
            words = language.event(draw, is_plain)
        # By the sorted words, so that a sentence and its faulty order fall into the same share.
        key = " ".join(sorted(word.text for word in words))
        if zlib.crc32(key.encode()) % 100 not in share:
            continue
        if judge == "acceptability" and not label:
            words = language.spoil(draw, words)
        sentence = language.text(words)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence, label
            label = 1 - label


def _instructions(draw, share: range) -> Iterator[dict]:
    sentiment = _sentences(draw, share, "sentiment", plain=0.5)
    acceptability = _sentences(draw, share, "acceptability", plain=0.5)
    while True:
        for sentences, templates in (
            (sentiment, SENTIMENT_TEMPLATES),
            (acceptability, ACCEPTABILITY_TEMPLATES),
        ):
            sentence, label = next(sentences)
            template, answers = draw.pick(templates)
            yield {"inputs": template.format(sentence), "targets": answers[label]}


def _spans(draw, share: range) -> Iterator[dict]:
    """Faultless sentences of which one to three short spans are to be filled in."""
    for sentence, label in _sentences(draw, share, "acceptability"):
        if not label:
            continue
        words = sentence.split()
        inputs, targets, i = [], [], 0
        # Each span lies in its own part of four words or more, behind at least one kept word.
        spans = min(1 + draw.below(len(SENTINELS)), len(words) // 4)
        part = len(words) // spans
        for n in range(spans):
            start = max(i + 1, n * part + draw.below(part - 1))
            stop = start + 1 + draw.below(2)
            inputs += [*words[i:start], SENTINELS[n]]
            targets += [SENTINELS[n], *words[start:stop]]
            i = stop
        yield {"inputs": " ".join(inputs + words[i:]), "targets": " ".join(targets)}


def _held_out(draw, share: range, judge: str) -> Iterator[dict]:
    for sentence, label in _sentences(draw, share, judge):
        yield {"sentence": sentence, "label": label}


# Task: (which sentences it draws from, generator of its examples).
_GENERATORS = {
    "mini_instructions": ("pretrain", _instructions),
    "mini_spans": ("pretrain", _spans),
    "mini_sst2": ("held_out", functools.partial(_held_out, judge="sentiment")),
    "mini_cola": ("held_out", functools.partial(_held_out, judge="acceptability")),
}


@functools.cache
def generate(task_name: str, split: str) -> dict[str, np.ndarray]:
    """The examples of a generated task, the same at every call and on every machine.

    Args:
      task_name: one of `SIZES`.
      split: "train" or "validation".

    Returns:
      Columns of equal length: strings as objects, `label` int64, `idx` int32 from 0.
    """
    where, generator = _GENERATORS[task_name]
    draw = language.Draw(zlib.crc32(f"{SEED} {task_name} {split}".encode()))
    examples = generator(draw, _SHARES[where, split])
    rows = [next(examples) for _ in range(SIZES[task_name][split])]
    columns = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
    if "label" in columns:
        columns["label"] = columns["label"].astype(np.int64)
    return columns | {"idx": np.arange(len(rows), dtype=np.int32)}


class MiniDataSource(seqio.DataSource):
    """A generated task's examples, made when they are first asked for.

    Args:
      task_name: one of `SIZES`.
    """

    def __init__(self, task_name: str):
        super().__init__(splits=SIZES[task_name], num_input_examples=SIZES[task_name])
        self._task_name = task_name

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Yes: every example can be reached alone."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """One name: there are no files."""
        return [f"{self._task_name}-{split}"]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Examples of one split; see `generate`."""
        if split not in self.splits:
            raise DataError(
                f"{self._task_name} has no split '{split}'; it has {', '.join(self.splits)}"
            )
        return dataset_from_columns(generate(self._task_name, split), shuffle, seed, shard_info)

    def identity(self, split: str) -> dict:
        """Generator, version and seed: all that the examples depend on."""
        return {
            "kind": "generated",
            "name": self._task_name,
            "split": split,
            "version": VERSION,
            "seed": SEED,
        }


def _register_generated(name: str, metric_fns: list) -> None:
    seqio.TaskRegistry.add(
        name,
        source=MiniDataSource(name),
        preprocessors=text_to_text(None),
        metric_fns=metric_fns,
        output_features=output_features(VOCABULARY),
    )
    EVAL_SPLITS[name] = ("validation",)


def _register_held_out(name: str, labels: tuple[str, str], metric_fns: list) -> None:
    add_classification(
        name,
        MiniDataSource(name),
        functools.partial(
            format_classes,
            prefix=name.removeprefix("mini_"),
            fields=("sentence",),
            labels=labels,
        ),
        labels,
        metric_fns,
        vocabulary=VOCABULARY,
    )


_register_generated("mini_instructions", [metrics.sequence_accuracy])
_register_generated("mini_spans", [metrics.sequence_accuracy])
_register_held_out("mini_sst2", SENTIMENT, [metrics.accuracy])
_register_held_out("mini_cola", ACCEPTABILITY, [metrics.matthews_corrcoef, metrics.accuracy])
seqio.MixtureRegistry.add("mini_pretrain", [("mini_instructions", 0.7), ("mini_spans", 0.3)])
