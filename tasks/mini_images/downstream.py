"""The six tasks about pictures, of the kinds that the paper adapts to.

* `mini_coco`: a caption; 5 references a picture.
* `mini_textcaps`: a caption that must quote the written word; 5 references.
* `mini_okvqa`: what the picture does not say: which gem has the color of the circle? 10 answers,
  some of which name another gem of that color.
* `mini_textvqa`: the written word, its color, or whether it is there; 10 answers, some of which
  give up.
* `mini_stvqa`: one of two written words, by its color or by where it is.
* `mini_docvqa`: what stands in one of a document's four lines.
"""

from tasks.mini_images import scenes, templates, wording
from tasks.mini_images.albums import PictureSource
from tasks.mini_images.scenes import WORDS, Document, Scene, relation
from tasks.mini_language import Draw

SIZES = {"train": 2_000, "validation": 400}
REFERENCES, ANSWERS = 5, 10


def _coco(scene: Scene, draw: Draw) -> dict:
    texts = templates.COCO_TWO if len(scene.objects) > 1 else templates.COCO_ONE
    return _captioned(templates.COCO, texts, scene, draw)


def _textcaps(scene: Scene, draw: Draw) -> dict:
    return _captioned(templates.TEXTCAPS, templates.TEXTCAPS_CAPTIONS, scene, draw)


def _captioned(prompt: str, texts, scene: Scene, draw: Draw) -> dict:
    captions = wording.several(draw, texts, REFERENCES, wording.fields(scene, draw))
    return {"inputs": prompt, "targets": captions[0], "references": captions}


def _answered(draw: Draw, question: str, answer: str, other: str, least: int) -> dict:
    """Returns a question with ten answers, of which at least some are the right one."""
    right = least + draw.below(ANSWERS + 1 - least)
    answers = [answer] * right + [other] * (ANSWERS - right)
    return {"inputs": question, "targets": answer, "references": answers}


def _okvqa(scene: Scene, draw: Draw) -> dict:
    _, thing = draw.pick(scene.objects)
    kind = draw.pick(templates.ASKED_FACTS)
    usual, rare = templates.FACTS[kind][thing.color]
    question = wording.filled(draw.pick(templates.OKVQA), kind=kind, ah=thing.shape)
    return _answered(draw, question, usual, rare, least=6)


def _textvqa(scene: Scene, draw: Draw) -> dict:
    places = wording.fields(scene, draw)
    kind = draw.below(5)
    if kind == 0:
        question, answer = templates.TEXTVQA_COLOR, places["wc"]
    elif kind == 1:
        there = draw.chance(0.5)
        other = wording.other_word(draw, WORDS, (places["w"],))
        question, answer = templates.TEXTVQA_VERIFY, "yes" if there else "no"
        places["x"] = places["w"] if there else other
    else:
        question, answer = draw.pick(templates.TEXTVQA_READ), places["w"]
    return _answered(draw, wording.filled(question, **places), answer, "unanswerable", least=8)


def _stvqa(scene: Scene, draw: Draw) -> dict:
    (first, one), (second, other) = scene.signs
    if draw.chance(0.5):
        (first, one), (second, other) = (second, other), (first, one)
    by = draw.pick(tuple(templates.STVQA))
    places = {"wc": one.color, "wrel": relation(first, second)}
    question = wording.filled(draw.pick(templates.STVQA[by]), **places)
    return {"inputs": question, "targets": one.word, "references": [one.word]}


def _docvqa(document: Document, draw: Draw) -> dict:
    field, word = draw.pick(document.lines)
    question = wording.filled(draw.pick(templates.DOCVQA), field=field)
    return {"inputs": question, "targets": word, "references": [word]}


#: Task → the pictures it is about, and its texts.
SKILLS = {
    "mini_coco": (scenes.objects, _coco),
    "mini_textcaps": (scenes.labeled, _textcaps),
    "mini_okvqa": (scenes.objects, _okvqa),
    "mini_textvqa": (scenes.labeled, _textvqa),
    "mini_stvqa": (scenes.signposts, _stvqa),
    "mini_docvqa": (scenes.document, _docvqa),
}
SOURCES = {
    name: PictureSource(name, "glue", kind, text, SIZES) for name, (kind, text) in SKILLS.items()
}
CAPTIONS, QUESTIONS = tuple(SKILLS)[:2], tuple(SKILLS)[2:]
