"""How a picture becomes an encoder's input: resized, cut, scaled.

Pillow does it, as it did when the published encoders were evaluated: TensorFlow's resizing and
decoding give other pixels.
"""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float32, UInt8

from adalink_jax.errors import UserError
from adalink_jax.values import Checked, OneOf, Positive, Size

# Pillow's numbers of its filters, which files of settings use.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Of a picture before its middle is cut out: a line of pixels would be resized to more than memory.
_MOST_PIXELS = 2**27


@dataclasses.dataclass(frozen=True)
class Preprocessing(Checked):
    """The steps: resize, cut the middle out, scale, subtract the mean, divide by the deviation.

    Attributes:
      height: pixels of a column of the result.
      width: pixels of a row of the result.
      resample: Pillow's filter.
      shortest_edge: the picture is resized until its shorter side has so many pixels, and the
        middle is cut out of it. None resizes it to height x width, whatever its sides were.
      scale: factor of the pixels, which are 0 to 255.
      mean: subtracted after that, for red, green and blue.
      std: divides after that, likewise.
    """

    height: Size
    width: Size
    resample: Annotated[str, OneOf(FILTERS)] = "bicubic"
    shortest_edge: Size | None = None
    scale: Positive = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[Positive, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        super().__post_init__()
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise UserError(
                    f"Preprocessing.{name} has {len(getattr(self, name))} numbers; it takes 3,"
                    " for red, green and blue"
                )
        if self.shortest_edge is not None and self.shortest_edge < max(self.height, self.width):
            raise UserError(
                f"Preprocessing: a middle of {self.height} x {self.width} cannot be cut out of a"
                f" picture whose shorter side has {self.shortest_edge} pixels"
            )

    def prepare(self, picture: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "height width 3"]:
        """Returns a picture as an encoder's input.

        Args:
          picture: its pixels, red, green and blue.

        Raises:
          UserError: these are no such pixels, or its shorter side is far too short.
        """
        from PIL import Image

        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"a picture is {picture.dtype} of shape {list(picture.shape)}; expected uint8 [H,"
                " W, 3]"
            )
        height, width = self._resized(*picture.shape[:2])
        image = Image.fromarray(np.ascontiguousarray(picture))
        resized = np.asarray(image.resize((width, height), FILTERS.index(self.resample)))
        top, left = (height - self.height) // 2, (width - self.width) // 2
        cut = resized[top : top + self.height, left : left + self.width]
        # One step after the other, in these precisions, as transformers does.
        pixels = (cut.astype(np.float64) * self.scale).astype(np.float32)
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns the sides after resizing."""
        if self.shortest_edge is None:
            return self.height, self.width
        shorter, longer = sorted((height, width))
        other = int(self.shortest_edge * longer / shorter)
        if self.shortest_edge * other > _MOST_PIXELS:
            raise UserError(
                f"a picture has {width:,} x {height:,} pixels: with {self.shortest_edge} on its "
                f"shorter side it would have {other:,} on the other"
            )
        if width <= height:
            return other, self.shortest_edge
        return self.shortest_edge, other
