"""A task's metrics and postprocessing, called as SeqIO calls them."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.errors import UserError

# What metrics may need beside predictions; the model computes it only for tasks that do.
TARGET_SCORES, OUTPUT_SCORES = "target_scores", "output_scores"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the model says of a split, by example.

    Attributes:
      texts: the predicted texts.
      tokens: their tokens with EOS, 0 on padding; int32 [N, L].
      target_scores: log-likelihood of each target, float [N]; None where no metric needs it.
      output_scores: the same of each predicted text.
    """

    texts: Sequence[str]
    tokens: np.ndarray
    target_scores: np.ndarray | None = None
    output_scores: np.ndarray | None = None


class TaskMetrics:
    """The metrics of one SeqIO task.

    SeqIO knows functions of (targets, predictions), of (targets, scores) with the log-likelihoods
    of the targets, of (targets, predictions, aux_values), and the objects of `metric_objs`. The
    `aux_values` are, as in T5X, ``{"scores": …}``: here the log-likelihoods of the predictions.

    Attributes:
      needed: which of `TARGET_SCORES` and `OUTPUT_SCORES` the metrics need.
      reads_examples: whether they may read features of an example beyond its texts and references.
    """

    def __init__(self, task: Any):
        """Reads what a SeqIO task has.

        Raises:
          UserError: a metric that cannot be computed here.
        """
        import seqio

        self._task = task
        try:
            functions = task.metric_fns
        except ValueError as error:  # SeqIO says which arguments a function has, and may have.
            raise UserError(f"task '{task.name}': {error}") from error
        # SeqIO puts the functions, as objects, behind the objects.
        self._objects = task.metric_objs[: len(task.metric_objs) - len(functions)]
        kinds = seqio.metrics.ModelOutputType
        types = {metric.model_output_type for metric in self._objects}
        if kinds.SCORE_WITH_INTERMEDIATES in types:
            raise UserError(
                f"task '{task.name}': a metric needs the network's intermediate values, which are "
                "not kept; leave it out of metric_objs"
            )
        self.needed = frozenset(
            [TARGET_SCORES] * bool(task.score_metric_fns or kinds.SCORE in types)
            + [OUTPUT_SCORES]
            * bool(task.predict_with_aux_metric_fns or kinds.PREDICTION_WITH_AUX in types)
        )
        step = task.postprocessor
        while hasattr(step, "func"):  # functools.partial
            step = step.func
        self.reads_examples = bool(self._objects) or _reads_examples(step)

    def postprocessed(
        self, texts: Sequence[str], examples: Sequence[Mapping[str, Any]], is_target: bool
    ) -> list[Any]:
        """Returns what the task's `postprocess_fn` makes of targets or predictions."""
        return [
            self._task.postprocess_fn(text, example=example, is_target=is_target)
            for text, example in zip(texts, examples, strict=True)
        ]

    def __call__(
        self, targets: Sequence[Any], outputs: Outputs, examples: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], tuple[str, ...]]:
        """Computes all metrics of a split.

        Args:
          targets: the postprocessed targets.
          outputs: what the model says.
          examples: the features of each example.

        Returns:
          The metrics that are numbers, and the names of others (histograms, texts).

        Raises:
          UserError: two metrics have one name.
        """
        numbers, others = {}, []
        for values in self._values(targets, outputs, examples):
            for name, value in values.items():
                if name in numbers or name in others:
                    raise UserError(f"task '{self._task.name}' has two metrics named '{name}'")
                value = np.asarray(getattr(value, "value", value))  # SeqIO's Scalar
                if value.ndim == 0 and np.issubdtype(value.dtype, np.number):
                    numbers[name] = float(value)
                else:
                    others.append(name)
        return numbers, tuple(others)

    def _values(self, targets, outputs: Outputs, examples) -> list[Mapping[str, Any]]:
        import seqio

        task, found = self._task, []
        aux = {"scores": outputs.output_scores}
        if task.predict_metric_fns or task.predict_with_aux_metric_fns:
            predictions = self.postprocessed(outputs.texts, examples, is_target=False)
            for function in task.predict_metric_fns:
                found.append(function(targets=targets, predictions=predictions))
            for function in task.predict_with_aux_metric_fns:
                found.append(function(targets=targets, predictions=predictions, aux_values=aux))
        for function in task.score_metric_fns:
            found.append(function(targets=targets, scores=outputs.target_scores))
        kinds = seqio.metrics.ModelOutputType
        given = {
            kinds.PREDICTION: outputs.tokens,
            kinds.SCORE: outputs.target_scores,
            kinds.PREDICTION_WITH_AUX: (outputs.tokens, aux),
        }
        for metric in self._objects:
            made = metric.from_model_output(
                examples, given[metric.model_output_type], task.output_features
            )
            if isinstance(made, seqio.metrics.CollectingMetric):
                found.append(made.actual_compute(examples, task.output_features)[0])
            else:
                found.append(made.compute())
        return found


def _reads_examples(step: Any) -> bool:
    """Returns whether a postprocessor may read more of an example than its texts and references.

    One of this project's does so where it takes `example` without a default.
    """
    if step is None:
        return False
    if getattr(step, "__module__", "").split(".")[0] != "tasks":
        return True
    taken = inspect.signature(step).parameters.get("example")
    return taken is not None and taken.default is taken.empty
