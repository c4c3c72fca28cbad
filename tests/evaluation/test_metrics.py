"""Metrics and postprocessing as SeqIO calls them."""

import numpy as np
import pytest
import seqio

from adalink_jax.errors import UserError
from adalink_jax.evaluation.metrics import OUTPUT_SCORES, TARGET_SCORES, Outputs, TaskMetrics

FEATURES = {name: seqio.Feature(seqio.ByteVocabulary()) for name in ("inputs", "targets")}
SOURCE = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
EXAMPLES = [
    {"inputs_pretokenized": b"a?", "targets_pretokenized": b"x", "answers": np.array([b"x", b"y"])},
    {"inputs_pretokenized": b"b?", "targets_pretokenized": b"z", "answers": np.array([b"z"])},
]
OUTPUTS = Outputs(
    texts=["y", "w"],
    tokens=np.array([[124, 1], [122, 1]]),
    target_scores=np.array([-1.0, -3.0]),
    output_scores=np.array([-0.5, -0.25]),
)


def metrics_of(*functions, **given):
    task = seqio.Task("some", SOURCE, FEATURES, metric_fns=list(functions), **given)
    return TaskMetrics(task)


def values_of(metrics):
    targets = metrics.postprocessed(["x", "z"], EXAMPLES, is_target=True)
    return metrics(targets, OUTPUTS, EXAMPLES)


def any_answer(text, example, is_target):
    return [answer.decode() for answer in example["answers"]] if is_target else text


def em(targets, predictions):
    right = [one in some for some, one in zip(targets, predictions, strict=True)]
    return {"em": 100 * sum(right) / len(right)}


def mean_score(targets, scores):
    return {"mean_score": np.mean(scores)}


def confidence(targets, predictions, aux_values):
    return {"confidence": seqio.metrics.Scalar(float(np.mean(aux_values["scores"])))}


def drawing(targets, predictions):
    return {"drawing": seqio.metrics.Text("---"), "count": len(targets)}


def test_postprocessors_get_the_example_and_metrics_what_they_take():
    metrics = metrics_of(em, mean_score, confidence, drawing, postprocess_fn=any_answer)
    assert metrics.needed == {TARGET_SCORES, OUTPUT_SCORES} and metrics.reads_examples
    numbers, left_out = values_of(metrics)
    assert numbers == {"em": 50.0, "mean_score": -2.0, "confidence": -0.375, "count": 2.0}
    assert left_out == ("drawing",)


def test_nothing_is_computed_that_no_metric_needs():
    plain = metrics_of(em)
    assert plain.needed == set() and not plain.reads_examples
    import tasks

    ours = TaskMetrics(seqio.TaskRegistry.get("mini_stsb"))
    assert ours.needed == set() and not ours.reads_examples and tasks.LABELS["mini_stsb"]


@pytest.mark.parametrize("function", [em, mean_score, confidence])
def test_metric_objects_are_computed_as_functions_are(function):
    kind = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(function)
    metrics = metrics_of(metric_objs=[kind.empty()])
    assert metrics.reads_examples
    (number,) = values_of(metrics)[0].values()
    targets = ["x", "z"]
    expected = {
        em: em(targets, ["y", "w"])["em"], mean_score: -2.0, confidence: -0.375
    }[function]  # fmt: skip
    assert number == pytest.approx(expected)


def test_what_cannot_be_computed_is_said_before_anything_runs():
    def strange(golds, guesses):
        return {}

    with pytest.raises(UserError, match="task 'some': .*golds"):
        metrics_of(strange)
    kind = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(em)
    deep = kind.empty().replace(
        model_output_type=seqio.metrics.ModelOutputType.SCORE_WITH_INTERMEDIATES
    )
    with pytest.raises(UserError, match="intermediate values"):
        metrics_of(metric_objs=[deep])
    with pytest.raises(UserError, match="two metrics named 'em'"):
        values_of(metrics_of(em, lambda targets, predictions: {"em": 1.0}))
