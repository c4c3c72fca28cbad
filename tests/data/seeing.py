"""A tiny image encoder, and tasks whose pictures are drawn: their color is the answer."""

import dataclasses
import functools
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230)}


def drawn(index: int, size: int = 12) -> np.ndarray:
    """A picture of one color with noise, which makes each one another."""
    noise = np.random.default_rng(index).integers(-20, 20, (size, size, 3))
    return np.clip(np.array(list(COLORS.values())[index % 3]) + noise, 0, 255).astype(np.uint8)


def color(index: int) -> str:
    return list(COLORS)[index % 3]


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """Every so many pixels of a picture, from 0 to 1."""

    size: int = 4
    scale: float = 1 / 255

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        rows, columns = (np.arange(self.size) * side // self.size for side in (height, width))
        return (pixels[rows][:, columns] * self.scale).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Eye:
    """Two layers over the rows of a picture: [B, S, S, 3] → [B, S, width], with random weights."""

    seed: int = 0
    width: int = 6
    preprocessing: Shrunk = Shrunk()
    seen: list = dataclasses.field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.preprocessing.size

    @functools.cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        first = random.normal(size=(3 * self.tokens, 16)).astype(np.float32)
        return first, random.normal(size=(16, self.width)).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(one.tobytes() for one in self.weights)).hexdigest()

    def __call__(self, pixels):
        self.seen.append(len(pixels))
        return _encoded(pixels, *self.weights)

    def expected(self, pixels: np.ndarray) -> np.ndarray:
        """The features [M, Dv] of one picture, by NumPy in double precision."""
        rows = self.preprocessing.prepare(pixels).reshape(self.tokens, -1).astype(np.float64)
        return np.tanh(rows @ self.weights[0]) @ self.weights[1]


@jax.jit
def _encoded(pixels, first, second):
    rows = pixels.reshape(*pixels.shape[:2], -1)
    return jnp.tanh(rows @ first) @ second


def save(folder: pathlib.Path, indices) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        Image.fromarray(drawn(index)).save(folder / f"{index}.png")


def register(name: str, examples, splits=("train", "validation"), **more) -> None:
    """Adds a task as a user would: (image, input, target) triples, and more columns."""
    import seqio
    import tensorflow as tf

    def source(split, shuffle_files):
        images, inputs, targets = zip(*examples, strict=True)
        columns = {"inputs": list(inputs), "targets": list(targets)}
        columns |= {} if images[0] is None else {"image": list(images)}
        return tf.data.Dataset.from_tensor_slices(columns | more)

    features = {one: seqio.Feature(seqio.ByteVocabulary()) for one in ("inputs", "targets")}
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            source, splits=list(splits), num_input_examples=dict.fromkeys(splits, len(examples))
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=features,
    )
