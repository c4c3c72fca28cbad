"""The mini world's pairs, read from their texts alone: a second opinion on every label.

Written against the language and not with the generator: it knows which words mean the same, finds
who, what, where and how by their places in a sentence, and judges two readings.
"""

from tasks import mini_events

_CONCEPT = {
    word: pair[0]
    for pair in (
        *mini_events.PEOPLE,
        *mini_events.THINGS,
        *mini_events.PLACES,
        *mini_events.MANNERS,
        *(tuple(form[i] for form in verb) for verb in mini_events.VERBS for i in (0, 1)),
    )
    for word in pair
}
_VERBS = {form[i]: verb[0][0] for verb in mini_events.VERBS for form in verb for i in (0, 1)}
_PLACES = {word for pair in mini_events.PLACES for word in pair}
_MANNERS = {word for pair in mini_events.MANNERS for word in pair}
_THINGS = {pair[0] for pair in mini_events.THINGS} | {"something"}
_ASKS = {"who": "subject", "what": "object", "whom": "object", "where": "place", "how": "manner"}
SLOTS = ("subject", "verb", "object", "place", "manner")


def read(text: str) -> dict[str, str | None]:
    """Slots to concepts, `denied`, and `asked` of a question."""
    words = text.split()
    found: dict = dict.fromkeys(SLOTS) | {"denied": False, "asked": None}
    assert words.pop() in (".", "?")
    for i, word in enumerate(words):
        if word in _VERBS:
            found["verb"] = _VERBS[word]
        elif word in ("not", "fails"):
            found["denied"] = True
        elif word in _PLACES:
            assert words[i - 2 : i] == ["near", "the"]
            found["place"] = _CONCEPT[word]
        elif word == "somewhere":
            found["place"] = word
        elif word in _MANNERS:
            found["manner"] = _CONCEPT[word]
        elif word in _ASKS:
            found["asked"] = _ASKS[word]
        elif word in _CONCEPT or word in ("someone", "something"):
            role = "object" if found["verb"] else "subject"
            assert found[role] is None
            found[role] = _CONCEPT.get(word, word)
        else:
            assert word in ("the", "near", "does", "to")
    return found


def alike(first: dict, second: dict) -> int:
    """In how many slots both say the same."""
    return sum(first[slot] == second[slot] for slot in SLOTS)


def covers(premise: dict, hypothesis: dict) -> bool:
    """Whether the hypothesis says in no slot anything other or more exact than the premise."""
    for slot in SLOTS:
        said, asked = premise[slot], hypothesis[slot]
        if asked is None or said == asked:
            continue
        vague = {"someone": said not in _THINGS, "something": said in _THINGS, "somewhere": True}
        if said is None or not vague.get(asked, False):
            return False
    return True


def label(name: str, texts: list[str]) -> int:
    """The label of mini-GLUE's task of this name; `texts` in the order of its fields."""
    first, second = map(read, texts)
    same = first == second
    if name in ("mrpc", "qqp"):
        return int(same)
    if name == "stsb":
        return alike(first, second)
    if name == "rte":
        return int(not covers(first, second))
    if name == "qnli":
        asked = first["asked"]
        return int(second[asked] is None or not covers(second, first))
    assert name == "mnli"
    if not first["denied"] and not second["denied"]:
        return 0 if covers(first, second) else 1
    if alike(first, second) < len(SLOTS):
        return 1
    return 0 if first["denied"] == second["denied"] else 2
