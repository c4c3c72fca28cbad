"""Sequences of different lengths in one flat array. Only imports NumPy."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the integers of many half-open ranges, one range after the other.

    Args:
      starts: int [n], the first integer of each range.
      lengths: int [n], the number of integers of each range; 0 is allowed.

    Returns:
      int64 [sum(lengths)]: ``starts[0], starts[0] + 1, …, starts[1], …``.
    """
    lengths = np.asarray(lengths, np.int64)
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(np.asarray(starts, np.int64) - before, lengths)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """n sequences in one flat array.

    Attributes:
      flat: [sum of lengths], all sequences one after the other, of any dtype.
      offsets: int64 [n + 1]; sequence i is ``flat[offsets[i] : offsets[i + 1]]``.
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(
        cls, sequences: Sequence[Sequence[int] | np.ndarray], dtype: type = np.int32
    ) -> "Ragged":
        """Makes a ragged array of sequences."""
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        parts = [np.asarray(sequence, dtype) for sequence in sequences]
        return cls.joined(np.concatenate(parts) if parts else np.zeros(0, dtype), lengths)

    @classmethod
    def joined(cls, flat: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Makes a ragged array by cutting `flat` into pieces of the given lengths."""
        return cls(
            flat, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        )

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], the length of each sequence."""
        return np.diff(self.offsets)

    def head(self, n: int) -> "Ragged":
        """Returns the first n sequences, without copying them."""
        return Ragged(self.flat, self.offsets[: n + 1])

    def take(self, indices: np.ndarray) -> "Ragged":
        """Returns a copy of the sequences at these indices, in this order."""
        starts, lengths = self.offsets[indices], self.lengths[indices]
        return Ragged.joined(np.asarray(self.flat[ranges(starts, lengths)]), lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


class Texts(Sequence):
    """Strings stored as UTF-8 bytes in one flat array, so that they can be memory-mapped."""

    def __init__(self, ragged: Ragged):
        """Wraps uint8 sequences."""
        self.ragged = ragged

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "Texts":
        """Makes texts of UTF-8 byte strings."""
        lengths = np.array([len(text) for text in texts], np.int64)
        return cls(Ragged.joined(np.frombuffer(b"".join(texts), np.uint8), lengths))

    def head(self, n: int) -> "Texts":
        """Returns the first n texts, without copying them."""
        return Texts(self.ragged.head(n))

    def counts(self) -> dict[str, int]:
        """Returns how often each distinct text occurs, in the order of first appearance."""
        content, offsets = self.ragged.flat.tobytes(), self.ragged.offsets.tolist()
        found = collections.Counter(content[a:b] for a, b in itertools.pairwise(offsets))
        return {text.decode("utf-8", errors="replace"): n for text, n in found.items()}

    def take(self, indices: np.ndarray) -> "Texts":
        """Returns a copy of the texts at these indices, in this order."""
        return Texts(self.ragged.take(indices))

    def __len__(self) -> int:
        return len(self.ragged)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        return self.ragged[index].tobytes().decode("utf-8", errors="replace")
