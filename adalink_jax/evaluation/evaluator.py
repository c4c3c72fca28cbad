"""Evaluates a model on SeqIO tasks, by ranking their labels or by generation.

Metrics and postprocessing are those of the tasks, so numbers mean the same as in T5X.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax.data import EvalExamples
from adalink_jax.distributed import hosts
from adalink_jax.distributed.sharding import (
    check_divisible,
    make_mesh,
    on_mesh,
    place_batch,
    replicated,
)
from adalink_jax.errors import UserError, nearest
from adalink_jax.evaluation.results import Prediction, Results, SplitResult, TaskResult
from adalink_jax.methods.base import Params
from adalink_jax.models import decoding
from adalink_jax.models.t5 import Transformer

MODES = ("rank_classification", "greedy", "beam")

# The beam size of T5's own evaluations.
_BEAM_SIZE = 4

_DEFAULT_SPLITS = ("validation",)


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task that is ready to run: its SeqIO task, labels and their tokens, splits and batches."""

    task: Any
    labels: tuple[str, ...]
    options: np.ndarray  # int32 [C, L]: each label's tokens with EOS, then 0
    splits: Mapping[str, EvalExamples]
    absent_splits: tuple[str, ...]
    batches: Mapping[str, Sequence[Mapping[str, np.ndarray]]]


class Evaluator:
    """Evaluates parameters on the evaluation splits of tasks. It can be called many times.

    Examples are tokenized and put into batches once, in the constructor. The model is compiled
    once per batch shape, at the first call. All processes of a multi-host run must make the same
    calls, and get the same results.

    Rank classification predicts the label with the highest log-likelihood, summed over its tokens
    including EOS and not divided by their number (as in T5X). Of equal labels the first one is
    predicted. Greedy and beam generation predict a text of at most ``lengths["targets"]`` tokens.

    Attributes:
      mode: one of `MODES`.
      identity: {task: {split: identity of its examples}}, JSON-able, without paths.
      absent_splits: {task: evaluation splits that its source lacks}.
    """

    def __init__(
        self,
        model: Transformer,
        tasks: Sequence[str],
        *,
        lengths: Mapping[str, int],
        batch_size: int,
        mode: str = "rank_classification",
        limit: int | None = None,
        routes: Mapping[str, int] | None = None,
        mesh: Mesh | None = None,
        cache_dir: str | None = None,
        in_context: int = 0,
        seed: int = 0,
    ):
        """Tokenizes the splits, or reads their caches.

        Args:
          model: the network with its method.
          tasks: names of SeqIO tasks.
          lengths: {"inputs": T, "targets": L}, in tokens; longer inputs are truncated and counted.
          batch_size: number of rows of a global batch.
          mode: one of `MODES`.
          limit: evaluate only this many examples of each split, the first ones; all if None.
          routes: the route of each task, for methods with several routes; 0 for all if None.
          mesh: all devices, data-parallel, by default.
          cache_dir: folder of cached token arrays, see `adalink_jax.data.cache`.
          in_context: number of solved training examples in front of each input.
          seed: seed of the choice of these examples.

        Raises:
          UserError: an unknown mode or task, a task without labels in rank classification, labels
            that have the same tokens or are longer than the generated texts, a source with none
            of the task's splits, a batch size that the mesh does not divide, a vocabulary that is
            not the model's.
          tasks.DataError: the data cannot be read.
        """
        if mode not in MODES:
            raise UserError(
                f"the evaluation mode is {mode!r}; it takes one of {', '.join(MODES)}"
                f"{nearest(str(mode), MODES)}"
            )
        if not tasks:
            raise UserError("there is no task to evaluate")
        self.mode = mode
        self._mesh = make_mesh() if mesh is None else mesh
        check_divisible(self._mesh, eval_batch_size=batch_size)
        self._tasks = {
            name: _load(
                name,
                mode,
                functools.partial(
                    EvalExamples,
                    lengths=lengths,
                    limit=limit,
                    cache_dir=cache_dir,
                    in_context=in_context,
                    seed=seed,
                ),
                lengths["targets"],
                batch_size,
                _route(routes, name),
            )
            for name in dict.fromkeys(tasks)
        }
        for task in self._tasks.values():
            for examples in task.splits.values():
                model.config.check_vocabulary(examples.vocabulary.vocab_size)
        self._predict = self._compiled(model, lengths["targets"])
        self.absent_splits = {name: task.absent_splits for name, task in self._tasks.items()}
        self.identity = {
            name: {split: examples.identity for split, examples in task.splits.items()}
            for name, task in self._tasks.items()
        }

    def _compiled(self, model: Transformer, max_length: int) -> Callable[..., jax.Array]:
        """Compiles (params, tokens, routes, options, eos_id) → scores [B,C] or tokens [B,L]."""

        def predict(params, tokens, routes, options, eos_id):
            if self.mode == "rank_classification":
                return decoding.score_options(model, params, tokens, options, routes)
            generate = decoding.greedy
            if self.mode == "beam":
                generate = functools.partial(decoding.beam_search, beam_size=_BEAM_SIZE)
            return generate(model, params, tokens, max_length, routes=routes, eos_id=eos_id)

        # Replicated, so that every process can fetch all rows.
        return jax.jit(predict, static_argnums=4, out_shardings=replicated(self._mesh))

    def __call__(self, params: Params) -> Results:
        """Evaluates parameters on all tasks.

        Args:
          params: base and adapter, merged.
        """
        results = {}
        for name, task in self._tasks.items():
            splits = {split: self._split(params, task, split) for split in task.splits}
            results[name] = TaskResult(splits, task.absent_splits)
        return Results(self.mode, results)

    def _split(self, params: Params, task: _Task, split: str) -> SplitResult:
        examples = task.splits[split]
        outputs: list[Any] = [None] * len(examples)
        for indices, output in self._outputs(params, task, split):
            for index, row in zip(indices, output, strict=True):
                if index >= 0:
                    outputs[index] = row
        predictions = tuple(
            self._prediction(task, examples, i, output) for i, output in enumerate(outputs)
        )
        generated = self.mode != "rank_classification"
        invalid = [p.prediction not in task.labels for p in predictions]
        return SplitResult(
            metrics=_metrics(task.task, predictions),
            predictions=predictions,
            truncated=examples.truncated["inputs"],
            invalid=sum(invalid) / len(invalid) if generated and task.labels else None,
        )

    def _outputs(
        self, params: Params, task: _Task, split: str
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields example indices and outputs per batch. A fetch comes after the next batch starts.

        So the device is busy while the host reads the outputs.
        """
        eos_id = task.splits[split].vocabulary.eos_id
        pending = None
        for batch in task.batches[split]:
            hosts.reached(f"the evaluation of {task.task.name}")
            names = ("encoder_input_tokens", "encoder_routes")
            arrays = place_batch({name: batch[name] for name in names}, self._mesh)
            with on_mesh(self._mesh):
                output = self._predict(params, *arrays.values(), task.options, eos_id)
            if pending is not None:
                yield pending[0], np.asarray(pending[1])
            pending = batch["indices"], output
        if pending is not None:
            yield pending[0], np.asarray(pending[1])

    def _prediction(
        self, task: _Task, examples: EvalExamples, index: int, output: np.ndarray
    ) -> Prediction:
        inputs, target = examples.input_texts[index], examples.target_texts[index]
        if self.mode == "rank_classification":
            scores = dict(zip(task.labels, output.tolist(), strict=True))
            return Prediction(inputs, target, task.labels[int(np.argmax(output))], scores)
        return Prediction(inputs, target, _text(examples.vocabulary, output.tolist()))


def _route(routes: Mapping[str, int] | None, name: str) -> int:
    if routes is None:
        return 0
    if name not in routes:
        raise UserError(
            f"the model has no route for task '{name}'; it has routes for {', '.join(routes)}"
            f"{nearest(name, routes)}"
        )
    return routes[name]


def _load(
    name: str,
    mode: str,
    examples_of: Callable[[str, str], EvalExamples],
    longest: int,
    batch_size: int,
    route: int,
) -> _Task:
    """Loads a task.

    Args:
      name: the task's name.
      mode: one of `MODES`.
      examples_of: (task, split) → its examples.
      longest: maximum number of generated tokens.
      batch_size: number of rows of a global batch.
      route: the task's route.
    """
    import seqio

    import tasks

    if name not in seqio.TaskRegistry.names():
        raise UserError(f"unknown task '{name}'{nearest(name, seqio.TaskRegistry.names())}")
    labels = tuple(tasks.LABELS.get(name, ()))
    if mode == "rank_classification" and not labels:
        raise UserError(
            f"task '{name}' has no labels to rank; evaluate it with evaluation_mode = 'greedy'"
        )
    wanted = tasks.EVAL_SPLITS.get(name, _DEFAULT_SPLITS)
    present = tasks.available_splits(name)
    used = [split for split in wanted if split in present]
    if not used:
        raise UserError(
            f"task '{name}' is evaluated on {', '.join(wanted)}, but its source has only "
            f"{', '.join(present) or 'no split'}"
        )
    splits = {split: examples_of(name, split) for split in used}
    vocabulary = splits[used[0]].vocabulary
    if vocabulary.eos_id is None:
        raise UserError(f"the vocabulary of task '{name}' has no token that ends a text (EOS)")
    try:
        options = decoding.encoded_options(labels, vocabulary)
    except UserError as error:
        raise UserError(f"task '{name}': {error}") from error
    if mode != "rank_classification" and options.shape[1] > longest:
        raise UserError(
            f"a label of task '{name}' has {options.shape[1]} tokens, but TASK_FEATURE_LENGTHS "
            f"allows only {longest} generated tokens for targets"
        )
    return _Task(
        task=seqio.TaskRegistry.get(name),
        labels=labels,
        options=options,
        splits=splits,
        absent_splits=tuple(split for split in wanted if split not in present),
        batches={s: tuple(examples.batches(batch_size, route)) for s, examples in splits.items()},
    )


def _text(vocabulary: Any, tokens: list[int]) -> str:
    """Returns the text of generated tokens up to EOS, without padding."""
    if decoding.BROKEN in tokens:
        raise UserError("the logits are not finite: the base or the adapter is damaged")
    end = tokens.index(vocabulary.eos_id) if vocabulary.eos_id in tokens else len(tokens)
    return vocabulary.decode([token for token in tokens[:end] if token != vocabulary.pad_id])


def _metrics(task: Any, predictions: Sequence[Prediction]) -> dict[str, float]:
    """Returns the task's metrics. Those that are not numbers (histograms, texts) are left out."""
    targets, outputs = [], []
    for prediction in predictions:
        example = {
            "inputs_pretokenized": prediction.inputs,
            "targets_pretokenized": prediction.target,
        }
        targets.append(task.postprocess_fn(prediction.target, example=example, is_target=True))
        outputs.append(task.postprocess_fn(prediction.prediction, example=example, is_target=False))
    metrics = {}
    for metric_fn in task.predict_metric_fns:
        for name, value in metric_fn(targets, outputs).items():
            value = getattr(value, "value", value)  # SeqIO's Scalar
            if isinstance(value, int | float | np.number):
                metrics[name] = float(value)
    return metrics
