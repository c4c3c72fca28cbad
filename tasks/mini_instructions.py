"""Training data of the mini world's bases: span corruption of its texts, and instructions.

`mini_spans` is span corruption of short texts. `mini_instruct_…` are instructions about one skill
each, mixed as `mini_instructions`. Their formats, sentences and meanings do not occur in mini-GLUE.
"""

from collections.abc import Callable, Iterator

import numpy as np
import seqio

from tasks import mini_glue, mini_language, mini_pairs
from tasks.mini_templates import OPEN_TEMPLATES, TEMPLATES
from tasks.mini_vocabulary import VOCABULARY
from tasks.mini_world import MiniSource
from tasks.pretraining import add_instructions, add_span_corruption

# Half of the sentences and pairs have the simplest form; a model that starts from random weights
# needs some of them.
_PLAIN = 0.5
_FIELDS = ("first", "second")


def _opened(pair: Callable) -> Callable:
    """Returns a generator of pairs of texts with a word as the answer; see `mini_pairs`."""

    def examples(draw, parts) -> Iterator[dict]:
        while True:
            first, second, answer = pair(draw, parts, int(draw.chance(0.3)), _PLAIN)
            yield {"first": first, "second": second, "answer": answer}

    return examples


def _texts(draw, parts) -> Iterator[dict]:
    """Yields correct sentences, events told twice, and questions with their answers."""
    sentences = mini_language.sentences(draw, parts, "acceptability")
    while True:
        kind = draw.below(3)
        if kind == 0:
            text = next(sentence for sentence, label in sentences if label)
        else:
            pair = (mini_pairs.paraphrase, mini_pairs.answers)[kind - 1]
            text = " ".join(pair(draw, parts, int(kind == 1))[:2])
        yield {"text": text}


def _pairs(pair: Callable, labels: int) -> tuple[Callable, tuple[str, str]]:
    return mini_glue.judged_pairs(pair, labels, _FIELDS, _PLAIN), _FIELDS


#: Skill → the generator of its examples, and the fields for its template.
SKILLS = {
    "sentiment": (mini_glue.judged_sentences("sentiment", _PLAIN), ("sentence",)),
    "acceptability": (mini_glue.judged_sentences("acceptability", _PLAIN), ("sentence",)),
    "paraphrase": _pairs(mini_pairs.paraphrase, 2),
    "duplicates": _pairs(mini_pairs.duplicate, 2),
    "similarity": _pairs(mini_pairs.similarity, 6),
    "inference": _pairs(mini_pairs.inference, 3),
    "entails": _pairs(mini_pairs.entails, 2),
    "answers": _pairs(mini_pairs.answers, 2),
    "lookup": (_opened(mini_pairs.answers), _FIELDS),
    "difference": (_opened(mini_pairs.difference), _FIELDS),
}
# Skills that take longer: grammar has many rare faults, and similarity has six labels.
RATES = {"acceptability": 3.0, "similarity": 1.5}
SIZES = {"train": 16_000, "validation": 200}


def _register(skill: str) -> str:
    name = f"mini_instruct_{skill}"
    generator, fields = SKILLS[skill]
    templates = TEMPLATES.get(skill) or [(text, None) for text in OPEN_TEMPLATES[skill]]
    dtypes = {"label": np.int64}
    sizes = SIZES | {"train": int(SIZES["train"] * RATES.get(skill, 1.0))}
    source = MiniSource(name, "pretraining", generator, sizes, dtypes)
    add_instructions(name, source, templates, fields, VOCABULARY)
    return name


INSTRUCTIONS = tuple(map(_register, SKILLS))
_MIXED = [(name, RATES.get(skill, 1.0)) for skill, name in zip(SKILLS, INSTRUCTIONS, strict=True)]
add_span_corruption(
    "mini_spans",
    MiniSource("mini_spans", "pretraining", _texts, {"train": 60_000, "validation": 200}),
    VOCABULARY,
    max_tokens=40,
    density=0.25,
    mean_span=1.5,
)
seqio.MixtureRegistry.add("mini_instructions", _MIXED)
