"""The mini world's vocabulary: a fixed list of words and T5's sentinels."""

import hashlib
from collections.abc import Sequence

import seqio
import tensorflow as tf

from tasks import glue, mini_events, mini_language, mini_templates

SENTINELS = 8


class MiniVocabulary(seqio.Vocabulary):
    """A fixed list of words; text is split at spaces.

    Ids: 0 pad, 1 end, 2 unknown, then the words, then the sentinels in reverse order as in T5
    (the last id is "<extra_id_0>").

    Args:
      words: the words, without special ones.
      extra_ids: number of sentinels.
    """

    def __init__(self, words: Sequence[str], extra_ids: int = SENTINELS):
        super().__init__(extra_ids=extra_ids)
        sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
        self._words = ("<pad>", "</s>", "<unk>", *words, *sentinels)
        self._ids = {word: i for i, word in enumerate(self._words)}
        self._table = None

    def __getstate__(self):
        return self.__dict__ | {"_table": None}  # TensorFlow's tables do not pickle

    @property
    def bos_id(self) -> None:
        """None, because T5's decoder starts with the padding id."""
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
    def vocab_size(self) -> int:
        """Number of ids, including sentinels (as for SentencePiece vocabularies)."""
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
            with tf.init_scope():  # the table must outlive the function that is being traced
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


# Words of mini-GLUE's formats; no instruction contains them.
GLUE_WORDS = (
    "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "sentence:", "sentence1:",
    "sentence2:", "question:", "question1:", "question2:", "premise:", "hypothesis:",
)  # fmt: skip

VOCABULARY = MiniVocabulary(
    list(
        dict.fromkeys(
            (
                *mini_language.lexicon(),
                *mini_events.lexicon(),
                *mini_templates.words(),
                *GLUE_WORDS,
                *glue.SCORES,
            )
        )
    )
)
