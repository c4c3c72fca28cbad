"""English text as short pieces, without what is in the sets that a base will be scored on."""

import random
import re
from collections.abc import Iterable, Iterator, Sequence

_END = re.compile(r"""(?<=[.!?])["')]*\s+(?=["'(]?\w)""")
_WORD = re.compile(r"[a-z0-9]+")
_GRAM = 8  # Words: so many in a row are hardly the same by chance.
_SIZES = (8, 16, 40, 40, 40)  # Words of a piece; one size is drawn for each paragraph.


def sentences(paragraph: str) -> list[str]:
    """Splits a paragraph into sentences."""
    found, start = [], 0
    for match in _END.finditer(paragraph):
        found.append(paragraph[start : match.end()].strip())
        start = match.end()
    return [text for text in (*found, paragraph[start:].strip()) if text]


def pieces(paragraph: str, rng: random.Random) -> list[str]:
    """Cuts a paragraph into runs of whole sentences; only a long sentence is cut itself."""
    size, done, words = rng.choice(_SIZES), [], []
    for sentence in sentences(paragraph):
        split = sentence.split()
        if words and len(words) + len(split) > size:
            done.append(words)
            words = []
        words = words + split
        while len(words) > _SIZES[-1]:
            done.append(words[: _SIZES[-1]])
            words = words[_SIZES[-1] :]
    return [" ".join(some) for some in (*done, words) if len(some) > 2]


class Seen:
    """The texts of other files, to leave out what repeats them.

    Args:
      texts: those texts.
    """

    def __init__(self, texts: Iterable[str]):
        self._whole: set[tuple[str, ...]] = set()
        self._grams: set[tuple[str, ...]] = set()
        for text in texts:
            words = _words(text)
            self._whole.add(words)
            self._grams.update(_grams(words))

    def __contains__(self, text: str) -> bool:
        """Whether a sentence of a text is one of those, or shares eight words in a row."""
        words = _words(text)
        if any(gram in self._grams for gram in _grams(words)):
            return True
        return any(_words(sentence) in self._whole for sentence in sentences(text))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _grams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1))
