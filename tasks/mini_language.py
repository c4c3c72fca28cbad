"""A small English: its words, its sentences, and what can be said about them.

Two judgements can be made of a sentence. *Sentiment*: an opinion is favorable or not, where
negation turns a word's polarity over and, of two clauses, the one that the author stands by
decides. *Acceptability*: a sentence is English or has one fault, two words in the wrong order, a
wrong agreement of number, or a missing verb. Both need the words' relations: neither length nor
any single word tells.

Everything is drawn with `Draw`, whose stream is fixed by its seed on every platform and version.
"""

import dataclasses
import random
import zlib
from collections.abc import Container, Iterator, Sequence

# Texts in pairs (singular, plural).
THINGS = (
    ("film", "films"), ("book", "books"), ("song", "songs"), ("story", "stories"),
    ("show", "shows"), ("play", "plays"), ("game", "games"), ("picture", "pictures"),
)  # fmt: skip
PEOPLE = (
    ("writer", "writers"), ("teacher", "teachers"), ("friend", "friends"),
    ("child", "children"), ("artist", "artists"), ("critic", "critics"),
)  # fmt: skip
PLACES = (
    ("school", "schools"), ("garden", "gardens"), ("house", "houses"), ("river", "rivers"),
)  # fmt: skip
NUMBERED = (("this", "these"), ("that", "those"), ("a", "many"), ("every", "few"))
UNNUMBERED = ("the", "my", "our", "her", "his")
DESCRIPTIONS = ("new", "old", "long", "short", "small", "young", "quiet", "famous")
ADJECTIVES = (
    ("bad", "awful", "dull", "terrible", "boring", "clumsy", "weak", "ugly"),
    ("good", "great", "lovely", "brilliant", "funny", "charming", "clever", "moving"),
)  # fmt: skip
OPINIONS = (
    (("hates", "hate"), ("dislikes", "dislike"), ("regrets", "regret")),
    (("loves", "love"), ("enjoys", "enjoy"), ("admires", "admire")),
)
ACTIONS = (
    ("sees", "see"), ("watches", "watch"), ("describes", "describe"), ("follows", "follow"),
    ("remembers", "remember"), ("finds", "find"), ("draws", "draw"), ("knows", "know"),
)  # fmt: skip
BE = (("is", "are"), ("was", "were"))
AUXILIARY = ("does", "do")
NEVER = ("never", "hardly")
OFTEN = ("often", "always")
DEGREES = ("very", "quite", "so")
PREPOSITIONS = ("near", "behind", "in")
TIMES = ("today", "now")
CONNECTIVES = ("and", "but", "although", ",", ".", "not")


class Draw:
    """Random choices from a seed.

    Built on `random.random` alone, the one stream that Python promises not to change.

    Args:
      seed: any int.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An int from 0 to n - 1."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence):
        """One of the options."""
        return options[int(self._random() * len(options))]


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word in its role.

    Attributes:
      text: the word.
      role: its part in the sentence, by which faults are made.
      other: the form for the other number, where the word has one that must agree.
    """

    text: str
    role: str
    other: str = ""


def _agreeing(forms: tuple[str, str], plural: bool, role: str) -> Word:
    return Word(forms[plural], role, forms[not plural])


def _noun_phrase(draw: Draw, nouns: Sequence[tuple[str, str]]) -> tuple[list[Word], bool]:
    """A determiner, perhaps a description, and a noun; with whether it is plural."""
    plural = draw.chance(0.5)
    if draw.chance(0.5):
        words = [_agreeing(draw.pick(NUMBERED), plural, "determiner")]
    else:
        words = [Word(draw.pick(UNNUMBERED), "determiner")]
    if draw.chance(0.3):
        words.append(Word(draw.pick(DESCRIPTIONS), "description"))
    words.append(Word(draw.pick(nouns)[plural], "noun"))
    return words, plural


def _place(draw: Draw) -> list[Word]:
    return [
        Word(draw.pick(PREPOSITIONS), "preposition"),
        Word(draw.pick(UNNUMBERED), "determiner"),
        Word(draw.pick(PLACES)[draw.chance(0.5)], "noun"),
    ]


def _opinion_clause(draw: Draw, favorable: bool, negations: float = 0.25) -> list[Word]:
    """A clause that praises or not; a share of them says so by negating the opposite."""
    negated = draw.chance(negations)
    polarity = favorable != negated
    if draw.chance(0.6):
        words, plural = _noun_phrase(draw, THINGS)
        words.append(_agreeing(draw.pick(BE), plural, "be"))
        if negated:
            word = draw.pick(("not", *NEVER))
            words.append(Word(word, "not" if word == "not" else "never"))
        if draw.chance(0.3):
            words.append(Word(draw.pick(DEGREES), "degree"))
        return [*words, Word(draw.pick(ADJECTIVES[polarity]), "adjective")]
    words, plural = _noun_phrase(draw, PEOPLE)
    verb = draw.pick(OPINIONS[polarity])
    if negated and draw.chance(0.5):
        words += [_agreeing(AUXILIARY, plural, "auxiliary"), Word("not", "not")]
        words.append(Word(verb[1], "infinitive"))
    else:
        if negated:
            words.append(Word(draw.pick(NEVER), "never"))
        words.append(_agreeing(verb, plural, "verb"))
    return words + _noun_phrase(draw, THINGS)[0]


def opinion(draw: Draw, favorable: bool, plain: bool = False) -> list[Word]:
    """A sentence of one or two clauses that is, all in all, favorable or not.

    "A and B" agree; of "A but B" and "although A , B" the author stands by B, and A says the
    opposite.

    Args:
      draw: source of randomness.
      favorable: what the sentence is to say.
      plain: whether it says so in one clause without negation.

    Returns:
      The words with their roles, the full stop included.
    """
    if plain:
        return [*_opinion_clause(draw, favorable, negations=0), Word(".", "link")]
    kind = draw.below(20)
    comma, and_, but, although = (Word(w, "link") for w in (",", "and", "but", "although"))
    last = _opinion_clause(draw, favorable)
    if kind < 9:
        words = last
    elif kind < 12:
        words = [*_opinion_clause(draw, favorable), and_, *last]
    elif kind < 16:
        words = [*_opinion_clause(draw, not favorable), but, *last]
    else:
        words = [although, *_opinion_clause(draw, not favorable), comma, *last]
    return [*words, Word(".", "link")]


def event(draw: Draw, plain: bool = False) -> list[Word]:
    """A sentence that tells who does what.

    Args:
      draw: source of randomness.
      plain: whether it is without places, one of which may stand between subject and verb and
        mislead agreement.

    Returns:
      The words with their roles, the full stop included.
    """
    words, plural = _noun_phrase(draw, PEOPLE)
    if not plain and draw.chance(0.3):
        words += _place(draw)
    if draw.chance(0.4):
        words.append(Word(draw.pick((*OFTEN, *NEVER)), "never"))
    words.append(_agreeing(draw.pick(ACTIONS), plural, "verb"))
    words += _noun_phrase(draw, THINGS)[0]
    if not plain and draw.chance(0.3):
        words += _place(draw)
    elif draw.chance(0.3):
        words.append(Word(draw.pick(TIMES), "time"))
    return [*words, Word(".", "link")]


# Neighbors which, exchanged, never leave an English sentence.
_FIXED_ORDER = frozenset(
    {
        ("determiner", "noun"), ("determiner", "description"), ("description", "noun"),
        ("be", "not"), ("auxiliary", "not"), ("be", "degree"), ("degree", "adjective"),
        ("be", "adjective"), ("verb", "determiner"), ("preposition", "determiner"),
    }
)  # fmt: skip


def spoil(draw: Draw, words: Sequence[Word]) -> list[Word]:
    """The sentence with one fault.

    Three kinds are equally frequent: one agreeing word takes the other number, two neighbors change
    places, or a verb is missing.
    """
    words = list(words)
    kind = draw.below(3)
    if kind == 0:
        i = draw.pick([i for i, word in enumerate(words) if word.other])
        words[i] = Word(words[i].other, words[i].role, words[i].text)
    elif kind == 1:
        verbs = ("verb", "be", "auxiliary")
        del words[draw.pick([i for i, word in enumerate(words) if word.role in verbs])]
    else:
        pairs = zip(words, words[1:], strict=False)
        i = draw.pick([i for i, (a, b) in enumerate(pairs) if (a.role, b.role) in _FIXED_ORDER])
        words[i], words[i + 1] = words[i + 1], words[i]
    return words


def text(words: Sequence[Word]) -> str:
    """The words with single blanks between them."""
    return " ".join(word.text for word in words)


def sentences(
    draw: Draw, parts: Container[int], judge: str, plain: float = 0
) -> Iterator[tuple[str, int]]:
    """Endless different sentences of some parts of the world, labels 0 and 1 in turn.

    Args:
      draw: source of randomness.
      parts: which hundredths of all sentences are drawn from.
      judge: "sentiment" or "acceptability", which the label is of.
      plain: which part of them is of the simplest form. A small model that is to learn from
        nothing needs some to start from.
    """
    seen, label = set(), 0
    while True:
        is_plain = draw.chance(plain)
        if judge == "sentiment":
            words = opinion(draw, bool(label), is_plain)
        elif draw.chance(0.5):
            words = opinion(draw, draw.chance(0.5), is_plain)
        else:
            words = event(draw, is_plain)
        # By the sorted words, so that a sentence and its faulty order fall into the same part.
        key = " ".join(sorted(word.text for word in words))
        if zlib.crc32(key.encode()) % 100 not in parts:
            continue
        if judge == "acceptability" and not label:
            words = spoil(draw, words)
        sentence = text(words)
        if sentence not in seen:
            seen.add(sentence)
            yield sentence, label
            label = 1 - label


def lexicon() -> list[str]:
    """Every word that sentences are made of, in a fixed order, each once."""
    groups = [*THINGS, *PEOPLE, *PLACES, *NUMBERED, UNNUMBERED, DESCRIPTIONS, *ADJECTIVES]
    groups += [*OPINIONS[0], *OPINIONS[1], *ACTIONS, *BE, AUXILIARY, NEVER, OFTEN, DEGREES]
    groups += [PREPOSITIONS, TIMES, CONNECTIVES]
    return list(dict.fromkeys(word for group in groups for word in group))
