"""Reads the image world's pictures back from their pixels, and answers questions about them.

It shares nothing with `tasks.mini_images`: its colors are CSS's, its shapes are told by corners and
area, its letters are the drawing below, and its sentences are read by patterns.
"""

import re

import numpy as np

_LETTERS = """
    a   b   c   d   e   f   g   h   i   j   k   l   m
    .#. ##. .## ##. ### ### .## #.# ### ..# #.# #.. #.#
    #.# #.# #.. #.# #.. #.. #.. #.# .#. ..# #.# #.. ###
    ### ##. #.. #.# ##. ##. #.# ### .#. ..# ##. #.. ###
    #.# #.# #.. #.# #.. #.. #.# #.# .#. #.# #.# #.. #.#
    #.# ##. .## ##. ### #.. .## #.# ### .#. #.# ### #.#
    n   o   p   q   r   s   t   u   v   w   x   y   z
    ##. .#. ##. .#. ##. .## ### #.# #.# #.# #.# #.# ###
    #.# #.# #.# #.# #.# #.. .#. #.# #.# #.# #.# #.# ..#
    #.# #.# ##. #.# ##. .#. .#. #.# #.# ### .#. .#. .#.
    #.# #.# #.. ##. ##. ..# .#. #.# #.# ### #.# .#. #..
    #.# .#. #.. .## #.# ##. .#. ### .#. #.# #.# .#. ###
"""
# CSS's colors.
_COLORS = {
    "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
    "orange": (255, 165, 0), "purple": (128, 0, 128), "white": (255, 255, 255),
    "pink": (255, 192, 203),
}  # fmt: skip
PLACES = ("top left", "top right", "bottom left", "bottom right")


def _letters() -> dict[str, str]:
    found, lines = {}, _LETTERS.strip("\n").splitlines()
    for start in (0, 6):
        names, rows = lines[start], lines[start + 1 : start + 6]
        for at in range(4, len(rows[0]), 4):
            found["".join(row[at : at + 3] for row in rows)] = names[at]
    return found


LETTERS = _letters()


def _ink(picture: np.ndarray) -> np.ndarray:
    return picture.max(axis=-1) > 100


def _box(ink: np.ndarray) -> tuple[slice, slice]:
    return tuple(
        slice(int(some[0]), int(some[-1]) + 1)
        for some in (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    )


def _color(picture: np.ndarray, ink: np.ndarray) -> str:
    mean = picture[ink].mean(axis=0)
    return min(_COLORS, key=lambda name: float(np.abs(mean - _COLORS[name]).sum()))


def _word(ink: np.ndarray) -> str:
    letters = []
    for left in range(0, ink.shape[1], 4):
        glyph = "".join(".#"[value] for value in ink[:, left : left + 3].ravel().astype(int))
        letters.append(LETTERS[glyph])
    return "".join(letters)


def _shape(ink: np.ndarray) -> str:
    top, bottom = ink[0, 0] and ink[0, -1], ink[-1, 0] and ink[-1, -1]
    if bottom:
        return "square" if top else "triangle"
    return "circle" if ink.mean() > 0.72 else "cross"


def scene(picture: np.ndarray) -> dict[str, str]:
    """Returns place → "small red circle" or "red dog"."""
    found = {}
    for number, place in enumerate(PLACES):
        y, x = (16 * side for side in divmod(number, 2))
        quadrant = picture[y : y + 16, x : x + 16]
        ink = _ink(quadrant)
        if not ink.any():
            continue
        color, cut = _color(quadrant, ink), ink[_box(ink)]
        if cut.shape[0] == 5:
            found[place] = f"{color} {_word(cut)}"
        else:
            size = "big" if cut.shape[0] > 10 else "small"
            found[place] = f"{size} {color} {_shape(cut)}"
    return found


def document(picture: np.ndarray) -> list[tuple[str, str]]:
    """Returns the lines' fields and words."""
    lines = []
    for top in range(0, 32, 8):
        ink = _ink(picture[top : top + 8])
        halves = ink[:, :16], ink[:, 16:]
        lines.append(tuple(_word(half[_box(half)]) for half in halves))
    return lines


def relation(first: str, second: str) -> str:
    """Returns where a place is, seen from another."""
    for side, other, word in (("top", "bottom", "above"), ("bottom", "top", "below")):
        if side in first and other in second:
            return word
    return "left of" if "left" in first else "right of"


def _only(found: list[str]) -> str:
    (one,) = found
    return one


def answer(question: str, seen: dict[str, str] | list[tuple[str, str]]) -> str:
    """Answers a question of mini_textvqa, mini_stvqa and mini_docvqa from what was read."""
    if isinstance(seen, list):
        asked = re.search(r"(?:is the|for|of) (\w+) \?$", question)
        assert asked
        return dict(seen)[asked[1]]
    signs = {place: text.split() for place, text in seen.items() if len(text.split()) == 2}
    if asked := re.search(r"the color of the word (\w+)", question):
        return _only([color for color, word in signs.values() if word == asked[1]])
    if asked := re.search(r"does the sign say (\w+) \?", question):
        return "yes" if asked[1] in [word for _, word in signs.values()] else "no"
    if asked := re.search(r"the word (above|below|left of|right of) the other", question):
        first, second = signs
        place = first if relation(first, second) == asked[1] else second
        return signs[place][1]
    if asked := re.search(r"the (\w+) (?:word|sign)", question):
        if asked[1] in _COLORS:
            return _only([word for color, word in signs.values() if color == asked[1]])
    return _only([word for _, word in signs.values()])


def asked_object(question: str, seen: dict[str, str]) -> str:
    """Returns the color of the object whose shape a question of mini_okvqa names."""
    shape = re.search(r"circle|square|triangle|cross", question)
    assert shape
    return _only([text.split()[1] for text in seen.values() if text.endswith(f" {shape[0]}")])


_OBJECT = r"(?:(big|small) )?(red|green|blue|yellow|orange|purple|white|pink) "
_OBJECT += r"(circle|square|triangle|cross)"


def true_of(caption: str, seen: dict[str, str]) -> bool:
    """Returns whether objects, words, places and relations of a caption are in the picture."""
    told = []
    for size, color, shape in re.findall(_OBJECT, caption):
        places = [
            place for place, text in seen.items()
            if text.split()[-2:] == [color, shape] and (not size or text.startswith(size))
        ]  # fmt: skip
        told.append(places[0] if len(places) == 1 else None)
    if not told or None in told:
        return False
    signs = {text.split()[1]: place for place, text in seen.items() if len(text.split()) == 2}
    for word, place in signs.items():
        if word in caption.split():
            inks = re.findall(rf"the (\w+) word {word}|word {word} in (\w+)", caption)
            if any("".join(ink) != seen[place].split()[0] for ink in inks):
                return False
            before = caption.index(word) < caption.index(seen[told[0]].split()[-1])
            told.insert(0 if before else 1, place)
        elif re.search(r"word|sign", caption):
            return False
    if asked := re.search(r"at the (top|bottom) (left|right)", caption):
        return told[0] == f"{asked[1]} {asked[2]}"
    if asked := re.search(r"(above|below|left of|right of) it \.$", caption):
        return relation(told[1], told[0]) == asked[1]
    if asked := re.search(r"above|below|left of|right of", caption):
        return relation(told[0], told[1]) == asked[0]
    return True
