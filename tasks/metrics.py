"""T5's metrics for GLUE as SeqIO metric functions, in percent.

Every function takes `targets` and `predictions`, two sequences of the same length N, and returns a
dictionary of floats. Names and scaling are those of T5 (`t5/evaluation/metrics.py`), so results can
be compared with published ones. If T5 would report nan (a constant prediction has no correlation),
these report 0.0.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import scipy.stats
import sklearn.metrics


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
    check_lengths(targets, predictions)
    return {
        "matthews_corrcoef": 100 * float(sklearn.metrics.matthews_corrcoef(targets, predictions))
    }


def f1(targets, predictions) -> dict[str, float]:
    """Returns F1 of class 1 for targets 0 and 1, in percent.

    A prediction other than 0 or 1 counts as the wrong class (T5's `f1_score_with_invalid`).
    """
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
    return {"pearson_corrcoef": _correlation(scipy.stats.pearsonr, targets, predictions)}


def spearman_corrcoef(targets, predictions) -> dict[str, float]:
    """Returns the Spearman rank correlation of scores, in percent; 0 if a side is constant."""
    return {"spearman_corrcoef": _correlation(scipy.stats.spearmanr, targets, predictions)}
