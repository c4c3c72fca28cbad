"""Reads one picture: a file, or one that a source of `tasks.PICTURES` draws. Pixels are Pillow's.

Pillow and not TensorFlow, whose JPEG decoder is another one: on photographs its pixels are off by
one on average.
"""

import functools
import hashlib
import io
import os
import pathlib
import re

import numpy as np
import PIL
from PIL import Image, ImageOps

from adalink_jax.errors import UserError, nearest

# Part of every key of stored features. Increase it when the same file would give other pixels.
FORMAT = f"1, Pillow {PIL.__version__}"

# Pillow knows more, some of which start other programs (EPS) or hold no pictures of a fixed size.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_DRAWN = re.compile(r"(\w+):(\d{1,18})")

# A file's bytes, or the pixels of a picture that is drawn, uint8 [H, W, 3].
Content = bytes | np.ndarray


def read(key: str, folder: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Reads a picture.

    Args:
      key: the path of a file below `folder`, or ``name:index`` of a source in `tasks.PICTURES`.
      folder: the folder of pictures in files.

    Returns:
      uint8 [H, W, 3]: the first frame, upright (EXIF), in RGB. What is transparent is on white; 16
      bits are rounded to 8.

    Raises:
      UserError: there is no such picture, or it is damaged, empty or too large; the message has the
        file's path.
    """
    return decoded(*fetched(key, folder))


def fetched(key: str, folder: str | os.PathLike[str] | None = None) -> tuple[Content, str]:
    """Returns a picture's content, of which its digest is taken, and its name for errors.

    Args:
      key: as for `read`.
      folder: as for `read`.

    Raises:
      UserError: there is no such picture.
    """
    if (pixels := drawn(key)) is not None:
        return pixels, key
    if not stays_below(key):
        raise UserError(f"picture {key!r:.200} is not a path below Images.folder")
    if folder is None:
        raise UserError(
            f"picture '{key}' is a file, but neither Images.folder nor IMAGE_DIR is set"
        )
    path = pathlib.Path(folder, key)
    try:
        return path.read_bytes(), str(path)
    except FileNotFoundError as error:
        if not pathlib.Path(folder).is_dir():
            raise UserError(f"Images.folder is {folder}, where there is no folder") from error
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise UserError(f"there is no picture {path}{nearest(path.name, beside)}") from error
    except OSError as error:
        raise UserError(f"picture {path} cannot be read: {error.strerror or error}") from error


def stays_below(key: str) -> bool:
    """Returns whether a key is a path that cannot leave its folder."""
    parts = pathlib.PurePosixPath(key).parts
    return bool(parts) and not key.startswith("/") and ".." not in parts and "\0" not in key


def digest(content: Content) -> bytes:
    """Returns the SHA-256 of a picture's content, 32 bytes."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(f"{content.shape}\n".encode() + content.tobytes()).digest()
    return hashlib.sha256(content).digest()


def decoded(content: Content, name: str) -> np.ndarray:
    """Decodes what `fetched` returns; see `read`."""
    if isinstance(content, np.ndarray):
        return content
    if not content:
        raise UserError(f"picture {name} is empty")
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            return _pixels(image, name)
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:
        known = ", ".join(_formats())
        raise UserError(f"picture {name} is damaged, or no picture ({known})") from error
    except Exception as error:  # Changed bytes raise a dozen unrelated classes.
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise UserError(f"picture {name} is damaged: {reason}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    width, height = image.size
    if width * height > (most := Image.MAX_IMAGE_PIXELS or width * height):
        raise UserError(
            f"picture {name} has {width:,} × {height:,} pixels; at most {most:,} are read, as a "
            "small file can unpack to more than there is memory"
        )
    # Pillow would clip these to 255. Of other 32-bit pictures, nobody knows the range.
    deep = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    if image.mode in ("I", "F") and not deep:
        raise UserError(
            f"picture {name} has 32 bits a pixel, whose range is not known; save it with 8 or 16"
        )
    # Which decodes it; a copy only where the camera was turned.
    image = ImageOps.exif_transpose(image)
    if deep:
        gray = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(image.convert("RGB"))


def drawn(key: str) -> np.ndarray | None:
    """Returns the pixels of a picture that a source draws; None if the key names no source.

    Raises:
      UserError: the source fails, or draws no picture.
    """
    if not (found := _DRAWN.fullmatch(key)):
        return None
    import tasks

    if (draw := tasks.PICTURES.get(found[1])) is None:
        return None
    try:
        pixels = draw(int(found[2]))
    except Exception as error:  # Whoever registered the source may raise any.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"picture {key} cannot be drawn: {reason}") from error
    return checked(pixels, key)


def checked(pixels: np.ndarray, name: str) -> np.ndarray:
    """Returns pixels; raises `UserError` unless they are uint8 [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        shape = list(pixels.shape)
        raise UserError(
            f"picture {name} is {pixels.dtype} of shape {shape}; expected uint8 [H, W, 3]"
        )
    return pixels
