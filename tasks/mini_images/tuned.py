"""What the tuned image base is trained on: the paper's MMIT in miniature.

`mini_image_long`: long captions. `mini_image_story`: stories, happy or sad as asked, that must use
what the picture shows. `mini_image_reason`: answers with a reason. Their sentences share no
template with the six tasks, and of the facts they use only other kinds (`templates.TUNED_FACTS`).
"""

from tasks.mini_images import scenes, templates, wording
from tasks.mini_images.albums import PictureSource
from tasks.mini_images.scenes import PLACES, Document, Object, Scene, relation
from tasks.mini_language import Draw

SIZES = {"train": 10_000, "validation": 200}


def _long(meaning: Scene | Document, draw: Draw) -> dict:
    prompt = draw.pick(templates.LONG_PROMPTS)
    if isinstance(meaning, Document):
        lines = zip(templates.NUMBERS, meaning.lines, strict=True)
        said = [templates.LONG_DOCUMENT]
        said += [wording.filled(templates.LONG_LINE, number=n, field=f, w=w) for n, (f, w) in lines]
        return {"inputs": prompt, "targets": " ".join(said)}
    things = meaning.things
    count = f"{templates.NUMBERS[len(things) - 1]} thing{'s' * (len(things) > 1)}"
    said = [wording.filled(templates.LONG_START, count=count)]
    for place, thing in things:
        at = PLACES[place]
        if isinstance(thing, Object):
            colored = f"{thing.color} {thing.shape}"
            said.append(
                wording.filled(templates.LONG_OBJECT, at=at, ac=colored, **{"as": thing.size})
            )
        else:
            said.append(wording.filled(templates.LONG_SIGN, at=at, w=thing.word, wc=thing.color))
    if len(things) > 1:
        (first, one), (second, other) = things[:2]
        ends = {"first": wording.name(one), "second": wording.name(other)}
        said.append(wording.filled(templates.LONG_END, rel=relation(first, second), **ends))
    return {"inputs": prompt, "targets": " ".join(said)}


def _story(scene: Scene, draw: Draw) -> dict:
    mood = draw.pick(("happy", "sad"))
    places = wording.fields(scene, draw)
    said = [templates.STORY["first"]]
    if len(scene.objects) > 1:
        said.append(templates.STORY["second"].replace("{at}", "{bt}"))
    if scene.signs:
        said.append(templates.STORY["sign" if len(scene.objects) > 1 else "alone"])
    said.append(templates.STORY[mood])
    prompt = wording.filled(draw.pick(templates.STORY_PROMPTS), mood=mood)
    return {"inputs": prompt, "targets": wording.filled(" ".join(said), **places)}


def _reason(meaning: Scene | Document, draw: Draw) -> dict:
    if isinstance(meaning, Document):
        number = draw.below(4)
        field, word = meaning.lines[number]
        return _explained(draw, "line", number=templates.NUMBERS[number], field=field, w=word)
    places = wording.fields(meaning, draw)
    if meaning.signs:
        return _explained(draw, "word", **places)
    place, thing = draw.pick(meaning.objects)
    skill = draw.pick(("yes", "no", "fact", "fact"))
    if skill == "fact":
        kind = draw.pick(templates.TUNED_FACTS)
        value = thing.color if kind != "toy" else thing.shape
        (known,) = templates.FACTS[kind][value]
        return _explained(draw, skill, kind=kind, ah=thing.shape, name=known, value=thing.color)
    listed = " and ".join(f"a {one.text}" for _, one in meaning.objects)
    other = wording.other_object(draw, meaning).text
    return _explained(draw, skill, a=thing.text, at=PLACES[place], x=other, list=listed)


def _explained(draw: Draw, skill: str, **places: str) -> dict:
    asking, answer = draw.pick(templates.REASONS[skill])
    return {
        "inputs": wording.filled(asking, **places),
        "targets": wording.filled(answer, **places),
    }


def _shown(draw: Draw) -> Scene | Document:
    return draw.pick((scenes.objects, scenes.labeled, scenes.document))(draw)


def _told(draw: Draw) -> Scene:
    return draw.pick((scenes.objects, scenes.labeled, scenes.crowd))(draw)


def _explainable(draw: Draw) -> Scene | Document:
    kinds = (scenes.objects, scenes.objects, scenes.labeled, scenes.signposts, scenes.document)
    return draw.pick(kinds)(draw)


#: Task → the pictures it is about, and its texts.
SKILLS = {
    "mini_image_long": (_shown, _long),
    "mini_image_story": (_told, _story),
    "mini_image_reason": (_explainable, _reason),
}
SOURCES = {
    name: PictureSource(name, "pretraining", kind, text, SIZES)
    for name, (kind, text) in SKILLS.items()
}
