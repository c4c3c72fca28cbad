"""The image world's examples in memory, pixels among them, for training its bases."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

_LONGEST = 64

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a mixture.

    Attributes:
      tasks: task → `inputs` int32 [N, T] and `targets` int32 [N, L] with their ends and padded, and
        for pictures `pixels` uint8 [N, 32, 32, 3] and `labels` int32 [N, 2, 16], see `patches`.
      rates: task → its mixing rate.
    """

    tasks: Mapping[str, Arrays]
    rates: Mapping[str, float]

    def batch(self, size: int, draw: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
        """Draws examples, of each task as many as its rate says."""
        rows = {}
        for name, arrays in self.tasks.items():
            count = round(size * self.rates[name] / sum(self.rates.values()))
            rows[name] = draw.integers(len(arrays["inputs"]), size=count)
        return {
            name: {key: array[rows[name]] for key, array in arrays.items()}
            for name, arrays in self.tasks.items()
        }

    def whole(self) -> dict[str, dict[str, np.ndarray]]:
        """Returns all examples as one batch."""
        return {name: dict(arrays) for name, arrays in self.tasks.items()}


def load(mixture: str, split: str) -> Examples:
    """Draws and tokenizes a split of a mixture of the image world.

    Args:
      mixture: its registered name.
      split: "train" or "validation".
    """
    import seqio

    from tasks import mini_images  # noqa: F401: registers the mixture

    registered = seqio.get_mixture_or_task(mixture)
    members = seqio.get_subtasks(registered)
    return Examples(
        {task.name: _arrays(task, split) for task in members},
        {task.name: float(registered.get_rate(task)) for task in members},
    )


def _arrays(task: Any, split: str) -> Arrays:
    from tasks.registry import PICTURES

    lengths = {"inputs": _LONGEST, "targets": _LONGEST}
    examples = list(task.get_dataset(lengths, split, shuffle=False).as_numpy_iterator())
    arrays = {name: _padded([one[name] for one in examples]) for name in lengths}
    if "image" in examples[0]:
        album = task.source.albums[split]
        draw = PICTURES[album.name]
        arrays["pixels"] = np.stack([draw(i) for i in range(len(examples))])
        arrays["labels"] = np.stack([patches(album.meaning(i)) for i in range(len(examples))])
    return arrays


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, place in zip(rows, padded, strict=True):
        place[: len(row)] = row
    return padded


def _classes() -> tuple[dict[str, int], dict[str, int]]:
    from tasks.mini_images import scenes

    shapes = [f"{size} {shape}" for size in scenes.SIZES for shape in scenes.SHAPES]
    things = ["", *shapes, *scenes.WORDS, *scenes.FIELDS]
    return (
        {thing: i for i, thing in enumerate(things)},
        {color: i for i, color in enumerate(("", *scenes.COLOR_WORDS))},
    )


THINGS, COLORS = _classes()


def patches(meaning: Any) -> np.ndarray:
    """Returns what each patch is part of.

    Args:
      meaning: a `Scene` or a `Document`.

    Returns:
      int32 [2, 16]: of each of four by four patches the thing, 0 for none, and its color; -1 for
      the color of a document, whose meaning has none.
    """
    from tasks.mini_images.scenes import Document, Object

    labels = np.zeros((2, 4, 4), np.int32)
    if isinstance(meaning, Document):
        labels[1] = -1
        for line, (field, word) in enumerate(meaning.lines):
            labels[0, line, :2], labels[0, line, 2:] = THINGS[field], THINGS[word]
        return labels.reshape(2, -1)
    for place, thing in meaning.things:
        row, column = (2 * side for side in divmod(place, 2))
        name = f"{thing.size} {thing.shape}" if isinstance(thing, Object) else thing.word
        labels[:, row : row + 2, column : column + 2] = np.array(
            [THINGS[name], COLORS[thing.color]]
        ).reshape(2, 1, 1)
    return labels.reshape(2, -1)
