"""Fills the places of templates with parts of a scene."""

import re

from tasks.mini_images.scenes import (
    COLOR_WORDS,
    PLACES,
    SHAPES,
    Object,
    Scene,
    Sign,
    relation,
)
from tasks.mini_language import Draw


def fields(scene: Scene, draw: Draw) -> dict[str, str]:
    """Returns the places of templates: of the first two objects, and of one of the signs."""
    found = {}
    objects = scene.objects
    for letter, (place, thing) in zip("ab", objects, strict=False):
        found |= {letter: thing.text, f"{letter}c": f"{thing.color} {thing.shape}"}
        found |= {f"{letter}h": thing.shape, f"{letter}s": thing.size, f"{letter}t": PLACES[place]}
    if len(objects) > 1:
        found["rel"] = relation(objects[0][0], objects[1][0])
        found["back"] = relation(objects[1][0], objects[0][0])
    if signs := scene.signs:
        place, sign = draw.pick(signs)
        found |= {"w": sign.word, "wc": sign.color, "wt": PLACES[place]}
        other = [one for one, thing in scene.things if thing is not sign]
        if other:
            found["wrel"] = relation(place, other[0])
    return found


def filled(template: str, **places: str) -> str:
    """Returns a template with its places filled; "a" before a vowel becomes "an"."""
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format(**places))


def several(draw: Draw, templates, count: int, places: dict[str, str]) -> list[str]:
    """Returns different templates, filled."""
    left = list(templates)
    return [filled(left.pop(draw.below(len(left))), **places) for _ in range(count)]


def other_object(draw: Draw, scene: Scene) -> Object:
    """Returns an object that is not there: one of the scene's with another color or shape."""
    there = {(thing.color, thing.shape) for _, thing in scene.objects}
    thing = draw.pick(scene.objects)[1]
    while True:
        if draw.chance(0.5):
            other = Object(thing.size, draw.pick(COLOR_WORDS), thing.shape)
        else:
            other = Object(thing.size, thing.color, draw.pick(SHAPES))
        if (other.color, other.shape) not in there:
            return other


def other_word(draw: Draw, words, not_these) -> str:
    """Returns a word that is none of some."""
    return draw.pick([word for word in words if word not in not_these])


def name(thing: Object | Sign) -> str:
    """Returns how a sentence calls a thing of the scene."""
    return thing.shape if isinstance(thing, Object) else f"word {thing.word}"
