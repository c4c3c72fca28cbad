"""Pairs of sentences from the mini world, labeled by how their events relate.

Each function draws one pair for a given label from the allowed parts of the world. The number of
shared words, the lengths and the words themselves reveal almost nothing about the label, because
words are replaced by synonyms as often as concepts by other concepts. `plain` is the share of pairs
without synonyms, which may be equal texts: a small model that starts from random weights needs some
of them to learn to compare. Mini-GLUE has none.
"""

import dataclasses
from collections.abc import Container, Sequence

from tasks import mini_events as events
from tasks.mini_events import Event
from tasks.mini_language import Draw

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
Pair = tuple[str, str]


def _inside(parts: Container[int], *meanings: Event) -> bool:
    return all(meaning.part() in parts for meaning in meanings)


def _subset(draw: Draw, slots: Sequence[str], least: int = 0) -> list[str]:
    """Returns some of the slots; every number from `least` on is equally likely."""
    rest, chosen = list(slots), []
    for _ in range(least + draw.below(len(rest) + 1 - least)):
        chosen.append(rest.pop(draw.below(len(rest))))
    return chosen


def _partner(draw: Draw, event: Event, same: bool, slots: Sequence[str]):
    """Returns the same or another event, and the slots to replace by synonyms.

    The other event has exchanged roles or one other concept in one of `slots`. The number of slots
    with different words has the same distribution in both cases.
    """
    if same:
        return event, _subset(draw, slots)
    other = events.swapped(event) if draw.chance(0.4) else None
    if other:
        return other, _subset(draw, [s for s in slots if s not in ("subject", "object")])
    differing = _subset(draw, slots, least=1)
    return events.changed(draw, event, differing[0]), differing[1:]


def _plainly(draw: Draw, plain: float, reworded: Sequence[str]) -> Sequence[str]:
    """Drops the synonyms in a share of pairs. If the share is 0, it draws nothing."""
    return () if plain and draw.chance(plain) else reworded


def _sentences(draw: Draw, first: Event, second: Event, reworded: Sequence[str]) -> Pair:
    form = events.forms(draw)
    other_form = events.other_forms(form, reworded)
    return events.sentence(draw, first, form), events.sentence(draw, second, other_form)


def paraphrase(draw: Draw, parts: Container[int], label: int, plain: float = 0) -> Pair:
    """Returns two different statements that are equivalent (label 1) or not (0)."""
    while True:
        event = events.draw_event(draw)
        other, reworded = _partner(draw, event, bool(label), event.slots())
        if not _inside(parts, event, other):
            continue
        reworded = _plainly(draw, plain, reworded)
        pair = _sentences(draw, event, other, reworded)
        if plain or pair[0] != pair[1]:
            return pair


def duplicate(draw: Draw, parts: Container[int], label: int, plain: float = 0) -> Pair:
    """Returns two different questions that ask the same (label 1) or not (0)."""
    while True:
        event = events.draw_event(draw)
        asked = also_asked = draw.pick(events.askable(event))
        slots = [slot for slot in event.slots() if slot != asked]
        other, reworded = _partner(draw, event, bool(label), slots)
        if not label and draw.chance(0.1):
            other, reworded = event, _subset(draw, event.slots())
            also_asked = draw.pick([s for s in events.askable(event) if s != asked])
        if not _inside(parts, events.unasked(event, asked), events.unasked(other, also_asked)):
            continue
        reworded = _plainly(draw, plain, reworded)
        form = events.forms(draw)
        first = events.question(draw, event, asked, form)
        second = events.question(draw, other, also_asked, events.other_forms(form, reworded))
        if plain or first != second:
            return first, second


def similarity(draw: Draw, parts: Container[int], label: int, plain: float = 0) -> Pair:
    """Returns two statements of five concepts, of which `label` (0 to 5) are the same."""
    while True:
        event = other = events.draw_event(draw, full=True)
        rest = list(events.SLOTS)
        for _ in range(len(rest) - label):
            slot = rest.pop(draw.below(len(rest)))
            other = events.changed(draw, other, slot)
        alike = [slot for slot in events.SLOTS if getattr(event, slot) == getattr(other, slot)]
        if len(alike) == label and _inside(parts, event, other):
            # With many synonyms, the number of shared words does not reveal the score.
            reworded = [slot for slot in alike if draw.chance(0.7)]
            return _sentences(draw, event, other, _plainly(draw, plain, reworded))


def _judged(premise: Event, hypothesis: Event) -> int:
    if not (premise.denied or hypothesis.denied):
        return ENTAILMENT if events.follows(premise, hypothesis) else NEUTRAL
    if dataclasses.replace(premise, denied=hypothesis.denied) != hypothesis:
        return NEUTRAL
    return ENTAILMENT if premise.denied == hypothesis.denied else CONTRADICTION


def _vague(draw: Draw, event: Event, often: float) -> Event:
    """Returns the event, perhaps with one slot made vaguer."""
    if not draw.chance(often):
        return event
    return events.generalized(event, draw.pick(events.askable(event)))


def inference(draw: Draw, parts: Container[int], label: int, plain: float = 0) -> Pair:
    """Returns a premise and a hypothesis: entailment (0), neutral (1) or contradiction (2)."""
    while True:
        premise = events.draw_event(draw)
        hypothesis, reworded = _partner(draw, premise, draw.chance(0.6), premise.slots())
        premise = dataclasses.replace(premise, denied=draw.chance(0.5))
        hypothesis = dataclasses.replace(hypothesis, denied=draw.chance(0.5))
        if not (premise.denied or hypothesis.denied):
            premise, hypothesis = _vague(draw, premise, 0.2), _vague(draw, hypothesis, 0.4)
        if _judged(premise, hypothesis) == label and _inside(parts, premise, hypothesis):
            pair = _sentences(draw, premise, hypothesis, _plainly(draw, plain, reworded))
            if plain or pair[0] != pair[1]:
                return pair


def entails(draw: Draw, parts: Container[int], label: int, plain: float = 0) -> Pair:
    """Returns a text and a statement that follows from it (label 0) or not (1)."""
    while True:
        text = events.draw_event(draw)
        statement, reworded = _partner(draw, text, draw.chance(0.5), text.slots())
        text, statement = _vague(draw, text, 0.3), _vague(draw, statement, 0.6)
        if events.follows(text, statement) == (not label) and _inside(parts, text, statement):
            pair = _sentences(draw, text, statement, _plainly(draw, plain, reworded))
            if plain or pair[0] != pair[1]:
                return pair


def answers(
    draw: Draw, parts: Container[int], label: int, plain: float = 0
) -> tuple[str, str, str]:
    """Returns a question, a sentence that answers it (label 0) or not (1), and the answer.

    The answer is "unknown" for label 1.
    """
    while True:
        event = events.draw_event(draw)
        asked = draw.pick(events.askable(event))
        slots = [slot for slot in event.slots() if slot != asked]
        told, reworded = _partner(draw, event, not label, slots)
        if label and asked in ("place", "manner") and draw.chance(0.2):
            # The right event, but it does not mention what is asked for, only something else.
            other = "manner" if asked == "place" else "place"
            filled = getattr(events.draw_event(draw, full=True), other)
            told = dataclasses.replace(
                event, **{asked: None, other: getattr(event, other) or filled}
            )
            reworded = _subset(draw, slots)
        if not _inside(parts, events.unasked(event, asked), told):
            continue
        reworded = _plainly(draw, plain, reworded)
        form = events.forms(draw)
        asking = events.question(draw, event, asked, form)
        form = events.other_forms(form, reworded)
        answer = "unknown" if label else events.word(told, asked, form)
        return asking, events.sentence(draw, told, form), answer


def difference(
    draw: Draw, parts: Container[int], label: int, plain: float = 0
) -> tuple[str, str, str]:
    """Returns two statements and the second's only new word, or "nothing" for label 1."""
    while True:
        event = events.draw_event(draw)
        differing = _subset(draw, event.slots(), least=1)
        other = event if label else events.changed(draw, event, differing[0])
        if not _inside(parts, event, other):
            continue
        form = events.forms(draw)
        reworded = _plainly(draw, plain, differing if label else differing[1:])
        other_form = events.other_forms(form, reworded)
        word = "nothing" if label else events.word(other, differing[0], other_form)
        first, second = events.sentence(draw, event, form), events.sentence(draw, other, other_form)
        return first, second, word
