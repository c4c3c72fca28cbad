"""Instructions made of text, WordNet and VADER's words and ratings; nothing of GLUE is in them.

An instruction is a `Made`: a template's number, one or two texts, an answer. Texts that belong
together stand side by side among the pieces, so the teacher sees both.
"""

import dataclasses
import math
import pathlib
import random
import re
from collections.abc import Iterator, Sequence

from adalink_jax.tools.english_base import texts, variants
from adalink_jax.tools.english_base.wordnet import WordNet


@dataclasses.dataclass(frozen=True)
class Template:
    """How an instruction is put into words.

    Attributes:
      kind: what is asked.
      before: the words before the first text.
      between: those before the second text; None if there is one text.
      after: those at the end.
      answers: the texts of the answers; none if an instruction brings its own.
    """

    kind: str
    before: str
    between: str | None
    after: str
    answers: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Made:
    """An instruction.

    Attributes:
      kind: the kind of its templates.
      first: the first text.
      second: the second, or None.
      answer: the number of its answer, or its text.
    """

    kind: str
    first: str
    second: str | None
    answer: int | str


_YES = ("no", "yes")
_SENTIMENT = ("negative", "positive")
_LOGIC = ("yes", "maybe", "no")
TEMPLATES = (
    Template("sentiment", "is this text positive or negative ?", None, "", _SENTIMENT),
    Template("sentiment", "text :", None, "what is the sentiment of this text ?", _SENTIMENT),
    Template("sentiment", "does the writer like it ? writer :", None, "", _YES),
    Template("sentiment", "review :", None, "is this a bad or a good review ?", ("bad", "good")),
    Template("grammar", "is this correct english ?", None, "", _YES),
    Template("grammar", "text :", None, "is the text acceptable ?", ("unacceptable", "acceptable")),
    Template("grammar", "find mistakes in this sentence :", None, "", ("wrong", "right")),
    Template("logic", "first :", "if this is true , is this true too ?", "", _LOGIC),
    Template("logic", "premise :", "hypothesis :", "does it follow ?", _LOGIC),
    Template("logic", "text :", "claim :", "is the claim true ?", ("true", "unknown", "false")),
    Template("same", "do these say the same ? one :", "two :", "", _YES),
    Template("same", "sentence a :", "sentence b :", "same or different ?", ("different", "same")),
    Template("answered", "question :", "text :", "does the text answer the question ?", _YES),
    Template("answered", "can one answer ", " after reading this ?", "", _YES),
    Template("next", "start :", "could this come next ?", "", _YES),
    Template("defined", "meaning :", "which word has this meaning ?", ""),
    Template("defined", "which word is meant ?", "choose :", ""),
    Template("kind_of", "is this a kind of that ? this :", "that :", "", _YES),
    Template("similar", "how similar are they from 0 to 5 ? one :", "two :", ""),
    Template("similar", "text a :", "text b :", "how close in meaning are the two texts ?"),
)  # fmt: skip


def _sentences(lines: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Returns that many sentences of 5 to 30 words, and each time the one after it."""
    found: list[str] = []
    for line in rng.sample(lines, len(lines)):
        some = [s for s in texts.sentences(line) if 5 <= len(s.split()) <= 30]
        found += rng.sample(some, min(len(some), 2))
        if len(found) >= count:
            break
    return found[:count]


def of_changes(
    lines: Sequence[str], net: WordNet, count: int, rng: random.Random
) -> Iterator[Made]:
    """Makes what is asked of a sentence and a changed one: grammar, logic, the same or not."""
    chosen = _sentences(lines, count, rng)
    for i, text in enumerate(chosen):
        broken = variants.change(text, variants.BROKEN, net, rng)
        if i % 3 == 0 and broken:
            if rng.random() < 0.4:
                broken = variants.change(broken, variants.BROKEN, net, rng) or broken
            yield Made("grammar", text, None, 1)
            yield Made("grammar", broken, None, 0)
            continue
        same = variants.change(text, variants.SAME, net, rng)
        other = variants.change(text, variants.OTHER, net, rng)
        stranger = chosen[(i * 7919 + 1) % len(chosen)]
        if rng.random() < 0.5:
            if same:
                yield Made("logic", text, same, 0)
            if other:
                yield Made("logic", text, other, 2)
            if same and rng.random() < 0.3:
                changed = variants.change(same, variants.OTHER, net, rng)
                yield Made("logic", text, changed or stranger, 2 if changed else 1)
            less = variants.change(text, (variants.shorter,), net, rng)
            # What says more than the first text does not follow from it.
            yield Made("logic", *((less, text) if less else (text, stranger)), 1)
        else:
            if same:
                yield Made("same", text, same, 1)
            if other:
                yield Made("same", text, other, 0)


# fmt: off
_SUBJECT = re.compile(r"^((?:(?:Mr|Mrs|Dr|Miss|President)\.? )?[A-Z][a-z]+(?: [A-Z][a-z]+)*) "
                      r"((?:is|was|has|had|said|says|will|would|went|made|took|told|wrote|came|"
                      r"saw|found|thought|knew|gave|became|began|bought|sold|won|lost) .+)$")
_PLACE = re.compile(
    r"^(.{12,}?) (in|at|from|on) ((?:the )?[A-Z][a-z]+(?: [A-Z][a-z]+)*|\d{4})\b(.*)$"
)
# fmt: on
_NO_NAMES = frozenset("The A An It He She They We I You This That There In On At But And".split())


def question(text: str) -> str | None:
    """Makes a question that a sentence answers: who did it, or where or when it was."""
    match = _SUBJECT.match(text)
    if match and match[1].split()[0] not in _NO_NAMES:
        return f"who {match[2].rstrip('.!?')} ?"
    match = _PLACE.match(text)
    if match:
        ask = "in what year" if match[3].isdigit() else f"{match[2]} what place"
        return f"{ask} {match[1][0].lower()}{match[1][1:]} ?"
    return None


def of_paragraphs(lines: Sequence[str], count: int, rng: random.Random) -> Iterator[Made]:
    """Makes questions about a text, and asks what comes next."""
    made = 0
    for line in rng.sample(lines, len(lines)):
        some = [s for s in texts.sentences(line) if 5 <= len(s.split()) <= 35]
        if len(some) < 2:
            continue
        i = rng.randrange(len(some) - 1)
        asked = question(some[i])
        if asked:
            yield Made("answered", asked, some[i], 1)
            yield Made("answered", asked, some[i + 1], 0)
            made += 2
        elif rng.random() < 0.3 and len(some) > 2:
            yield Made("next", some[i], some[i + 1], 1)
            far = rng.choice(texts.sentences(rng.choice(lines)))
            yield Made("next", some[i], far, 0)
            made += 2
        if made >= count:
            return


def of_words(net: WordNet, count: int, rng: random.Random) -> Iterator[Made]:
    """Makes what is asked of words and their meanings."""
    senses = [sense for sense in net.senses.values() if len(sense.gloss.split()) > 3]
    for sense in rng.sample(senses, min(count, len(senses))):
        word, wrong = sense.words[0].lower(), rng.choice(senses).words[0].lower()
        pair = [word, wrong] if rng.random() < 0.5 else [wrong, word]
        yield Made("defined", sense.gloss, " or ".join(pair), word)
    for word in rng.sample(sorted(net.broader), min(count // 4, len(net.broader))):
        above = rng.choice(net.broader[word])
        yield Made("kind_of", word, above, 1)
        wrong = rng.choice(net.siblings.get(word) or [above])
        yield Made("kind_of", *((word, wrong) if wrong != above else (above, word)), 0)


def of_sentiment(
    lines: Sequence[str], vader: pathlib.Path, count: int, rng: random.Random
) -> Iterator[Made]:
    """Makes what is asked of a text's mood.

    Args:
      lines: paragraphs.
      vader: the folder of VADER's sources: its list of words with their moods judges sentences of
        the paragraphs, and its rated reviews of goods and short messages are taken as they are.
      count: number of judged sentences.
      rng: chooses.
    """
    for name in ("amazonReviewSnippets", "tweets"):
        path = vader / "additional_resources" / "hutto_ICWSM_2014" / f"{name}_GroundTruth.txt"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            _, rating, text = line.split("\t")[:3]
            if abs(float(rating)) > 0.5:
                yield Made("sentiment", text, None, int(float(rating) > 0))
    moods = {}
    lexicon = vader / "vaderSentiment" / "vader_lexicon.txt"
    for line in lexicon.read_text(encoding="utf-8").splitlines():
        word, mood = line.split("\t")[:2]
        moods[word] = float(mood)
    made = [0, 0]
    for text in _sentences(lines, len(lines), rng):
        judged = mood_of(text, moods)
        label = int(judged > 0)
        if abs(judged) > 0.45 and made[label] < count // 2:
            made[label] += 1
            yield Made("sentiment", text, None, label)


def mood_of(text: str, moods: dict[str, float]) -> float:
    """Judges a text by its words, with "not" turning those after it; from -1 to 1."""
    total, turned = 0.0, 0
    for word in text.lower().split():
        core = word.strip('.,;:!?"()')
        mood = moods.get(core, 0.0)
        total += -0.74 * mood if turned > 0 else mood
        turned -= 1
        if core in ("not", "no", "never", "without", "hardly") or core.endswith("n't"):
            turned = 3
        elif core == "but":
            total *= 0.5
    return total / math.sqrt(total * total + 15)
