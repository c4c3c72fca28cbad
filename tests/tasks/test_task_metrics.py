"""Metrics against hand-computed numbers and closed formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import metrics
from tasks.glue import SCORES, score_value
from tasks.registry import label_id

# Counts (true positive, false positive, false negative, true negative) = (3, 1, 2, 4).
TARGETS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def test_by_hand():
    matthews = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert metrics.matthews_corrcoef(TARGETS, PREDICTIONS) == {
        "matthews_corrcoef": pytest.approx(100 * matthews)
    }
    assert metrics.accuracy(TARGETS, PREDICTIONS) == {"accuracy": pytest.approx(70)}
    assert metrics.f1(TARGETS, PREDICTIONS) == {"f1": pytest.approx(100 * 2 * 3 / (2 * 3 + 1 + 2))}
    assert metrics.sequence_accuracy(["a b", "c"], ["a b", "C"]) == {"sequence_accuracy": 50}


def test_correlations_by_hand():
    # Deviations (-1.5, -.5, .5, 1.5) and (-3, -1, -1, 5): 12 / sqrt(5 · 36).
    targets, predictions = [0.0, 1.0, 2.0, 3.0], [0.0, 2.0, 2.0, 8.0]
    pearson = metrics.pearson_corrcoef(targets, predictions)["pearson_corrcoef"]
    assert pearson == pytest.approx(100 * 12 / math.sqrt(5 * 36))
    # Ranks (1, 2, 3, 4) and (1, 2.5, 2.5, 4): 4.5 / sqrt(5 · 4.5).
    spearman = metrics.spearman_corrcoef(targets, predictions)["spearman_corrcoef"]
    assert spearman == pytest.approx(100 * 4.5 / math.sqrt(5 * 4.5))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-1, 1)), min_size=1, max_size=30))
def test_f1_counts_invalid_predictions_as_wrong(pairs):
    targets, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    given_predictions = predictions.copy()
    true_positive = sum((targets == 1) & (predictions == 1))
    # Invalid for a 0 is a false positive, invalid for a 1 a false negative.
    errors = sum(targets != predictions)
    expected = 200 * true_positive / (2 * true_positive + errors) if true_positive else 0
    assert metrics.f1(targets, predictions)["f1"] == pytest.approx(expected)
    assert (predictions == given_predictions).all()  # the caller's array is left alone


def test_constant_predictions_give_zero_not_nan():
    assert metrics.matthews_corrcoef([0, 1, 1], [1, 1, 1])["matthews_corrcoef"] == 0
    assert metrics.f1([0, 1, 1], [0, 0, 0])["f1"] == 0
    for metric in (metrics.pearson_corrcoef, metrics.spearman_corrcoef):
        assert list(metric([0.0, 1.0, 5.0], [-1.0, -1.0, -1.0]).values()) == [0.0]
        assert list(metric([2.0], [3.0]).values()) == [0.0]


def test_matthews_keeps_invalid_predictions_apart():
    # The multi-class formula (Gorodkin's R_K) from the confusion matrix.
    targets, predictions = np.array([0, 0, 1, 1, 1]), np.array([0, -1, 1, 1, -1])
    classes = (-1, 0, 1)
    t = np.array([sum(targets == k) for k in classes])
    p = np.array([sum(predictions == k) for k in classes])
    n, correct = 5, sum(targets == predictions)
    expected = (correct * n - t @ p) / math.sqrt((n**2 - p @ p) * (n**2 - t @ t))
    got = metrics.matthews_corrcoef(targets, predictions)["matthews_corrcoef"]
    assert got == pytest.approx(100 * expected)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        metrics.accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="at least one"):
        metrics.accuracy([], [])


def test_postprocessing_of_generated_texts():
    labels = ("entailment", "neutral", "contradiction")
    assert [label_id(text, labels=labels) for text in labels] == [0, 1, 2]
    assert label_id("entail", labels=labels, example={}, is_target=False) == -1
    assert [score_value(text) for text in ("3.8", "maybe", "nan", "inf", "")] == [
        3.8, -1, -1, -1, -1,
    ]  # fmt: skip
    assert len(SCORES) == 26 and [score_value(text) for text in SCORES] == pytest.approx(
        np.linspace(0, 5, 26)
    )
