"""WordNet's files: words, definitions, examples, and what can stand in place of a word."""

import dataclasses
import pathlib
import re

_FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
_EXAMPLE = re.compile(r'"([^"]+)"')
_COMMON = 1  # Times that a sense was counted in the texts of WordNet's authors.


@dataclasses.dataclass
class Sense:
    """One meaning.

    Attributes:
      words: its words, the usual one first, with spaces.
      kind: "n", "v", "a" or "r".
      gloss: the definition.
      examples: short texts with one of the words.
      above: keys of the meanings that it is a kind of.
      opposites: words that mean the opposite of its first word.
      counted: whether the texts of WordNet's authors have it.
    """

    words: list[str]
    kind: str
    gloss: str
    examples: list[str]
    above: list[str]
    opposites: list[str]
    counted: bool = False


@dataclasses.dataclass
class WordNet:
    """All meanings, and what can stand in place of a word.

    Attributes:
      senses: meanings by key.
      synonyms: word → words of its commonest meaning.
      broader: word → the words of what it is a kind of.
      opposites: word → words that mean the opposite.
      siblings: word → words of the same kind of thing.
    """

    senses: dict[str, Sense]
    synonyms: dict[str, list[str]]
    broader: dict[str, list[str]]
    opposites: dict[str, list[str]]
    siblings: dict[str, list[str]]


def read(folder: pathlib.Path) -> WordNet:
    """Reads WordNet 3's database files `data.*`, and how common its meanings are."""
    senses, links = {}, []
    for kind, name in _FILES.items():
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                key, sense, opposite = _sense(kind, line)
                senses[key] = sense
                links += [(key, *link) for link in opposite]
    for key, place, other, other_place in links:
        words = senses[other].words
        if place <= 1 and other_place <= len(words):
            senses[key].opposites.append(words[max(other_place, 1) - 1])
    return _related(senses, _first_senses(folder, senses))


def _sense(kind: str, line: str) -> tuple[str, Sense, list[tuple[int, str, int]]]:
    data, _, gloss = line.partition(" | ")
    parts = data.split()
    count = int(parts[3], 16)
    words = [re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in parts[4 : 4 + 2 * count : 2]]
    start = 4 + 2 * count
    above, opposites = [], []
    for i in range(start + 1, start + 1 + 4 * int(parts[start]), 4):
        pointer, offset, other_kind, places = parts[i : i + 4]
        other = other_kind.replace("s", "a") + offset
        if pointer in ("@", "@i"):
            above.append(other)
        elif pointer == "!":
            opposites.append((int(places[:2], 16), other, int(places[2:], 16)))
    definition = _EXAMPLE.split(gloss)[0].strip(" ;:\n")
    sense = Sense(words, kind, definition, _EXAMPLE.findall(gloss), above, [])
    return kind + parts[0], sense, opposites


def _first_senses(folder: pathlib.Path, senses: dict[str, Sense]) -> dict[str, str]:
    """Returns word → key of its commonest meaning, of words that were counted often."""
    kinds = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
    places: dict[tuple[str, str, int], str] = {}
    for kind, suffix in {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}.items():
        for line in (folder / f"index.{suffix}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            parts = line.split()
            for i, offset in enumerate(parts[-int(parts[2]) :]):
                places[parts[0], kind, i + 1] = kind + offset
    found: dict[str, str] = {}
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        sense_key, place, count = line.split()
        word, _, rest = sense_key.partition("%")
        key = places.get((word, kinds[rest[0]], int(place)))
        # The file is sorted by words; of a word's meanings the one that is met most comes to stay.
        if key and int(count) >= _COMMON:
            senses[key].counted = True
            best = found.get(word)
            if best is None or int(count) > int(best.split()[1]):
                found[word] = f"{key} {count}"
    return {word.replace("_", " "): value.split()[0] for word, value in found.items()}


def _related(senses: dict[str, Sense], first: dict[str, str]) -> WordNet:
    below: dict[str, list[str]] = {}
    for key, sense in senses.items():
        for above in sense.above:
            below.setdefault(above, []).append(key)
    synonyms, broader, opposites, siblings = {}, {}, {}, {}
    for word, key in first.items():
        sense = senses[key]
        synonyms[word] = [w for w in sense.words if w.lower() != word and w in first]
        if sense.kind == "n":
            broader[word] = [w for a in sense.above for w in senses[a].words[:1] if w in first]
            near = [k for a in sense.above for k in below[a] if k != key]
            siblings[word] = [w for k in near for w in senses[k].words[:1] if w in first]
        if sense.opposites and sense.words[0].lower() == word:
            opposites[word] = [w for w in sense.opposites if w in first]
    return WordNet(senses, *({k: v for k, v in d.items() if v} for d in (
        synonyms, broader, opposites, siblings)))  # fmt: skip
