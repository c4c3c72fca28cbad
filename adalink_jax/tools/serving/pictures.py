"""What requests show: pictures sent in them or kept in one folder, and the encoder that sees them.

A picture's features are those that training stored (`adalink_jax.data.images`), but for the last
bits: here the encoder gets as many pictures as a call has, and there always the same number.
"""

import base64
import dataclasses
import pathlib
import threading
from collections.abc import Sequence

import numpy as np

from adalink_jax.data.images import Encoder, identity_of, reading
from adalink_jax.errors import UserError
from adalink_jax.tools.serving.shapes import rounded_rows, row_counts

# Bytes of pictures that were asked about last, and are not read again. Many ask about one.
_KEPT_BYTES = 2**28
# The most pictures that the encoder gets at a time.
_AT_ONCE = 16
_EXPECTED = "data:image/png;base64,…"


@dataclasses.dataclass(eq=False)
class Picture:
    """A picture: its prepared pixels until the encoder has seen it, and then its features.

    Attributes:
      pixels: float32 [S, S, 3].
      features: float32 [M, Dv].
    """

    pixels: np.ndarray | None
    features: np.ndarray | None = None


class Pictures:
    """Reads and encodes the pictures of requests. Any thread may read, one alone may encode.

    Attributes:
      shape: (M, Dv), the number and width of a picture's tokens.
      identity: `identity_of` the encoder.
    """

    def __init__(self, encoder: Encoder, folder: str | None = None):
        """Reads nothing yet.

        Args:
          encoder: the frozen encoder of the base.
          folder: the folder that paths begin in; None if no paths are allowed.

        Raises:
          UserError: there is no such folder.
        """
        if folder is not None and not pathlib.Path(folder).is_dir():
            raise UserError(f"--image_folder is {folder}, where there is no folder")
        self._encoder = encoder
        self._folder = None if folder is None else pathlib.Path(folder)
        self.shape = (encoder.tokens, encoder.width)
        self.identity = identity_of(encoder, "float32")
        self._known: dict[bytes, Picture] = {}  # Ordered by use, the most recent one last.
        self._lock = threading.Lock()

    def read(self, image: str) -> Picture:
        """Returns a picture as it is now.

        Symbolic links in the folder are followed: who may write there decides what is shown.

        Args:
          image: a path below the folder; ``name:index`` of a source in `tasks.PICTURES`; or the
            picture itself, as a data URI in base64.

        Raises:
          UserError: there is no such picture, or it is damaged, empty or too large.
        """
        content, name = self._content(image)
        key = reading.digest(content)
        with self._lock:
            if (known := self._known.pop(key, None)) is not None:
                self._known[key] = known
                return known
        pixels = self._encoder.preprocessing.prepare(reading.decoded(content, name))
        picture = Picture(np.asarray(pixels, np.float32))
        most = _KEPT_BYTES // max(pixels.size * 4, 4 * self.shape[0] * self.shape[1])
        with self._lock:
            self._known[key] = picture
            while len(self._known) > max(1, most):
                del self._known[next(iter(self._known))]
        return picture

    def _content(self, image: str) -> tuple[reading.Content, str]:
        """Returns a picture's content, and its name for errors, without the folder's."""
        if image[:5].lower() == "data:":
            return _sent(image), "of the request"
        name = f"'{image:.200}'"
        if (pixels := reading.drawn(image)) is not None:
            return pixels, name
        if "://" in image:
            raise UserError(
                f"image {name} is an address, and nothing is fetched here; send {_EXPECTED}"
            )
        if not reading.stays_below(image):
            raise UserError(f"image {image!r:.200} is not a path below the folder of images")
        if self._folder is None:
            raise UserError(
                f"image {name} is a path, but --image_folder names no folder; send {_EXPECTED}"
            )
        path = self._folder / image
        try:
            if not path.is_file():
                raise UserError(f"there is no picture {name} in the folder of images")
            return path.read_bytes(), name
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(f"picture {name} cannot be read: {reason}") from error

    def batch(self, pictures: Sequence[Picture | None], count: int) -> dict[str, np.ndarray]:
        """Returns the part of a call that holds images; new pictures are encoded.

        Args:
          pictures: the picture of each row, None for a row without one.
          count: B ≥ their number; other rows have none.

        Returns:
          encoder_images, float32 [B, M, Dv], and encoder_image_mask, int32 [B, M]: 1 where there is
          an image.
        """
        shown = [one for one in dict.fromkeys(pictures) if one is not None]
        self._encode([one for one in shown if one.features is None])
        images = np.zeros((count, *self.shape), np.float32)
        mask = np.zeros((count, self.shape[0]), np.int32)
        for row, one in enumerate(pictures):
            if one is not None:
                images[row], mask[row] = one.features, 1
        return {"encoder_images": images, "encoder_image_mask": mask}

    def blank(self) -> Picture:
        """Returns a picture that was not seen before, to compile programs with."""
        made = self._encoder.preprocessing.prepare(np.zeros((1, 1, 3), np.uint8))
        return Picture(np.asarray(made, np.float32))

    def warm(self) -> None:
        """Compiles the encoder for every number of pictures that it gets."""
        for count in row_counts(_AT_ONCE):
            self._encode([self.blank() for _ in range(count)])

    def _encode(self, pictures: Sequence[Picture]) -> None:
        for start in range(0, len(pictures), _AT_ONCE):
            some = pictures[start : start + _AT_ONCE]
            pixels = np.stack([one.pixels for one in some if one.pixels is not None])
            more = rounded_rows(len(some), _AT_ONCE) - len(some)
            found = np.asarray(self._encoder(np.pad(pixels, [(0, more), *[(0, 0)] * 3])))
            for one, features in zip(some, found, strict=False):
                # A copy, so that a picture that is kept does not keep those beside it.
                one.features, one.pixels = np.array(features, np.float32), None


def _sent(image: str) -> bytes:
    """Returns the content of a data URI."""
    head, comma, content = image.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UserError(f"the image is a data URI without ';base64,'; expected {_EXPECTED}")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise UserError(f"the image is no base64: {error}") from error
