"""The mini world as data: which parts each task may use, and examples generated from one seed.

Every meaning is in one of a hundred parts of the world (`mini_events.Event.part`; for sentences of
`mini_language`, a hash of their sorted words). Pre-training and mini-GLUE, and the splits of each,
use different parts. So no meaning in evaluation occurs in training, not even in other words.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tasks import mini_language
from tasks.errors import DataError
from tasks.sources import ColumnsSource

VERSION = 2  # Increase it with any change of the examples: caches and run records contain it.
SEED = 2310
PARTS = {
    ("pretraining", "train"): range(0, 60),
    ("pretraining", "validation"): range(60, 65),
    ("glue", "train"): range(65, 90),
    ("glue", "validation"): range(90, 100),
}

#: Takes a source of randomness and the allowed parts of the world; yields examples forever.
Generator = Callable[[mini_language.Draw, range], Iterator[dict]]


class MiniSource(ColumnsSource):
    """Examples that are generated on first use, the same on every machine.

    Args:
      name: the task's name; another name gives other examples.
      where: "pretraining" or "glue", see `PARTS`.
      generator: generates the examples.
      sizes: number of examples of each split.
      dtypes: dtypes of the fields that are not strings.
      version: of the examples, for caches and run records.
    """

    def __init__(
        self,
        name: str,
        where: str,
        generator: Generator,
        sizes: Mapping[str, int],
        dtypes: Mapping[str, type] | None = None,
        version: int = VERSION,
    ):
        super().__init__(splits=tuple(sizes), num_input_examples=dict(sizes))
        self._name, self._where, self._generator = name, where, generator
        self._sizes, self._dtypes = dict(sizes), dict(dtypes or {})
        self._version = version
        self._made: dict[str, dict[str, np.ndarray]] = {}

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Returns a split's examples as columns of equal length; `idx` (int32) counts from 0.

        Raises:
          DataError: there is no such split.
        """
        if split not in self.splits:
            raise DataError(f"{self._name} has no split '{split}'; it has {', '.join(self.splits)}")
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

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns one name, because there are no files."""
        return [f"{self._name}-{split}"]

    def identity(self, split: str) -> dict:
        """Returns everything the examples depend on: generator, version and seed."""
        return {
            "kind": "generated",
            "name": self._name,
            "split": split,
            "version": self._version,
            "seed": SEED,
        }
