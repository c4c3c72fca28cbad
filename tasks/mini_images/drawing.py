"""Draws a scene or a document as a picture of 32 x 32 pixels, in NumPy alone.

A picture is a grid of four by four patches of eight pixels, what a small ViT sees. A quadrant of a
scene (two by two patches) holds one object or one word. A word stands in a row of patches, two
glyphs of three by five pixels a patch. Ink has the flat color of its thing; then every value of the
picture gets noise of at most `NOISE`.
"""

import hashlib

import numpy as np

from tasks.mini_images.scenes import Document, Object, Scene
from tasks.mini_language import Draw

SIZE = 32
NOISE = 12
GLYPH, CELL, LINE = (5, 3), 4, 8  # Pixels: (height, width), a column of text, a row of patches.

COLORS = {
    "red": (220, 30, 30), "green": (40, 170, 50), "blue": (40, 70, 230), "yellow": (235, 225, 40),
    "orange": (240, 135, 20), "purple": (140, 40, 180), "white": (240, 240, 240),
    "pink": (250, 150, 200),
}  # fmt: skip

# Five rows of three bits a letter, the first row in the highest bits.
_FONT = {
    "a": 0o25755, "b": 0o65656, "c": 0o34443, "d": 0o65556, "e": 0o74647, "f": 0o74644,
    "g": 0o34553, "h": 0o55755, "i": 0o72227, "j": 0o11152, "k": 0o55655, "l": 0o44447,
    "m": 0o57755, "n": 0o65555, "o": 0o25552, "p": 0o65644, "q": 0o25563, "r": 0o65665,
    "s": 0o34216, "t": 0o72222, "u": 0o55557, "v": 0o55552, "w": 0o55775, "x": 0o55255,
    "y": 0o55222, "z": 0o71247,
}  # fmt: skip


def glyph(letter: str) -> np.ndarray:
    """Returns a letter's ink, bool [5, 3]."""
    bits = _FONT[letter]
    return np.array([bits >> (14 - i) & 1 for i in range(15)], bool).reshape(GLYPH)


def _word(ink: np.ndarray, word: str, top: int, left: int) -> None:
    for place, letter in enumerate(word):
        x = left + CELL * place
        ink[top : top + GLYPH[0], x : x + GLYPH[1]] |= glyph(letter)


def _shape(thing: Object, draw: Draw) -> np.ndarray:
    """Returns an object's ink in its quadrant, bool [16, 16]."""
    radius = (6 if thing.size == "big" else 3) + draw.below(2)
    room = SIZE // 2 - 2 * radius
    y, x = (radius + draw.below(room) for _ in range(2))
    dy, dx = np.mgrid[: SIZE // 2, : SIZE // 2] - np.array([y, x]).reshape(2, 1, 1)
    inside = (abs(dy) <= radius) & (abs(dx) <= radius)
    if thing.shape == "circle":
        inside = dy**2 + dx**2 <= radius**2 + radius
    elif thing.shape == "triangle":
        inside &= 2 * abs(dx) <= dy + radius
    elif thing.shape == "cross":
        inside &= (abs(dy) <= radius // 3) | (abs(dx) <= radius // 3)
    return inside


def draw_picture(meaning: Scene | Document, draw: Draw) -> np.ndarray:
    """Draws a picture without its noise.

    Args:
      meaning: what to show.
      draw: chooses the background's gray, and where exactly a thing stands in its room.

    Returns:
      uint8 [32, 32, 3].
    """
    canvas = np.full((SIZE, SIZE, 3), draw.below(40), np.uint8)
    if isinstance(meaning, Document):
        ink = np.zeros((SIZE, SIZE), bool)
        top, left = draw.below(4), draw.below(2)
        for line, (field, word) in enumerate(meaning.lines):
            _word(ink, field, LINE * line + top, left)
            _word(ink, word, LINE * line + top, left + CELL * 4)
        canvas[ink] = COLORS[draw.pick(tuple(COLORS))]
        return canvas
    for place, thing in meaning.things:
        y, x = (SIZE // 2 * side for side in divmod(place, 2))
        ink = np.zeros((SIZE, SIZE), bool)
        if isinstance(thing, Object):
            ink[y : y + SIZE // 2, x : x + SIZE // 2] = _shape(thing, draw)
        else:
            top = y + LINE * draw.below(2) + draw.below(4)
            _word(ink, thing.word, top, x + draw.below(2))
        canvas[ink] = COLORS[thing.color]
    return canvas


def with_noise(picture: np.ndarray, seed: bytes) -> np.ndarray:
    """Adds to each value of a picture a whole number of -`NOISE` to `NOISE`.

    Args:
      picture: uint8 [32, 32, 3].
      seed: of the noise.

    Returns:
      uint8 [32, 32, 3].
    """
    stream = hashlib.shake_256(seed).digest(picture.size)
    noise = np.frombuffer(stream, np.uint8).reshape(picture.shape) % (2 * NOISE + 1)
    noisy = picture.astype(np.int16) + noise.astype(np.int16) - NOISE
    return np.clip(noisy, 0, 255).astype(np.uint8)
