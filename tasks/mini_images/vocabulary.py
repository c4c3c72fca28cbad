"""The image world's vocabulary, a list of its own beside the mini world's."""

from tasks.mini_images import scenes, templates
from tasks.mini_vocabulary import MiniVocabulary

_OTHERS = ("above", "below", "left", "right", "of", "yes", "no", "nothing", "unanswerable",
           "things", "thing", "a", "an", "happy", "sad")  # fmt: skip
_PLACES = " ".join(scenes.PLACES).split()
_PARTS = (
    *scenes.SIZES,
    *scenes.COLOR_WORDS,
    *scenes.SHAPES,
    *_PLACES,
    *scenes.WORDS,
    *scenes.FIELDS,
)

VOCABULARY = MiniVocabulary(list(dict.fromkeys((*_PARTS, *_OTHERS, *templates.words()))))
