"""Metrics of answers to questions on images: soft accuracy, ANLS and exact match.

Every function takes `targets`, N lists of answers, and `predictions`, N texts, and returns percent.
Which metric a data set is published with is said in `tasks.images`.
"""

import functools
import math
import re
from collections.abc import Sequence

from tasks.caption_metrics import check_references
from tasks.errors import DataError

# vqaEval.py's rules. A word that lacks one of these apostrophes gets it.
_CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form
    for form in """
        ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
        hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
        mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
        she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
        someone'd've someone'll someone's something'd something'd've something'll that's there'd
        there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
        we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
        who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
        y'all'd've you'd you'd've you'll you're you've
    """.split()
    for i, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # The wrong way round there, too.
_COUNTED = "zero one two three four five six seven eight nine ten".split()
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
# vqaEval.py means a period that has no digit before and none behind. But it has "(?!<=\d)", which
# is always true, so only the digit behind counts: "1.a" becomes "1a".
_PERIOD = re.compile(r"\.(?!\d)")
# It also hands re.UNICODE to `sub` as the number of periods to replace.
_MOST_PERIODS = int(re.UNICODE)

# Below this many answers of a question, no prediction can get all points.
_FEWEST_ANSWERS = 4
_ANLS_THRESHOLD = 0.5
_TOLERANCE = 0.05


def soft_accuracy(targets, predictions) -> dict[str, float]:
    """Returns the soft accuracy of VQA, as the official vqaEval.py computes it.

    The score of an answer is the mean over all sets of annotators that leave one out of
    min(1, matches / 3). With ten annotators, 0, 1, 2, 3 and 4 matches give 0, 30, 60, 90 and 100 %.
    Answers are normalized (`normalized`) where the annotators disagree. Where all agree, neither
    side is, so a prediction must have the same letters as they. Words are not lemmatized, which
    would give some points more on OK-VQA.

    Raises:
      DataError: an example with fewer than four answers.
    """
    check_references(targets, predictions)
    scores = [
        _soft(number, answers, prediction)
        for number, (answers, prediction) in enumerate(zip(targets, predictions, strict=True))
    ]
    return {"vqa_accuracy": 100 * sum(scores) / len(scores)}


def _soft(number: int, answers: Sequence[str], prediction: str) -> float:
    if len(answers) < _FEWEST_ANSWERS:
        raise DataError(
            f"example {number} has {len(answers)} answer(s); soft accuracy needs those of "
            f"{_FEWEST_ANSWERS} annotators or more"
        )
    answers, prediction = [_trimmed(one) for one in answers], _trimmed(prediction)
    if len(set(answers)) > 1:
        answers, prediction = [normalized(one) for one in answers], normalized(prediction)
    matches = answers.count(prediction)
    left_out = (matches - (answer == prediction) for answer in answers)
    return sum(min(1.0, n / 3) for n in left_out) / len(answers)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=2**16)
def normalized(text: str) -> str:
    """Returns an answer as vqaEval.py compares it.

    Punctuation is taken out, or becomes a space where it stands between letters; then lower case,
    no articles, digits for the words "zero" to "ten", and apostrophes in contractions.
    """
    found = text
    for mark in _PUNCTUATION:
        gone = f"{mark} " in text or f" {mark}" in text or _COMMA.search(text)
        found = found.replace(mark, "" if gone else " ")
    found = _PERIOD.sub("", found, count=_MOST_PERIODS)
    words = (_NUMBERS.get(word, word) for word in found.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def anls(targets, predictions) -> dict[str, float]:
    """Returns the average normalized Levenshtein similarity (ST-VQA, DocVQA), in percent.

    An answer's similarity is 1 minus its edit distance divided by the length of the longer text; 0
    where that distance is 0.5 or more. The best of all answers counts. Case and the amount of space
    make no difference.
    """
    check_references(targets, predictions)
    best = [
        max(_similarity(_folded(answer), _folded(prediction)) for answer in answers)
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {"anls": 100 * sum(best) / len(best)}


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    distance = _edits(first, second) / longest if longest else 0.0
    return 1 - distance if distance < _ANLS_THRESHOLD else 0.0


def _edits(first: str, second: str) -> int:
    """Returns the number of characters to insert, delete and replace."""
    row = list(range(len(second) + 1))
    for count, character in enumerate(first, 1):
        before, row = row, [count]
        for i, other in enumerate(second):
            row.append(min(before[i] + (character != other), before[i + 1] + 1, row[i] + 1))
    return row[-1]


def exact_match(targets, predictions) -> dict[str, float]:
    """Returns the share of predictions that are one of the answers, but for case and space."""
    check_references(targets, predictions)
    right = [
        _folded(prediction) in map(_folded, answers)
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {"exact_match": 100 * sum(right) / len(right)}


def relaxed_accuracy(targets, predictions) -> dict[str, float]:
    """Returns the same, but a number may be off by 5 % of the answer (ChartQA)."""
    check_references(targets, predictions)
    right = [
        any(_near(_folded(answer), _folded(prediction)) for answer in answers)
        for answers, prediction in zip(targets, predictions, strict=True)
    ]
    return {"relaxed_accuracy": 100 * sum(right) / len(right)}


def _near(answer: str, prediction: str) -> bool:
    numbers = _number(answer), _number(prediction)
    if numbers[0] is None or numbers[1] is None or not numbers[0]:
        return answer == prediction
    return abs(numbers[1] - numbers[0]) <= _TOLERANCE * abs(numbers[0])


def _number(text: str) -> float | None:
    """Returns a finite number, or a percentage as a share; None for other texts."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
