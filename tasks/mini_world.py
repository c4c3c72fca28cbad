"""The mini world as data: which part of it each task may see, and examples made from one seed.

Every meaning lies in one of a hundred parts of the world (`mini_events.Event.part`, and for the
sentences of `mini_language` a hash of their sorted words). Pre-training and mini-GLUE, and of each
the splits, use different parts: nothing that is measured on is ever trained on in other words.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from tasks import mini_language
from tasks.errors import DataError
from tasks.sources import dataset_from_columns

VERSION = 2  # Raise it with any change of what is generated: caches and run records name it.
SEED = 2310
PARTS = {
    ("pretraining", "train"): range(0, 60),
    ("pretraining", "validation"): range(60, 65),
    ("glue", "train"): range(65, 90),
    ("glue", "validation"): range(90, 100),
}

#: From a source of randomness and the parts of the world that may be used, endless examples.
Generator = Callable[[mini_language.Draw, range], Iterator[dict]]


class MiniSource(seqio.DataSource):
    """Generated examples, made when they are first asked for, the same on every machine.

    Args:
      name: the task's name; another name gives other examples.
      where: "pretraining" or "glue", see `PARTS`.
      generator: makes the examples.
      sizes: number of examples of each split.
      dtypes: of the fields that are no strings.
    """

    def __init__(
        self,
        name: str,
        where: str,
        generator: Generator,
        sizes: Mapping[str, int],
        dtypes: Mapping[str, type] | None = None,
    ):
        super().__init__(splits=tuple(sizes), num_input_examples=dict(sizes))
        self._name, self._where, self._generator = name, where, generator
        self._sizes, self._dtypes = dict(sizes), dict(dtypes or {})
        self._made: dict[str, dict[str, np.ndarray]] = {}

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """The examples of a split as columns of equal length; `idx` (int32) counts from 0."""
        if split not in self._made:
            self._made[split] = self._generate(split)
        return self._made[split]

    def _generate(self, split: str) -> dict[str, np.ndarray]:
        draw = mini_language.Draw(zlib.crc32(f"{SEED} {self._name} {split}".encode()))
        examples = self._generator(draw, PARTS[self._where, split])
        rows = [next(examples) for _ in range(self._sizes[split])]
        columns = {
            name: np.array([row[name] for row in rows], self._dtypes.get(name, object))
            for name in rows[0]
        }
        return columns | {"idx": np.arange(len(rows), dtype=np.int32)}

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Yes: every example can be reached alone."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """One name: there are no files."""
        return [f"{self._name}-{split}"]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """Examples of one split.

        Raises:
          DataError: there is no such split.
        """
        if split not in self.splits:
            raise DataError(f"{self._name} has no split '{split}'; it has {', '.join(self.splits)}")
        return dataset_from_columns(self.columns(split), shuffle, seed, shard_info)

    def identity(self, split: str) -> dict:
        """Generator, version and seed: all that the examples depend on."""
        return {
            "kind": "generated",
            "name": self._name,
            "split": split,
            "version": VERSION,
            "seed": SEED,
        }
