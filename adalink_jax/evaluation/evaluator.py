"""Evaluates a model on SeqIO tasks, by ranking their labels or by generation.

Metrics and postprocessing are those of the tasks, so numbers mean the same as in T5X.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from adalink_jax import progress
from adalink_jax.data import HELD_OUT, EvalExamples
from adalink_jax.data.images import Pictures
from adalink_jax.distributed import hosts
from adalink_jax.distributed.sharding import (
    check_divisible,
    make_mesh,
    on_mesh,
    place_batch,
    replicated,
)
from adalink_jax.errors import UserError, nearest
from adalink_jax.evaluation.metrics import OUTPUT_SCORES, TARGET_SCORES, Outputs, TaskMetrics
from adalink_jax.evaluation.results import Prediction, Results, SplitResult, TaskResult
from adalink_jax.methods.base import Params
from adalink_jax.models import decoding
from adalink_jax.models.inputs import to_decode
from adalink_jax.models.t5 import Transformer
from adalink_jax.notices import load_tasks

MODES = ("rank_classification", "greedy", "beam")

# The beam size of T5's own evaluations.
BEAM_SIZE = 4

_DEFAULT_SPLITS = ("validation",)

_BROKEN = "the logits are not finite: the base or the adapter is damaged"


@dataclasses.dataclass(frozen=True)
class _Task:
    """A task that is ready to run: its metrics, labels and their tokens, and its splits."""

    metrics: TaskMetrics
    scored_by: str | None
    labels: tuple[str, ...]
    options: np.ndarray  # int32 [C, L]: each label's tokens with EOS, then 0
    splits: Mapping[str, "_Split"]
    absent_splits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Split:
    """One split of a task: its examples, their features, postprocessed targets, and batches."""

    examples: EvalExamples
    features: Sequence[Mapping[str, Any]]
    targets: Sequence[Any]
    batches: Sequence[Mapping[str, np.ndarray]]
    rows: tuple[int, ...] | None  # Of all examples in a benchmark's test file, if it has one.


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
      absent_splits: {task: evaluation splits that its source lacks}. A task that has none of them
        is not evaluated.
      vocabularies: that of each split.
    """

    def __init__(
        self,
        model: Transformer,
        tasks: Sequence[str],
        *,
        lengths: Mapping[str, int],
        batch_size: int,
        mode: str = "rank_classification",
        split: str | None = None,
        limit: int | None = None,
        routes: Mapping[str, int] | None = None,
        mesh: Mesh | None = None,
        cache_dir: str | None = None,
        in_context: int = 0,
        seed: int = 0,
        beam_size: int | None = None,
        held_out: float | None = None,
        few: int | None = None,
        pictures: Pictures | None = None,
    ):
        """Tokenizes the splits, or reads their caches.

        Args:
          model: the network with its method.
          tasks: names of SeqIO tasks.
          lengths: {"inputs": T, "targets": L}, in tokens; longer inputs are truncated and counted.
          batch_size: number of rows of a global batch.
          mode: one of `MODES`.
          split: the split to evaluate: "test" stands for MNLI's "test_matched" and
            "test_mismatched", too; "held_out" for the training examples that `held_out` keeps from
            training. None for the splits that the task names, else "validation".
          limit: evaluate only this many examples of each split, the first ones; all if None.
          routes: the route of each task, for methods with several routes; 0 for all if None.
          mesh: all devices, data-parallel, by default.
          cache_dir: folder of cached token arrays, see `adalink_jax.data.cache`.
          in_context: number of solved training examples in front of each input.
          seed: seed of the choice of these examples, and of `few`.
          beam_size: number of beams of the mode "beam"; None for 4.
          held_out: the share of "train" that is not trained on; None for none.
          few: evaluate at most this many examples of each split, chosen by `seed` as few-shot
            training does; None for all.
          pictures: sees the pictures of tasks that have some; None for no such task.

        Raises:
          UserError: an unknown mode or task, a task without labels in rank classification, labels
            that have the same tokens or are longer than the generated texts, targets that are no
            labels, a metric that cannot be computed, a batch size that the mesh does not divide, a
            vocabulary that is not the model's.
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
                    held_out=held_out,
                    few=few,
                    pictures=pictures,
                ),
                lengths["targets"],
                batch_size,
                _route(routes, name),
                split,
                held_out is not None,
            )
            for name in dict.fromkeys(tasks)
        }
        for task in self._tasks.values():
            for one in task.splits.values():
                model.config.check_vocabulary(one.examples.vocabulary.vocab_size)
        beams = beam_size or BEAM_SIZE
        # Flax gives modules a hash, which type checkers do not see.
        self._predict = _compiled(cast(Any, model), mode, self._mesh, lengths["targets"], beams)
        self._met: set[tuple] = set()  # The shapes of calls, each a program.
        found = [one.examples for task in self._tasks.values() for one in task.splits.values()]
        self.vocabularies = [examples.vocabulary for examples in found]
        self.absent_splits = {name: task.absent_splits for name, task in self._tasks.items()}
        self.identity = {
            name: {split: one.examples.identity for split, one in task.splits.items()}
            for name, task in self._tasks.items()
        }

    def __call__(self, params: Params) -> Results:
        """Evaluates parameters on all tasks.

        Args:
          params: base and adapter, merged.
        """
        results = {}
        for name, task in self._tasks.items():
            splits = {name: self._split(params, task, one) for name, one in task.splits.items()}
            results[name] = TaskResult(splits, task.absent_splits, task.scored_by)
        return Results(self.mode, results)

    def _split(self, params: Params, task: _Task, split: _Split) -> SplitResult:
        examples = split.examples
        rows: list[dict[str, Any]] = [{}] * len(examples)
        for indices, found in self._outputs(params, task, split):
            for place, index in enumerate(indices):
                if index >= 0:
                    rows[index] = {name: values[place] for name, values in found.items()}
        predictions = tuple(
            self._prediction(task, examples, i, row["output"]) for i, row in enumerate(rows)
        )
        generated = self.mode != "rank_classification"
        invalid = [p.prediction not in task.labels for p in predictions]
        metrics, left_out = {}, ()
        if examples.labeled:
            outputs = self._as_outputs(task, predictions, rows)
            metrics, left_out = task.metrics(split.targets, outputs, split.features)
        scored = TARGET_SCORES in task.metrics.needed
        return SplitResult(
            metrics=metrics,
            predictions=predictions,
            truncated=examples.truncated["inputs"],
            invalid=sum(invalid) / len(invalid) if generated and task.labels else None,
            truncated_targets=examples.long_targets if scored else 0,
            labeled=examples.labeled,
            left_out=left_out,
            rows=split.rows,
            of=None if examples.of == len(examples) else examples.of,
        )

    def _as_outputs(
        self, task: _Task, predictions: Sequence[Prediction], rows: Sequence[Mapping[str, Any]]
    ) -> Outputs:
        texts = [prediction.prediction for prediction in predictions]
        found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        tokens = found.pop("output")
        if self.mode == "rank_classification":
            found[OUTPUT_SCORES] = tokens.max(axis=1)
            tokens = task.options[tokens.argmax(axis=1)]
        return Outputs(texts, tokens, **found)

    def _outputs(
        self, params: Params, task: _Task, split: _Split
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields example indices and outputs per batch. A fetch comes after the next batch starts.

        So the device is busy while the host reads the outputs.
        """
        eos_id, name = split.examples.vocabulary.eos_id, split.examples.task
        pending = None
        with progress.bar(f"scoring {name}", len(split.batches), "batches") as bar:
            for batch in split.batches:
                hosts.reached(f"the evaluation of {name}")
                indices = batch["indices"]
                batch = {**batch, **split.examples.images(batch)}
                arrays = place_batch({k: v for k, v in batch.items() if k != "indices"}, self._mesh)
                inputs, targets = to_decode(arrays), arrays.get("decoder_target_tokens")
                self._say_compiling(bar, task, split, arrays["encoder_input_tokens"].shape)
                with on_mesh(self._mesh):
                    found = self._predict(
                        params, inputs, targets, task.options, eos_id, task.metrics.needed
                    )
                if pending is not None:
                    yield pending[0], {name: np.asarray(v) for name, v in pending[1].items()}
                    bar.advance()
                pending = indices, found
            if pending is not None:
                yield pending[0], {name: np.asarray(v) for name, v in pending[1].items()}
                bar.advance()

    def _say_compiling(
        self, bar: progress.Bar, task: _Task, split: _Split, shape: tuple[int, ...]
    ) -> None:
        """Says that a batch of this shape compiles, if it is the first one of a call's kind."""
        key = shape, task.options.shape, task.metrics.needed
        if key not in self._met:
            self._met.add(key)
            of = len({batch["encoder_input_tokens"].shape for batch in split.batches})
            number = min(of, sum(one[1:] == key[1:] for one in self._met))
            bar.says(f"compiling {number} of {of} length{'s' if of > 1 else ''}", line=False)

    def _prediction(
        self, task: _Task, examples: EvalExamples, index: int, output: np.ndarray
    ) -> Prediction:
        references = examples.references[index] if examples.references else None
        inputs, target = examples.input_texts[index], examples.target_texts[index]
        if self.mode == "rank_classification":
            if not np.isfinite(output).all():
                raise UserError(_BROKEN)
            scores = dict(zip(task.labels, output.tolist(), strict=True))
            label = task.labels[int(np.argmax(output))]
            return Prediction(inputs, target, label, scores, references)
        text = _text(examples.vocabulary, output.tolist())
        return Prediction(inputs, target, text, references=references)


# The evaluators of one run (of several splits) share a program.
@functools.lru_cache(maxsize=1)
def _compiled(
    model: Transformer, mode: str, mesh: Mesh, max_length: int, beam_size: int
) -> Callable[..., dict[str, jax.Array]]:
    """Compiles (params, inputs, targets, options, eos_id, needed) → outputs by name.

    "output" is scores [B,C] of labels or tokens [B,L] of texts. `TARGET_SCORES` and
    `OUTPUT_SCORES` are [B], and there if needed; labels have their scores already.
    """

    def predict(params, inputs, targets, options, eos_id, needed):
        found = {}
        if mode == "rank_classification":
            found["output"] = decoding.score_options(model, params, options=options, **inputs)
        else:
            generate = decoding.greedy
            if mode == "beam":
                generate = functools.partial(decoding.beam_search, beam_size=beam_size)
            found["output"] = generate(
                model, params, max_length=max_length, eos_id=eos_id, **inputs
            )
            if OUTPUT_SCORES in needed:
                found[OUTPUT_SCORES] = decoding.score_targets(
                    model, params, targets=found["output"], **inputs
                )
        if TARGET_SCORES in needed:
            found[TARGET_SCORES] = decoding.score_targets(model, params, targets=targets, **inputs)
        return found

    # Replicated, so that every process can fetch all rows.
    return jax.jit(predict, static_argnums=(4, 5), out_shardings=replicated(mesh))


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
    split: str | None,
    holds_out: bool,
) -> _Task:
    """Loads a task.

    Args:
      name: the task's name.
      mode: one of `MODES`.
      examples_of: (task, split) → its examples.
      longest: maximum number of generated tokens.
      batch_size: number of rows of a global batch.
      route: the task's route.
      split: as for `Evaluator`.
      holds_out: whether training examples are held out.
    """
    load_tasks()
    import seqio

    import tasks

    if name not in seqio.TaskRegistry.names():
        raise UserError(f"unknown task '{name}'{nearest(name, seqio.TaskRegistry.names())}")
    labels = tuple(tasks.LABELS.get(name, ()))
    wanted = _wanted_splits(name, split)
    present = tasks.available_splits(name)
    if holds_out and "train" in present:
        if HELD_OUT in present:
            raise UserError(
                f"task '{name}' has a split '{HELD_OUT}' of its own, which Data.held_out would hide"
            )
        present = (*present, HELD_OUT)
    absent = tuple(one for one in wanted if one not in present)
    metrics = TaskMetrics(seqio.TaskRegistry.get(name))
    scored_by = tasks.SCORED_BY.get(name)
    if len(absent) == len(wanted):
        return _Task(metrics, scored_by, labels, np.zeros((0, 0), np.int32), {}, absent)
    if mode == "rank_classification" and not labels:
        raise UserError(
            f"task '{name}' has no labels to rank; evaluate it with Evaluation.mode = 'greedy'"
        )
    examples = {one: examples_of(name, one) for one in wanted if one in present}
    vocabulary = next(iter(examples.values())).vocabulary
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
    splits = {one: _split(some, metrics, batch_size, route) for one, some in examples.items()}
    return _Task(metrics, scored_by, labels, options, splits, absent)


def _wanted_splits(name: str, split: str | None) -> tuple[str, ...]:
    import seqio

    import tasks

    if split is None:
        return tasks.EVAL_SPLITS.get(name, _DEFAULT_SPLITS)
    declared = seqio.TaskRegistry.get(name).source.splits
    parts = (one for one in declared if one == split or one.startswith(f"{split}_"))
    return tuple(parts) or (split,)


def _split(examples: EvalExamples, metrics: TaskMetrics, batch_size: int, route: int) -> _Split:
    from tasks import glue_rows

    features: Sequence[Mapping[str, Any]]
    if metrics.reads_examples and examples.labeled:
        features = examples.features()
    else:
        features = [
            {"inputs_pretokenized": text, "targets_pretokenized": target}
            for text, target in zip(examples.input_texts, examples.target_texts, strict=True)
        ]
        if examples.references is not None:
            pairs = zip(features, examples.references, strict=True)
            features = [{**one, "references": references} for one, references in pairs]
    targets = []
    if examples.labeled:
        targets = metrics.postprocessed(examples.target_texts, features, is_target=True)
    batches = examples.batches(batch_size, route, targets=TARGET_SCORES in metrics.needed)
    rows = None if examples.labeled else glue_rows(examples.task, examples.split)
    return _Split(examples, features, targets, tuple(batches), rows)


def _text(vocabulary: Any, tokens: list[int]) -> str:
    """Returns the text of generated tokens up to EOS, without padding."""
    if decoding.BROKEN in tokens:
        raise UserError(_BROKEN)
    end = tokens.index(vocabulary.eos_id) if vocabulary.eos_id in tokens else len(tokens)
    return vocabulary.decode([token for token in tokens[:end] if token != vocabulary.pad_id])
