"""Changes of a sentence whose effect is known: the same meaning, another, or no English at all."""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from adalink_jax.tools.english_base.wordnet import WordNet

_BE = "is are was were can could will would should must may might has had have did does do".split()
_LITTLE = (
    "the a an of to in on for with at by from and or but is are was were it he she they".split()
)
_NUMBERS = "two three four five six seven eight nine ten twenty hundred".split()
_ADVERBS = re.compile(r"^(very|really|quite|just|also|still|even|already|\w{3,}ly)$")

Words = list[str]
Change = Callable[[Words, WordNet, random.Random], Words | None]


def _core(word: str) -> str:
    return word.lower().strip(".,;:!?\"'()")


def _replace(words: Words, table: Mapping[str, Sequence[str]], rng: random.Random) -> Words | None:
    """Replaces one word by one of the table's, with the punctuation around it kept."""
    places = [i for i, word in enumerate(words) if _core(word) in table and len(_core(word)) > 2]
    if not places:
        return None
    i = rng.choice(places)
    new = rng.choice(table[_core(words[i])])
    return [*words[:i], words[i].lower().replace(_core(words[i]), new), *words[i + 1 :]]


def synonym(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A word becomes one of the same meaning; a second one too, where there is one."""
    once = _replace(words, net.synonyms, rng)
    return once and (_replace(once, net.synonyms, rng) or once)


def broader(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A thing becomes a kind of thing."""
    return _replace(words, net.broader, rng)


def shorter(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """What stands before or after a comma alone, or no adverbs."""
    del net
    commas = [i + 1 for i, word in enumerate(words) if word.endswith(",")]
    parts = [part for i in commas for part in (words[:i], words[i:]) if len(part) >= 5]
    if parts and rng.random() < 0.7:
        part = rng.choice(parts)
        return [*part[:-1], part[-1].rstrip(",;") + ("" if part[-1][-1] in ".!?" else " .")]
    kept = [word for word in words if not _ADVERBS.match(word.lower())]
    return kept if 4 <= len(kept) < len(words) else None


def opposite(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A word becomes its opposite."""
    return _replace(words, net.opposites, rng)


def negated(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """What is becomes what is not, and the other way round."""
    del net, rng
    lower = [word.lower() for word in words]
    if "not" in lower:
        i = lower.index("not")
        return [*words[:i], *words[i + 1 :]]
    places = [i for i, word in enumerate(lower[:-1]) if word in _BE]
    return [*words[: places[0] + 1], "not", *words[places[0] + 1 :]] if places else None


def number(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A number becomes another."""
    del net
    places = [i for i, w in enumerate(words) if _core(w).isdigit() or _core(w) in _NUMBERS]
    if not places:
        return None
    i = rng.choice(places)
    core = _core(words[i])
    new = rng.choice([n for n in _NUMBERS if n != core])
    if core.isdigit():
        new = str(int(core[:6]) + rng.choice((-3, -1, 1, 2, 5, 10)))
    return [*words[:i], words[i].lower().replace(core, new), *words[i + 1 :]]


def sibling(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A thing becomes another of the same kind."""
    return _replace(words, net.siblings, rng)


def swapped_names(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """Two names change places."""
    del net
    places = [i for i, w in enumerate(words) if i and w[:1].isupper() and _core(w) not in _LITTLE]
    if len(places) < 2:
        return None
    i, j = rng.sample(places, 2)
    if _core(words[i]) == _core(words[j]):
        return None
    new = list(words)
    new[i], new[j] = words[j], words[i]
    return new


def dropped(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A little word is missing."""
    del net
    places = [i for i, word in enumerate(words) if word.lower() in _LITTLE]
    if not places:
        return None
    i = rng.choice(places)
    return [*words[:i], *words[i + 1 :]]


def exchanged(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A little word is another."""
    del net
    places = [i for i, word in enumerate(words) if word.lower() in _LITTLE]
    if not places:
        return None
    i = rng.choice(places)
    new = rng.choice([word for word in _LITTLE if word != words[i].lower()])
    return [*words[:i], new, *words[i + 1 :]]


def moved(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """Two neighbours change places."""
    del net
    i = rng.randrange(len(words) - 1)
    return [*words[:i], words[i + 1], words[i], *words[i + 2 :]]


def inflected(words: Words, net: WordNet, rng: random.Random) -> Words | None:
    """A word has an s too much or too little, or another ending."""
    del net
    places = [i for i, w in enumerate(words) if w.isalpha() and w.islower() and len(w) > 3]
    if not places:
        return None
    i = rng.choice(places)
    word = words[i]
    if word.endswith("s") and not word.endswith("ss"):
        new = word[:-1]
    elif word.endswith("ing"):
        new = word[:-3]
    elif word.endswith("ed"):
        new = word[:-2] + rng.choice(("", "ing"))
    else:
        new = word + rng.choice(("s", "s", "ing", "ed"))
    return [*words[:i], new, *words[i + 1 :]]


SAME: tuple[Change, ...] = (synonym, broader, shorter, shorter)
OTHER: tuple[Change, ...] = (opposite, negated, number, sibling, swapped_names)
BROKEN: tuple[Change, ...] = (dropped, exchanged, moved, inflected, inflected)


def change(text: str, changes: Sequence[Change], net: WordNet, rng: random.Random) -> str | None:
    """Changes a sentence in one of several ways.

    Args:
      text: the sentence.
      changes: the ways; those that fit no word of it are passed over.
      net: WordNet.
      rng: chooses.

    Returns:
      Another sentence; None if no way fits.
    """
    words = text.split()
    if len(words) < 2:
        return None
    for way in rng.sample(changes, len(changes)):
        new = way(words, net, rng)
        if new and new != words:
            return " ".join(new)
    return None
