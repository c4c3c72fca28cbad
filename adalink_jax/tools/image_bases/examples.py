"""The image world's examples in memory, pixels among them, for training its bases.

They are drawn and tokenized once, and kept in a file. A training that finds its files needs neither
SeqIO nor TensorFlow, so it runs on a machine that has JAX alone.
"""

import dataclasses
import functools
import hashlib
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import adalink_jax
from adalink_jax import files
from adalink_jax.data import corpus
from adalink_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a mixture, N of all its tasks.

    Attributes:
      arrays: `inputs` int32 [N, T] and `targets` int32 [N, L], with their ends and padded; `pixels`
        uint8 [N, 32, 32, 3] and `labels` int32 [N, 3, 16], see `patches`; `seen` int32 [N], 0 where
        an example has no picture; `task` int32 [N].
      tasks: the tasks in the order of their numbers.
      chances: float64 [N], how often an example is drawn.
      noise: the most that is still to be added to a pixel, or taken from it. Pictures to train on
        get new noise in each step; those to validate with have theirs, and this is 0.
      classes: number of `classes` of each kind.
      vocabulary: the identity of the texts' vocabulary.
    """

    arrays: Mapping[str, np.ndarray]
    tasks: tuple[str, ...]
    chances: np.ndarray
    noise: int
    classes: tuple[int, ...]
    vocabulary: str

    def rows(self, size: int, draw: np.random.Generator) -> np.ndarray:
        """Draws some examples; returns their numbers, int32 [size]."""
        ends = self._ends
        return np.searchsorted(ends, draw.random(size) * ends[-1], side="right").astype(np.int32)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.chances)


def load(mixture: str, split: str, folder: pathlib.Path) -> Examples:
    """Reads a split of a mixture of the image world; draws and tokenizes it at first.

    Args:
      mixture: its registered name.
      split: "train" or "validation".
      folder: where it is kept. Its file's name has a hash of the code of all tasks, so other code
        draws anew.

    Raises:
      UserError: its file is damaged.
    """
    path = folder / f"{mixture}.{split}.{_code()[:16]}.npz"
    if not path.exists():
        drawn = _drawn(mixture, split)
        with files.replaced_file(path) as file:
            np.savez_compressed(file, **_packed(drawn))
    try:
        with np.load(path) as stored:
            return _unpacked(dict(stored))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged; remove it to draw its examples anew") from error


def _code() -> str:
    """Returns a hash of the modules that draw, which are not imported."""
    code = hashlib.sha256()
    folder = pathlib.Path(adalink_jax.__file__).parent.parent / "tasks"
    for file in sorted(folder.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def _packed(examples: Examples) -> dict[str, Any]:
    """Returns the arrays of a file: ids and labels in 16 bits, which hold all of them."""
    about = {
        field.name: np.array(getattr(examples, field.name))
        for field in dataclasses.fields(examples)
        if field.name != "arrays"
    }
    small = {
        name: array if array.dtype == np.uint8 else array.astype(np.int16)
        for name, array in examples.arrays.items()
    }
    return about | {f"arrays/{name}": array for name, array in small.items()}


def _unpacked(stored: Mapping[str, np.ndarray]) -> Examples:
    wide = {
        name.removeprefix("arrays/"): array if array.dtype == np.uint8 else array.astype(np.int32)
        for name, array in stored.items()
        if name.startswith("arrays/")
    }
    return Examples(
        arrays=wide,
        tasks=tuple(stored["tasks"].tolist()),
        chances=stored["chances"],
        noise=int(stored["noise"]),
        classes=tuple(stored["classes"].tolist()),
        vocabulary=str(stored["vocabulary"]),
    )


def _drawn(mixture: str, split: str) -> Examples:
    found = corpus.mixture(mixture)
    from tasks.mini_images.drawing import NOISE

    noise = NOISE if split == "train" else 0
    parts = [_read(name, split, number, noise > 0) for number, name in enumerate(found.tasks)]
    counts = [len(part["task"]) for part in parts]
    rates = [rate / count for rate, count in zip(found.rates, counts, strict=True)]
    return Examples(
        arrays={name: _joined([part[name] for part in parts]) for name in parts[0]},
        tasks=found.tasks,
        chances=np.repeat(rates, counts),
        noise=noise,
        classes=tuple(map(len, classes())),
        vocabulary=corpus.vocabulary_identity(found.vocabulary),
    )


def _read(task: str, split: str, number: int, clean: bool) -> dict[str, np.ndarray]:
    from tasks.mini_images import raw, tuned

    tokens = corpus.tokens(task, split)
    source = (raw.SOURCES | tuned.SOURCES).get(task)  # None for a task of texts alone.
    count = len(tokens)
    arrays = {"inputs": _padded([*tokens.inputs]), "targets": _padded([*tokens.targets])}
    arrays["task"] = np.full(count, number, np.int32)
    arrays["seen"] = np.full(count, source is not None, np.int32)
    arrays["pixels"] = np.zeros((count, 32, 32, 3), np.uint8)
    arrays["labels"] = np.full((count, 3, 16), -1, np.int32)
    if source is not None:
        album = source.albums[split]
        draw = album.clean if clean else album.picture
        arrays["pixels"][:] = [draw(i) for i in range(count)]
        arrays["labels"][:] = [patches(album.meaning(i)) for i in range(count)]
    return arrays


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Returns arrays [n, …] as one; texts are padded to the longest."""
    if arrays[0].ndim != 2:
        return np.concatenate(arrays)
    longest = max(array.shape[1] for array in arrays)
    padded = [np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays]
    return np.concatenate(padded)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, place in zip(rows, padded, strict=True):
        place[: len(row)] = row
    return padded


@functools.cache
def classes() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Returns the numbers of things and of colors that a patch can show, and of places.

    0 is nothing, but of places.
    """
    from tasks.mini_images import scenes

    shapes = [f"{size} {shape}" for size in scenes.SIZES for shape in scenes.SHAPES]
    things = ["", *shapes, *scenes.WORDS, *scenes.FIELDS]
    colors = ["", *scenes.COLOR_WORDS]
    places = [f"{row} {column}" for row in range(4) for column in range(4)]
    numbered = [{name: i for i, name in enumerate(some)} for some in (things, colors, places)]
    return numbered[0], numbered[1], numbered[2]


def patches(meaning: Any) -> np.ndarray:
    """Returns what each patch is part of, and where it is.

    T5 has no positions but relative ones, which are the same for many tokens that are far apart, so
    an image's token must say its own place.

    Args:
      meaning: a `Scene` or a `Document`.

    Returns:
      int32 [3, 16]: of each of four by four patches the thing, 0 for none; its color, -1 for
      documents, whose meaning has none; and its place.
    """
    from tasks.mini_images.scenes import Document, Object

    things, colors, places = classes()
    labels = np.zeros((3, 4, 4), np.int32)
    labels[2] = np.arange(len(places)).reshape(4, 4)
    if isinstance(meaning, Document):
        labels[1] = -1
        for line, (field, word) in enumerate(meaning.lines):
            labels[0, line, :2], labels[0, line, 2:] = things[field], things[word]
        return labels.reshape(3, -1)
    for place, thing in meaning.things:
        row, column = (2 * side for side in divmod(place, 2))
        name = f"{thing.size} {thing.shape}" if isinstance(thing, Object) else thing.word
        labels[:2, row : row + 2, column : column + 2] = np.array(
            [things[name], colors[thing.color]]
        ).reshape(2, 1, 1)
    return labels.reshape(3, -1)
