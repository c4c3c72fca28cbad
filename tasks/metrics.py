"""T5's metrics for GLUE and SuperGLUE as SeqIO metric functions, in percent.

Every function takes `targets` and `predictions`, two sequences of the same length N, and returns a
dictionary of floats. Names and scaling are those of T5 (`t5/evaluation/metrics.py`), so results can
be compared with published ones. If T5 would report nan (a constant prediction has no correlation),
these report 0.0.

Scikit-learn and SciPy's statistics take a second to import, and are imported by what needs them.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np


def check_lengths(targets: Sequence, predictions: Sequence) -> None:
    """Raises `ValueError` unless there are as many predictions as targets, and some."""
    if len(targets) != len(predictions) or not len(targets):
        raise ValueError(
            f"metrics need as many predictions as targets and at least one of them, "
            f"got {len(predictions)} predictions for {len(targets)} targets"
        )


def accuracy(targets, predictions) -> dict[str, float]:
    """Returns the percentage of predictions equal to their target. Works on ids and strings."""
    check_lengths(targets, predictions)
    return {
        "accuracy": 100
        * float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))
    }


def sequence_accuracy(targets, predictions) -> dict[str, float]:
    """Returns the percentage of generated texts equal to the reference text."""
    return {"sequence_accuracy": accuracy(targets, predictions)["accuracy"]}


def matthews_corrcoef(targets, predictions) -> dict[str, float]:
    """Returns the Matthews correlation of class ids, in percent; 0 for constant predictions.

    Invalid predictions (-1) are a class of their own, as in T5.
    """
    import sklearn.metrics

    check_lengths(targets, predictions)
    return {
        "matthews_corrcoef": 100 * float(sklearn.metrics.matthews_corrcoef(targets, predictions))
    }


def f1(targets, predictions) -> dict[str, float]:
    """Returns F1 of class 1 for targets 0 and 1, in percent.

    A prediction other than 0 or 1 counts as the wrong class (T5's `f1_score_with_invalid`).
    """
    import sklearn.metrics

    check_lengths(targets, predictions)
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    valid = (predictions == 0) | (predictions == 1)
    predictions = np.where(valid, predictions, 1 - targets)
    # scikit-learn gives `zero_division` the type of its default, "warn".
    score = sklearn.metrics.f1_score(targets, predictions, zero_division=cast(Any, 0))
    return {"f1": 100 * float(score)}


def _correlation(statistic, targets, predictions) -> float:
    check_lengths(targets, predictions)
    targets, predictions = np.asarray(targets, float), np.asarray(predictions, float)
    if np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return 100 * float(statistic(targets, predictions)[0])


def pearson_corrcoef(targets, predictions) -> dict[str, float]:
    """Returns the Pearson correlation of scores, in percent; 0 if either side is constant."""
    import scipy.stats

    return {"pearson_corrcoef": _correlation(scipy.stats.pearsonr, targets, predictions)}


def spearman_corrcoef(targets, predictions) -> dict[str, float]:
    """Returns the Spearman rank correlation of scores, in percent; 0 if a side is constant."""
    import scipy.stats

    return {"spearman_corrcoef": _correlation(scipy.stats.spearmanr, targets, predictions)}


def mean_3class_f1(targets, predictions) -> dict[str, float]:
    """Returns the mean of the F1 of classes 0, 1 and 2, in percent; other predictions are wrong."""
    import sklearn.metrics

    check_lengths(targets, predictions)
    score = sklearn.metrics.f1_score(
        targets, predictions, labels=range(3), average="macro", zero_division=cast(Any, 0)
    )
    return {"mean_3class_f1": 100 * float(score)}


# Metrics of examples that belong together: several answers to one question, say. Targets are then
# {"value": …, "group": …}, predictions {"value": …}, as in T5.


def by_group(targets, predictions) -> dict[Any, tuple[list, list]]:
    """Returns the values of targets and of predictions by the targets' group, in their order."""
    check_lengths(targets, predictions)
    groups: dict[Any, tuple[list, list]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        values = groups.setdefault(target["group"], ([], []))
        values[0].append(target["value"])
        values[1].append(prediction["value"])
    return groups


def mean_over_groups(metric: Callable, targets, predictions) -> dict[str, float]:
    """Returns the means over groups of a metric of the values of each."""
    each = [metric(*values) for values in by_group(targets, predictions).values()]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def f1_of_values(targets, predictions) -> dict[str, float]:
    """Returns `f1` over all values, whatever their group (MultiRC's F1a)."""
    return f1([one["value"] for one in targets], [one["value"] for one in predictions])


def exact_match_of_groups(targets, predictions) -> dict[str, float]:
    """Returns the percentage of groups in which every value is right (MultiRC's EM)."""
    each = [wanted == given for wanted, given in by_group(targets, predictions).values()]
    return {"exact_match": 100 * float(np.mean(each))}


def squad_of_groups(targets, predictions) -> dict[str, float]:
    """Returns SQuAD's exact match and F1 of texts, in percent; of each group, the first counts.

    Case, punctuation, articles and spaces do not count. Of several right answers, the nearest does.

    Args:
      targets: the value is the list of all right answers.
      predictions: the value is a text.
    """
    matches, overlaps = [], []
    for answers, given in by_group(targets, predictions).values():
        prediction = _plain(given[0])
        right = [_plain(answer) for answer in answers[0]]
        matches.append(prediction in right)
        overlaps.append(max(_overlap(answer, prediction) for answer in right))
    return {"em": 100 * float(np.mean(matches)), "f1": 100 * float(np.mean(overlaps))}


def _plain(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(target: str, prediction: str) -> float:
    """Returns the F1 of a text's words, each counted as often as it occurs; 0 for empty texts."""
    words, others = prediction.split(), target.split()
    same = (collections.Counter(words) & collections.Counter(others)).total()
    return 2 * same / (len(words) + len(others)) if same else 0.0
