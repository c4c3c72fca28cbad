"""What a picture of the mini world shows: its meaning, of which its part of the world is a hash.

A scene has up to three things in different quadrants: objects (size, color, shape) and written
words (color, word). A document has four lines, each a field and a word. Meanings leave out where
things stand and how they are drawn, so that none of these makes a meaning new.
"""

import dataclasses
import zlib
from collections.abc import Callable, Container
from typing import TypeVar

from tasks.mini_language import Draw

SIZES = ("small", "big")
SHAPES = ("circle", "square", "triangle", "cross")
COLOR_WORDS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "pink")
PLACES = ("top left", "top right", "bottom left", "bottom right")
#: Words that are written in pictures, of two to four letters.
WORDS = (
    "ox", "ant", "bat", "cat", "cow", "dog", "elk", "fox", "hen", "owl", "pig", "rat", "bear",
    "deer", "duck", "frog", "goat", "lion", "moth", "wolf", "ax", "bed", "box", "cup", "hat", "jar",
    "key", "lamp", "map", "pen", "pot", "rope", "sock", "tent", "vase", "bell",
)  # fmt: skip
#: Names of a document's lines, of three letters.
FIELDS = ("day", "tax", "sum", "fee", "age", "job", "via", "who")


@dataclasses.dataclass(frozen=True, slots=True)
class Object:
    """An object: one of `SIZES`, `COLOR_WORDS` and `SHAPES` each."""

    size: str
    color: str
    shape: str

    @property
    def text(self) -> str:
        """Size, color and shape in words."""
        return f"{self.size} {self.color} {self.shape}"


@dataclasses.dataclass(frozen=True, slots=True)
class Sign:
    """A written word: one of `WORDS`, in one of `COLOR_WORDS`."""

    color: str
    word: str

    @property
    def text(self) -> str:
        """Color and word."""
        return f"{self.color} {self.word}"


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A picture of things.

    Attributes:
      things: (index of `PLACES`, thing) in reading order; at most one a place. Objects differ in
        shape, signs in color and word.
    """

    things: tuple[tuple[int, Object | Sign], ...]

    @property
    def objects(self) -> list[tuple[int, Object]]:
        """The objects with their places."""
        return [(place, thing) for place, thing in self.things if isinstance(thing, Object)]

    @property
    def signs(self) -> list[tuple[int, Sign]]:
        """The written words with their places."""
        return [(place, thing) for place, thing in self.things if isinstance(thing, Sign)]

    def meaning(self) -> str:
        """Returns what is there, without where."""
        return " , ".join(sorted(thing.text for _, thing in self.things))


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A picture of four lines.

    Attributes:
      lines: (field, word) from top to bottom; all fields and all words differ.
    """

    lines: tuple[tuple[str, str], ...]

    def meaning(self) -> str:
        """Returns the lines in alphabetical order."""
        return " , ".join(sorted(f"{field} {word}" for field, word in self.lines))


Meaning = TypeVar("Meaning", bound=Scene | Document)


def part(meaning: Scene | Document) -> int:
    """Returns which hundredth of all meanings this is in."""
    return zlib.crc32(meaning.meaning().encode()) % 100


def relation(first: int, second: int) -> str:
    """Returns where a place is, seen from another one: rows decide before columns."""
    rows, columns = (a - b for a, b in zip(divmod(first, 2), divmod(second, 2), strict=True))
    if rows:
        return "above" if rows < 0 else "below"
    return "left of" if columns < 0 else "right of"


def _some(draw: Draw, options, count: int) -> list:
    left = list(options)
    return [left.pop(draw.below(len(left))) for _ in range(count)]


def _scene(draw: Draw, objects: int, signs: int) -> Scene:
    places = sorted(_some(draw, range(len(PLACES)), objects + signs))
    shapes, inks = _some(draw, SHAPES, objects), _some(draw, COLOR_WORDS, signs)
    things: list[Object | Sign] = [
        Object(draw.pick(SIZES), draw.pick(COLOR_WORDS), shape) for shape in shapes
    ]
    things += [Sign(ink, word) for ink, word in zip(inks, _some(draw, WORDS, signs), strict=True)]
    order = _some(draw, things, len(things))
    return Scene(tuple(zip(places, order, strict=True)))


def objects(draw: Draw) -> Scene:
    """Draws a scene of one or two objects."""
    return _scene(draw, 1 + draw.chance(0.7), 0)


def labeled(draw: Draw) -> Scene:
    """Draws a scene of one object and one written word."""
    return _scene(draw, 1, 1)


def signposts(draw: Draw) -> Scene:
    """Draws a scene of two written words, half of the time with an object."""
    return _scene(draw, int(draw.chance(0.5)), 2)


def crowd(draw: Draw) -> Scene:
    """Draws a scene of two objects and one written word."""
    return _scene(draw, 2, 1)


def anything(draw: Draw) -> Scene:
    """Draws a scene of one of the kinds above."""
    return draw.pick((objects, labeled, signposts, crowd))(draw)


def document(draw: Draw) -> Document:
    """Draws a document."""
    fields, words = _some(draw, FIELDS, 4), _some(draw, WORDS, 4)
    return Document(tuple(zip(fields, words, strict=True)))


def within(draw: Draw, kind: Callable[[Draw], Meaning], parts: Container[int]) -> Meaning:
    """Draws until a meaning lies in some parts of the world."""
    while part(meaning := kind(draw)) not in parts:
        pass
    return meaning
