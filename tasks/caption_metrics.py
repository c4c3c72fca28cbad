"""Metrics of texts with several references: CIDEr-D, BLEU-4 and ROUGE-L, as coco-caption's.

Every function takes `targets`, N lists of references, and `predictions`, N texts. It returns scores
times 100, as papers print them. Tokens are those of `tasks.ptb`. METEOR and SPICE are left out:
they exist as Java programs only.

"CIDEr" in papers on captions is CIDEr-D (Vedantam et al. 2015, section 5). It weighs n-grams by how
many of the scored images have them in a reference. So scores of a part of a split, and of another
split, are on another scale.
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence

from tasks import ptb
from tasks.errors import DataError
from tasks.metrics import check_lengths

Tokens = Sequence[str]
Counts = collections.Counter[tuple[str, ...]]

_ORDERS = range(1, 5)  # n-grams of one to four tokens
_SIGMA = 6.0  # of CIDEr-D's penalty for another length, in tokens
_TINY, _SMALL = 1e-15, 1e-9  # coco-caption's, where a corpus has no n-gram in common
_BETA = 1.2  # ROUGE-L's weight of recall


def check_references(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> None:
    """Raises an error unless every prediction has at least one reference.

    Raises:
      ValueError: another number of predictions, or none.
      DataError: an example without references.
    """
    check_lengths(targets, predictions)
    for number, references in enumerate(targets):
        if not len(references):
            raise DataError(f"example {number} has no reference to score its prediction by")


def cider(targets, predictions) -> dict[str, float]:
    """Returns CIDEr-D times 100: about 110 to 150 for good captions of COCO.

    With a single image all its n-grams are in every image, so the score is 0.
    """
    return {"cider": 100 * _mean(cider_d(*_tokenized(targets, predictions)))}


def bleu4(targets, predictions) -> dict[str, float]:
    """Returns the corpus's BLEU-4 in percent, with the length of the closest reference."""
    return {"bleu4": 100 * bleu(*_tokenized(targets, predictions))}


def rouge_l(targets, predictions) -> dict[str, float]:
    """Returns the mean ROUGE-L in percent."""
    scores = itertools.starmap(_rouge, zip(*_tokenized(targets, predictions), strict=True))
    return {"rouge_l": 100 * _mean(list(scores))}


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def _tokenized(targets, predictions) -> tuple[Sequence[Sequence[Tokens]], Sequence[Tokens]]:
    check_references(targets, predictions)
    references = [[ptb.tokens(text) for text in texts] for texts in targets]
    return references, [ptb.tokens(text) for text in predictions]


def cider_d(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> list[float]:
    """Returns the CIDEr-D of each candidate, where 1 is 100 in `cider`.

    A candidate's score is the mean over its references and over n of the cosine between vectors of
    tf-idf, with the candidate's weights cut to the reference's, times a Gaussian of the difference
    in length. The factor of ten is the definition's.

    Args:
      references: of each candidate, the tokens of its references.
      candidates: the tokens of each candidate.
    """
    counted = [[_ngrams(one) for one in some] for some in references]
    frequency = collections.Counter(ngram for some in counted for ngram in set().union(*some))
    images = math.log(len(counted))

    def weights(counts: Counts) -> Counts:
        return collections.Counter(
            {
                ngram: count * (images - math.log(max(1, frequency[ngram])))
                for ngram, count in counts.items()
            }
        )

    scores = []
    for candidate, some in zip(candidates, counted, strict=True):
        counts = _ngrams(candidate)
        weighted = weights(counts)
        similarities = [
            _similarity(weighted, weights(one), _bigrams(counts) - _bigrams(one)) for one in some
        ]
        scores.append(10 * _mean(similarities))
    return scores


def _ngrams(tokens: Tokens) -> Counts:
    return collections.Counter(
        tuple(tokens[i : i + n]) for n in _ORDERS for i in range(len(tokens) - n + 1)
    )


def _bigrams(counts: Counts) -> int:
    """Returns the length that the public scorer compares: the number of bigrams."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _similarity(candidate: Counts, reference: Counts, longer: int) -> float:
    products, norms, others = ({n: 0.0 for n in _ORDERS} for _ in range(3))
    for ngram, weight in candidate.items():
        norms[len(ngram)] += weight**2
        if ngram in reference:
            products[len(ngram)] += min(weight, reference[ngram]) * reference[ngram]
    for ngram, weight in reference.items():
        others[len(ngram)] += weight**2
    cosines = [
        products[n] / math.sqrt(norms[n] * others[n]) if norms[n] and others[n] else 0.0
        for n in _ORDERS
    ]
    return _mean(cosines) * math.exp(-(longer**2) / (2 * _SIGMA**2))


def bleu(references: Sequence[Sequence[Tokens]], candidates: Sequence[Tokens]) -> float:
    """Returns the corpus's BLEU-4 in [0, 1].

    Matches are added up over the corpus, each cut to its largest count in one reference. The
    brevity penalty compares with the reference of the closest length, of two the shorter one.

    Args:
      references: of each candidate, the tokens of its references.
      candidates: the tokens of each candidate.
    """
    right, all_, length, closest = dict.fromkeys(_ORDERS, 0), dict.fromkeys(_ORDERS, 0), 0, 0
    for candidate, some in zip(candidates, references, strict=True):
        length += len(candidate)
        closest += min((abs(len(one) - len(candidate)), len(one)) for one in some)[1]
        most: Counts = collections.Counter()
        for one in some:
            most |= _ngrams(one)
        for ngram, count in (_ngrams(candidate) & most).items():
            right[len(ngram)] += count
        for n in _ORDERS:
            all_[n] += max(0, len(candidate) - n + 1)
    precisions = math.prod((right[n] + _TINY) / (all_[n] + _SMALL) for n in _ORDERS)
    longer = (closest + _SMALL) / (length + _TINY)
    return precisions ** (1 / len(_ORDERS)) * math.exp(min(0.0, 1 - longer))


def _rouge(references: Sequence[Tokens], candidate: Tokens) -> float:
    # The public scorer counts a text without tokens as one empty token.
    candidate = candidate or [""]
    shared = [_common(one or [""], candidate) for one in references]
    precision = max(shared) / len(candidate)
    recall = max(n / len(one or [""]) for n, one in zip(shared, references, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(first: Tokens, second: Tokens) -> int:
    """Returns the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for token in first:
        before = row
        row = [0]
        for i, other in enumerate(second):
            row.append(before[i] + 1 if token == other else max(before[i + 1], row[i]))
    return row[-1]


#: The metrics of captions, for `metric_fns`.
CAPTION_METRICS: tuple[Callable[..., dict[str, float]], ...] = (cider, bleu4, rouge_l)
