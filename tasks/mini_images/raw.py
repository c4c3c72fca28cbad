"""What the raw image base is trained on: PaLI's mixture in miniature.

`mini_image_alt`: alt-text, with words missing. `mini_image_continue`: the rest of a caption.
`mini_image_read`: all written words. `mini_image_look`: what is at a place, or in a line of a
document. `mini_image_ask`: is it there, of which color, how big, and where. `mini_image_text`: span
corruption of texts without a picture, which tell what the tasks will ask ("a ruby is red").
"""

from collections.abc import Iterator

from tasks.mini_images import scenes, templates, wording
from tasks.mini_images.albums import VERSION, PictureSource
from tasks.mini_images.scenes import Document, Scene
from tasks.mini_language import Draw
from tasks.mini_world import MiniSource

SIZES = {"train": 10_000, "validation": 200}


def _alt(scene: Scene, draw: Draw) -> dict:
    found = []
    for _, thing in scene.things:
        words = thing.text.split()
        kept = [word for word in words if draw.chance(0.8)] or words[-1:]
        found.append(" ".join(kept))
    return {"inputs": templates.RAW_ALT, "targets": " , ".join(found)}


def _caption(scene: Scene, draw: Draw) -> str:
    if scene.signs:
        texts = templates.RAW_LABELED
    else:
        texts = templates.RAW_TWO if len(scene.objects) > 1 else templates.RAW_ONE
    return wording.filled(draw.pick(texts), **wording.fields(scene, draw))


def _continue(scene: Scene, draw: Draw) -> dict:
    words = _caption(scene, draw).split()
    shown = draw.below(len(words))
    given = " ".join([templates.RAW_CONTINUE, *words[:shown]])
    return {"inputs": given, "targets": " ".join(words[shown:])}


def _read(meaning: Scene | Document, draw: Draw) -> dict:
    if isinstance(meaning, Document):
        words = [word for line in meaning.lines for word in line]
    else:
        words = [sign.word for _, sign in meaning.signs]
    return {"inputs": templates.RAW_READ, "targets": " ".join(words)}


def _look(meaning: Scene | Document, draw: Draw) -> dict:
    place = draw.below(4)
    if isinstance(meaning, Document):
        line = wording.filled(templates.RAW_LINE, number=templates.NUMBERS[place])
        return {"inputs": line, "targets": " ".join(meaning.lines[place])}
    at = scenes.PLACES[place]
    there = dict(meaning.things).get(place)
    found = there.text if there else "nothing"
    return {"inputs": wording.filled(templates.RAW_PLACE, at=at), "targets": found}


def _ask(scene: Scene, draw: Draw) -> dict:
    place, thing = draw.pick(scene.objects)
    attribute = draw.pick((*templates.RAW_ATTRIBUTE, "there", "there"))
    if attribute == "there":
        there = draw.chance(0.5)
        asked = thing if there else wording.other_object(draw, scene)
        asking = wording.filled(templates.RAW_THERE, x=f"{asked.color} {asked.shape}")
        return {"inputs": asking, "targets": "yes" if there else "no"}
    asking = wording.filled(templates.RAW_ATTRIBUTE[attribute], a=thing.text, ah=thing.shape)
    answer = scenes.PLACES[place] if attribute == "place" else getattr(thing, attribute)
    return {"inputs": asking, "targets": answer}


def fact(draw: Draw) -> str:
    """Returns a sentence about one thing that the pictures do not show."""
    kind = draw.pick(tuple(templates.FACTS))
    value = draw.pick(tuple(templates.FACTS[kind]))
    names = templates.FACTS[kind][value]
    which = draw.below(len(names))
    places = {"kind": kind, "value": value, "name": names[which], "other": names[which - 1]}
    return wording.filled(draw.pick(templates.RAW_FACTS), **places)


def _texts(draw: Draw, parts) -> Iterator[dict]:
    while True:
        if draw.chance(0.7):
            yield {"text": fact(draw)}
        else:
            kind = draw.pick((scenes.objects, scenes.labeled))
            yield {"text": _caption(scenes.within(draw, kind, parts), draw)}


def _either(draw: Draw) -> Scene:
    return draw.pick((scenes.objects, scenes.labeled))(draw)


def _written(draw: Draw) -> Scene | Document:
    return draw.pick((scenes.document, scenes.labeled, scenes.signposts))(draw)


def _any(draw: Draw) -> Scene | Document:
    return draw.pick((scenes.document, scenes.anything, scenes.anything))(draw)


#: Task → the pictures it is about, and its texts.
SKILLS = {
    "mini_image_alt": (scenes.anything, _alt),
    "mini_image_continue": (_either, _continue),
    "mini_image_read": (_written, _read),
    "mini_image_look": (_any, _look),
    "mini_image_ask": (_either, _ask),
}
SOURCES = {
    name: PictureSource(name, "pretraining", kind, text, SIZES)
    for name, (kind, text) in SKILLS.items()
}
#: The text task's source.
TEXTS = MiniSource("mini_image_text", "pretraining", _texts, SIZES, version=VERSION)
