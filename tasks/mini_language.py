"""A small English: its words, its sentences, and judgments about them.

There are two judgments of a sentence. *Sentiment*: an opinion is favorable or not. Negation
reverses a word's polarity, and of two clauses the one that the author agrees with decides.
*Acceptability*: a sentence is correct English or has one fault: two words in the wrong order, a
wrong agreement of number, or a missing verb. Both depend on how words relate: neither the length
nor any single word gives the label away.

All random choices use `Draw`, which gives the same sequence for a seed on every platform and
version.
"""

import dataclasses
import random
import zlib
from collections.abc import Container, Iterator, Sequence

# Words in pairs (singular, plural).
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

    It uses only `random.random`, the only sequence that Python promises not to change.

    Args:
      seed: any int.
    """

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """Returns an int from 0 to n - 1."""
        return int(self._random() * n)

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence):
        """Returns one of the options."""
        return options[int(self._random() * len(options))]


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A word in its role.

    Attributes:
      text: the word.
      role: its part in the sentence, used to make faults.
      other: the form for the other number, if the word must agree.
    """

    text: str
    role: str
    other: str = ""


def _agreeing(forms: tuple[str, str], plural: bool, role: str) -> Word:
    return Word(forms[plural], role, forms[not plural])


def _noun_phrase(draw: Draw, nouns: Sequence[tuple[str, str]]) -> tuple[list[Word], bool]:
    """Returns a determiner, perhaps a description, and a noun; and whether it is plural."""
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
    """Returns a favorable or unfavorable clause; some express it by negating the opposite."""
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
    """Returns a sentence of one or two clauses that is favorable or unfavorable overall.

    In "A and B", both clauses agree. In "A but B" and "although A , B", the author agrees with B,
    and A says the opposite.

    Args:
      draw: source of randomness.
      favorable: what the sentence should express.
      plain: whether to use only one clause, without negation.

    Returns:
      The words with their roles, including the full stop.
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
    """Returns a sentence that tells who does what.

    Args:
      draw: source of randomness.
      plain: whether to leave out places. A place between subject and verb can make agreement
        harder to see.

    Returns:
      The words with their roles, including the full stop.
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


# Neighbors that can never be exchanged in a correct sentence.
_FIXED_ORDER = frozenset(
    {
        ("determiner", "noun"), ("determiner", "description"), ("description", "noun"),
        ("be", "not"), ("auxiliary", "not"), ("be", "degree"), ("degree", "adjective"),
        ("be", "adjective"), ("verb", "determiner"), ("preposition", "determiner"),
    }
)  # fmt: skip


def spoil(draw: Draw, words: Sequence[Word]) -> list[Word]:
    """Returns the sentence with one fault.

    There are three kinds with equal probability: an agreeing word takes the other number, two
    neighbors are exchanged, or a verb is missing.
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
    """Joins the words with single spaces."""
    return " ".join(word.text for word in words)


def sentences(
    draw: Draw, parts: Container[int], judge: str, plain: float = 0
) -> Iterator[tuple[str, int]]:
    """Yields distinct sentences from some parts of the world, with labels 0 and 1 in turn.

    Args:
      draw: source of randomness.
      parts: which hundredths of all sentences to draw from.
      judge: what the label is about, "sentiment" or "acceptability".
      plain: the share of sentences in the simplest form. A small model that starts from random
        weights needs some of them.
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
        # Hash the sorted words, so that a sentence and its reordered form are in the same part.
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
    """Returns every word of the sentences, in a fixed order, each once."""
    groups = [*THINGS, *PEOPLE, *PLACES, *NUMBERED, UNNUMBERED, DESCRIPTIONS, *ADJECTIVES]
    groups += [*OPINIONS[0], *OPINIONS[1], *ACTIONS, *BE, AUXILIARY, NEVER, OFTEN, DEGREES]
    groups += [PREPOSITIONS, TIMES, CONNECTIVES]
    return list(dict.fromkeys(word for group in groups for word in group))
