"""Pictures by name and index, and examples about them.

Picture i of an album is drawn from a hash of the album's name and i alone, and so is the text of
example i. So a picture is the same on every machine, whatever was drawn before it, and a task needs
no folder of files.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from tasks.mini_images import scenes
from tasks.mini_images.drawing import draw_picture, with_noise
from tasks.mini_images.scenes import Document, Scene
from tasks.mini_language import Draw
from tasks.mini_world import PARTS, SEED, MiniSource
from tasks.registry import PICTURES

VERSION = 1  # Increase it with any change of pictures or texts: caches and run records contain it.

Kind = Callable[[Draw], Scene | Document]
#: Takes what a picture shows and a source of randomness; returns `inputs` and `targets`, and
#: `references`, a list of texts, where a task has several right answers.
Text = Callable[..., dict]


@dataclasses.dataclass(frozen=True)
class Album:
    """A source of drawn pictures.

    Attributes:
      name: what stands before the colon in a picture's key; another name gives other pictures.
      kind: draws a meaning, one of the functions of `scenes`.
      parts: which hundredths of all meanings to draw from.
    """

    name: str
    kind: Kind
    parts: range

    def meaning(self, index: int) -> Scene | Document:
        """Returns what a picture shows."""
        return self._drawn(index)[0]

    def picture(self, index: int) -> np.ndarray:
        """Returns a picture, uint8 [32, 32, 3]."""
        return with_noise(self.clean(index), f"{self.name}:{index}".encode())

    def clean(self, index: int) -> np.ndarray:
        """Returns a picture before noise is added to it, uint8 [32, 32, 3]."""
        return draw_picture(*self._drawn(index))

    def _drawn(self, index: int) -> tuple[Scene | Document, Draw]:
        draw = Draw(zlib.crc32(f"{SEED} {self.name}:{index}".encode()))
        return scenes.within(draw, self.kind, self.parts), draw


class PictureSource(MiniSource):
    """Examples about pictures, with the key of each as its `image`.

    Args:
      name: the task's name; its albums are NAME_train and so on.
      where: "pretraining" or "glue", see `mini_world.PARTS`; the image tasks' meanings are in the
        parts of mini-GLUE's.
      kind: see `Album`.
      text: see `Text`.
      sizes: number of examples of each split.
    """

    def __init__(self, name: str, where: str, kind: Kind, text: Text, sizes: Mapping[str, int]):
        super().__init__(name, where, _by_index, sizes, version=VERSION)
        self._text = text
        self.albums = {
            split: Album(f"{name}_{split}", kind, PARTS[where, split]) for split in sizes
        }
        PICTURES.update({album.name: album.picture for album in self.albums.values()})

    def example(self, split: str, index: int) -> dict:
        """Returns `image`, `inputs`, `targets` and perhaps `references` of an example."""
        album = self.albums[split]
        draw = Draw(zlib.crc32(f"{SEED} {album.name}:{index} text".encode()))
        text = self._text(album.meaning(index), draw)
        return {"image": f"{album.name}:{index}", **text}

    def _generate(self, split: str) -> dict[str, np.ndarray]:
        rows = [self.example(split, index) for index in range(self._sizes[split])]
        columns = {name: np.array([row[name] for row in rows], object) for name in rows[0]}
        return columns | {"idx": np.arange(len(rows), dtype=np.int32)}


def _by_index(draw, parts):
    raise AssertionError("a picture is drawn from its index, not from what was drawn before it")
