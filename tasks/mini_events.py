"""Events of the mini world: who does what to whom, where and how, and the words for it.

An event is a meaning made of five concepts. Each concept has two words, the word order of a
sentence is partly free, and a denial has two forms, so one event has dozens of sentences. Labels of
sentence pairs (the same? does one follow? how similar?) depend only on their events, never on the
words. `mini_language` generates the sentences for judging sentiment and grammar.
"""

import dataclasses
import zlib

from tasks.mini_language import Draw

# Concepts with their two words.
PEOPLE = (
    ("teacher", "tutor"), ("child", "kid"), ("friend", "pal"), ("artist", "painter"),
    ("writer", "novelist"), ("critic", "reviewer"), ("doctor", "physician"),
    ("singer", "vocalist"),
)  # fmt: skip
THINGS = (
    ("film", "movie"), ("book", "novel"), ("song", "tune"), ("story", "tale"),
    ("picture", "image"), ("play", "drama"), ("letter", "note"), ("lesson", "lecture"),
)  # fmt: skip
# Third person and infinitive.
VERBS = (
    (("watches", "watch"), ("views", "view")),
    (("describes", "describe"), ("explains", "explain")),
    (("follows", "follow"), ("chases", "chase")),
    (("remembers", "remember"), ("recalls", "recall")),
    (("finds", "find"), ("discovers", "discover")),
    (("draws", "draw"), ("sketches", "sketch")),
    (("praises", "praise"), ("commends", "commend")),
    (("brings", "bring"), ("carries", "carry")),
)
PLACES = (("river", "stream"), ("house", "home"), ("garden", "park"), ("school", "college"))
MANNERS = (
    ("quickly", "rapidly"), ("quietly", "silently"), ("gladly", "happily"),
    ("often", "frequently"),
)  # fmt: skip
GENERAL = ("someone", "something", "somewhere")
OTHER_WORDS = (
    "the", "near", "does", "not", "fails", "to", ".", "?", "who", "whom", "what", "where", "how",
)  # fmt: skip

SLOTS = ("subject", "verb", "object", "place", "manner")
_WORDS = {
    **{pair[0]: pair for pair in (*PEOPLE, *THINGS, *PLACES, *MANNERS)},
    **{pair[0][0]: (pair[0][0], pair[1][0]) for pair in VERBS},
    **{word: (word, word) for word in GENERAL},
}
_INFINITIVE = {form[0]: form[1] for pair in VERBS for form in pair}
_PEOPLE, _THINGS = (tuple(pair[0] for pair in group) for group in (PEOPLE, THINGS))
_CONCEPTS = {
    "subject": _PEOPLE,
    "verb": tuple(pair[0][0] for pair in VERBS),
    "place": tuple(pair[0] for pair in PLACES),
    "manner": tuple(pair[0] for pair in MANNERS),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A meaning: one concept per slot, named by its first word; None if a slot is not mentioned.

    Attributes:
      subject: who.
      verb: does what.
      object: to whom or to what.
      place: where.
      manner: how.
      denied: whether the whole event is denied.
    """

    subject: str
    verb: str
    object: str
    place: str | None = None
    manner: str | None = None
    denied: bool = False

    def slots(self) -> list[str]:
        """Returns the slots that are filled."""
        return [slot for slot in SLOTS if getattr(self, slot)]

    def part(self) -> int:
        """Returns which hundredth of all meanings this is in; a denial is in its event's."""
        return zlib.crc32(repr([getattr(self, slot) for slot in SLOTS]).encode()) % 100


def draw_event(draw: Draw, full: bool = False) -> Event:
    """Draws an event; place and manner are present half of the time each, or always if `full`."""
    subject = draw.pick(_PEOPLE)
    objects = _THINGS if draw.chance(0.5) else tuple(p for p in _PEOPLE if p != subject)
    return Event(
        subject,
        draw.pick(_CONCEPTS["verb"]),
        draw.pick(objects),
        draw.pick(_CONCEPTS["place"]) if full or draw.chance(0.5) else None,
        draw.pick(_CONCEPTS["manner"]) if full or draw.chance(0.5) else None,
    )


def changed(draw: Draw, event: Event, slot: str) -> Event:
    """Returns the event with another concept of the same kind in one slot."""
    old = getattr(event, slot)
    kind = _CONCEPTS.get(slot) or (_PEOPLE if old in _PEOPLE else _THINGS)
    taken = {old, event.subject, event.object}
    return dataclasses.replace(event, **{slot: draw.pick([c for c in kind if c not in taken])})


def swapped(event: Event) -> Event | None:
    """Returns the event with subject and object exchanged; None if one is not a person."""
    if event.subject not in _PEOPLE or event.object not in _PEOPLE:
        return None
    return dataclasses.replace(event, subject=event.object, object=event.subject)


def generalized(event: Event, slot: str) -> Event:
    """Returns the event with "someone", "something" or "somewhere" in a slot, or no manner."""
    kind = {"subject": GENERAL[0], "place": GENERAL[2], "manner": None}
    if slot == "object":
        return dataclasses.replace(event, object=GENERAL[event.object in _THINGS])
    return dataclasses.replace(event, **{slot: kind[slot]})


def follows(premise: Event, hypothesis: Event) -> bool:
    """Returns whether one event implies another, which says the same or less in every slot."""
    for slot in SLOTS:
        stated, asked = getattr(premise, slot), getattr(hypothesis, slot)
        general = asked is not None and stated is not None and asked in GENERAL
        if general and slot == "object":
            general = asked == GENERAL[stated in _THINGS or stated == GENERAL[1]]
        if asked is not None and asked != stated and not general:
            return False
    return True


def forms(draw: Draw) -> dict[str, int]:
    """Draws which of its two words each slot uses."""
    return {slot: draw.below(2) for slot in SLOTS}


def other_forms(of: dict[str, int], slots) -> dict[str, int]:
    """Returns the same choice of words, but with the other word in the given slots."""
    return {slot: 1 - form if slot in slots else form for slot, form in of.items()}


def word(event: Event, slot: str, form: dict[str, int]) -> str:
    """Returns the word of a slot (for a verb, its third person)."""
    return _WORDS[getattr(event, slot)][form[slot]]


def _phrase(event: Event, slot: str, form: dict[str, int]) -> list[str]:
    if not getattr(event, slot):
        return []
    text = word(event, slot, form)
    if text in GENERAL or slot == "manner":
        return [text]
    return ["near", "the", text] if slot == "place" else ["the", text]


def sentence(draw: Draw, event: Event, form: dict[str, int]) -> str:
    """Returns the event as a statement, in a random word order."""
    verb = word(event, "verb", form)
    if event.denied:
        verb = f"{draw.pick(('does not', 'fails to'))} {_INFINITIVE[verb]}"
    manner, place = _phrase(event, "manner", form), _phrase(event, "place", form)
    front, before, behind = [], [], []
    (front if draw.chance(0.3) else behind).extend(place)
    (before if draw.chance(0.6) else behind).extend(manner)
    subject, object_ = (_phrase(event, slot, form) for slot in ("subject", "object"))
    return " ".join([*front, *subject, *before, verb, *object_, *behind, "."])


def askable(event: Event) -> list[str]:
    """Returns the slots that a question can ask for."""
    return [slot for slot in event.slots() if slot != "verb"]


def question(draw: Draw, event: Event, asked: str, form: dict[str, int]) -> str:
    """Returns a question for one slot of an event; it mentions the rest of the event."""
    manner, place = (
        [] if asked == slot else _phrase(event, slot, form) for slot in ("manner", "place")
    )
    verb = word(event, "verb", form)
    before, behind = (manner, []) if draw.chance(0.6) else ([], manner)
    behind = [*place, *behind] if draw.chance(0.5) else [*behind, *place]
    object_ = _phrase(event, "object", form)
    if asked == "subject":
        return " ".join(["who", *before, verb, *object_, *behind, "?"])
    asks = {"object": "what" if event.object in _THINGS else "whom", "place": "where"}
    subject = _phrase(event, "subject", form)
    object_ = [] if asked == "object" else object_
    words = [asks.get(asked, "how"), "does", *subject, *before, _INFINITIVE[verb], *object_]
    return " ".join([*words, *behind, "?"])


def unasked(event: Event, asked: str) -> Event:
    """Returns the event that a question describes, with the asked slot open."""
    return dataclasses.replace(event, **{asked: None})


def lexicon() -> list[str]:
    """Returns every word used for events, in a fixed order, each once."""
    verbs = [word for pair in VERBS for form in pair for word in form]
    nouns = [word for group in (PEOPLE, THINGS, PLACES, MANNERS) for pair in group for word in pair]
    return list(dict.fromkeys((*nouns, *verbs, *GENERAL, *OTHER_WORDS)))
