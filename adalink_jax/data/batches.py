"""Global batches for training and evaluation, as NumPy arrays."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np

from adalink_jax.data import plan
from adalink_jax.data.arrays import Sequences, assemble
from adalink_jax.data.corpus import FEATURES, Tokens, mixture, tokens, vocabulary_identity
from adalink_jax.errors import UserError

# A packed row has at most one example per this many tokens. This bounds the routes of a row.
TOKENS_PER_SEGMENT = 8

# The smallest share of a task in a mixture. A smaller share would need huge epochs.
_LEAST_SHARE = 1e-5


class TrainBatches:
    """The training batches of a mixture or task: ``batch(step)`` is a function of seed and step.

    A batch is global, so batches do not depend on the number of hosts. Each host only makes the
    rows that its devices hold. A resumed run asks for a later step.

    Rows are packed with as many examples as fit (`plan.Packed`). Or they hold one example each,
    and are padded to the length bucket of their batch (`plan.Bucketed`).

    Attributes:
      name: the mixture or task.
      tasks: names of its tasks; the index of a task is its route.
      vocabulary: the SeqIO vocabulary.
      lengths: the configured lengths, {"inputs": T, "targets": L}, in tokens.
      batch_size: number of rows of a global batch.
      packing: whether rows are packed.
      max_segments: maximum number of examples in a row; 1 unless packed.
      max_routes_per_row: maximum number of distinct routes in a row, as routing needs it.
      epoch_size: number of examples in an epoch of the mixture; see `plan.quotas`.
      truncated: {task: {"inputs": n, "targets": n}}, examples longer than the configured lengths.
      identity: JSON-able record of everything that determines the data, without paths.
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        lengths: Mapping[str, int],
        batch_size: int,
        seed: int,
        packing: bool,
        cache_dir: str | os.PathLike | None = None,
        few_shot: int | None = None,
    ):
        """Tokenizes the train splits, or reads their caches.

        Args:
          mixture_or_task_name: a name registered with SeqIO.
          lengths: {"inputs": T, "targets": L}, maximum lengths in tokens; longer sequences are
            truncated and keep their end-of-sequence token.
          batch_size: number of rows of a global batch.
          seed: 0 ≤ seed < 2^64.
          packing: whether rows hold several examples.
          cache_dir: where token arrays are cached; default ADALINK_CACHE_DIR, else
            ~/.cache/adalink_jax.
          few_shot: train on this many examples of each task, chosen by `seed`
            (`corpus.Tokens.few`); None for all.

        Raises:
          UserError: an unknown name; invalid lengths, few_shot or batch size; or an error of
            `tokens` or `mixture`.
        """
        self.lengths = _checked_lengths(lengths)
        if batch_size < 1:
            raise UserError(f"a batch needs at least one row; BATCH_SIZE is {batch_size}")
        if not 0 <= seed < 2**64:
            raise UserError(f"SEED must be a number from 0 to 2^64 - 1; it is {seed}")
        mix = mixture(mixture_or_task_name)
        self.name, self.tasks, self.vocabulary = mix.name, mix.tasks, mix.vocabulary
        self.batch_size, self.packing = batch_size, bool(packing)
        for task, rate in zip(mix.tasks, mix.rates, strict=True):
            if 0 < rate < _LEAST_SHARE * sum(mix.rates):
                raise UserError(
                    f"mixture '{mix.name}': task '{task}' has rate {rate:g} of "
                    f"{sum(mix.rates):g}, less than one example in {1 / _LEAST_SHARE:,.0f}"
                )
        data = [tokens(task, "train", cache_dir) for task in mix.tasks]
        if few_shot is not None:
            data = [examples.few(few_shot, seed) for examples in data]
        self._inputs, self._targets = _sequences(data, self.lengths, _eos(self.vocabulary))
        self.truncated = {
            task: {"inputs": self._inputs.truncated(k), "targets": self._targets.truncated(k)}
            for k, task in enumerate(self.tasks)
        }
        self.identity = self._identity(mix.rates, data)
        self._plan = self._planned(plan.Stream([len(d) for d in data], mix.rates, seed))
        self.max_segments = self._plan.max_segments if isinstance(self._plan, plan.Packed) else 1
        self.max_routes_per_row = min(len(self.tasks), self.max_segments)
        self.epoch_size = self._plan.stream.epoch_size

    def _planned(self, stream: plan.Stream) -> plan.Packed | plan.Bucketed:
        length, target_length = self.lengths["inputs"], self.lengths["targets"]
        sizes = (self._inputs.lengths, self._targets.lengths, self.batch_size)
        if self.packing:
            segments = max(1, length // TOKENS_PER_SEGMENT)
            return plan.Packed(stream, *sizes, length, target_length, segments)
        return plan.Bucketed(stream, *sizes, length, target_length)

    def _identity(self, rates: tuple[float, ...], data: list[Tokens]) -> dict:
        tasks = [
            {"name": task, "rate": rate, **tokens_.identity, "truncated": self.truncated[task]}
            for task, rate, tokens_ in zip(self.tasks, rates, data, strict=True)
        ]
        return {
            "name": self.name,
            "tasks": tasks,
            "vocabulary": vocabulary_identity(self.vocabulary),
            "lengths": dict(self.lengths),
            "packing": self.packing,
        }

    def batch(self, step: int, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns global batch `step` (from 0), or some of its rows.

        Args:
          step: number of the batch.
          rows: int64, ascending, the rows to return; None for all.

        Returns:
          Features as in `arrays.assemble`, with these rows.
        """
        placed = self._plan.batch(step)
        count, places, examples = self.batch_size, placed.rows, placed.examples
        if rows is not None:
            wanted = np.isin(places, rows)
            count, examples = len(rows), examples[wanted]
            places = np.searchsorted(rows, places[wanted])
        shape = (count, placed.input_length, placed.target_length)
        return assemble(self._inputs, self._targets, examples, places, shape, self.packing)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The (T, L) that batches may have; each needs at most one compilation."""
        if isinstance(self._plan, plan.Packed):
            return ((self.lengths["inputs"], self.lengths["targets"]),)
        return tuple((t, n) for t in self._plan.input_buckets for n in self._plan.target_buckets)

    @property
    def summary(self) -> str:
        """One line to read: size and layout of an epoch, and what was truncated."""
        parts = [f"{self.name}: {self.epoch_size:,} examples an epoch"]
        if len(self.tasks) > 1:
            parts[0] += f" from {len(self.tasks)} tasks"
        if isinstance(self._plan, plan.Packed):
            _, starts, _ = self._plan.epoch(0)
            rows = len(starts) - 1
            used = self._inputs.lengths[self._plan.stream.epoch(0)].sum()
            parts.append(
                f"packed {self.epoch_size / rows:.1f} to a row of {self.lengths['inputs']} tokens, "
                f"{used / rows / self.lengths['inputs']:.0%} of them used"
            )
        else:
            parts.append("padded to " + ", ".join(map(str, self._plan.input_buckets)) + " tokens")
        for feature in FEATURES:
            cut = [
                f"{counts[feature]:,} of {task}"
                for task, counts in self.truncated.items()
                if counts[feature]
            ]
            if cut:
                parts.append(
                    f"truncated to {self.lengths[feature]} tokens: {feature} " + ", ".join(cut)
                )
        return "; ".join(parts)


class EvalExamples:
    """One split of one task for evaluation, with every example exactly once.

    Attributes:
      task: the task's name.
      split: the split.
      vocabulary: the SeqIO vocabulary.
      targets: int32 token sequences by example, not truncated.
      input_texts, target_texts: the texts by example.
      truncated: {"inputs": n}, examples whose input is longer than the configured length.
      identity: JSON-able record of everything that determines the data, without paths.
    """

    def __init__(
        self,
        task_name: str,
        split: str,
        lengths: Mapping[str, int],
        limit: int | None = None,
        cache_dir: str | os.PathLike | None = None,
        in_context: int = 0,
        seed: int = 0,
    ):
        """Tokenizes the split, or reads its cache.

        Args:
          task_name: a task registered with SeqIO.
          split: one of its splits.
          lengths: {"inputs": T, "targets": L}; longer inputs are truncated and keep their
            end-of-sequence token. Targets are never truncated here.
          limit: take only this many examples, the first ones; all if None.
          cache_dir: as for `TrainBatches`.
          in_context: number of solved training examples in front of each input: the same that
            few-shot training with this seed uses.
          seed: seed of the choice of these examples.

        Raises:
          UserError: as for `TrainBatches`; also if `limit` is below 1, or the examples in context
            leave no room for an input.
        """
        lengths = _checked_lengths(lengths)
        if limit is not None and limit < 1:
            raise UserError(f"evaluation needs at least one example; the limit is {limit}")
        self.task, self.split = task_name, split
        self.vocabulary = mixture(task_name).vocabulary
        data = tokens(task_name, split, cache_dir)
        if in_context:
            shown = tokens(task_name, "train", cache_dir).few(in_context, seed)
            data = data.after(shown, self.vocabulary.eos_id)
            if (shortest := int(data.inputs.lengths.min())) > lengths["inputs"]:
                raise UserError(
                    f"in_context is {in_context}: with so many examples in front, an input of "
                    f"{task_name} ends after {shortest} tokens or more, but TASK_FEATURE_LENGTHS "
                    f"allows {lengths['inputs']}"
                )
        self._count = len(data) if limit is None else min(limit, len(data))
        inputs = data.inputs.head(self._count)
        self._inputs = Sequences(
            (inputs,), np.zeros(1, np.int64), lengths["inputs"], _eos(self.vocabulary)
        )
        self._buckets = plan.buckets(
            plan.INPUT_BUCKETS, int(self._inputs.lengths.max()), lengths["inputs"]
        )
        self.targets = data.targets.head(self._count)
        self.input_texts = data.input_texts.head(self._count)
        self.target_texts = data.target_texts.head(self._count)
        self.truncated = {"inputs": self._inputs.truncated(0)}
        self.identity = {
            "name": task_name,
            "split": split,
            **data.identity,
            "evaluated": self._count,
            "truncated": self.truncated,
            "vocabulary": vocabulary_identity(self.vocabulary),
            "lengths": lengths,
        }

    def __len__(self) -> int:
        return self._count

    def batches(self, batch_size: int, route: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of similar input length, short ones first.

        Args:
          batch_size: B, rows of every batch; the last batch is padded with empty rows.
          route: the route of all tokens.

        Yields:
          encoder_input_tokens and encoder_routes, int32 [B, T], where T is a length bucket; and
          indices, int64 [B], the example of each row, or -1 for an empty row.
        """
        order = np.argsort(self._inputs.lengths, kind="stable")
        for start in range(0, self._count, batch_size):
            examples = order[start : start + batch_size]
            longest = int(self._inputs.lengths[examples].max())
            length = next(bucket for bucket in self._buckets if bucket >= longest)
            batch = np.zeros((batch_size, length), np.int32)
            self._inputs.fill(batch, examples, np.arange(len(examples)) * length)
            indices = np.full(batch_size, -1, np.int64)
            indices[: len(examples)] = examples
            yield {
                "encoder_input_tokens": batch,
                "encoder_routes": np.full((batch_size, length), route, np.int32),
                "indices": indices,
            }


def prefetch(
    batches: TrainBatches,
    start_step: int,
    stop_step: int,
    place: Callable[[dict[str, np.ndarray]], Any],
    rows: np.ndarray | None = None,
    depth: int = 2,
) -> Generator[Any]:
    """Yields ``place(batches.batch(step, rows))`` for all steps in order, made in advance.

    One thread makes up to `depth` batches in advance. An exception in it is raised here, at its
    step. The thread has ended when the generator is exhausted, closed or raises.
    """

    def make(step: int) -> Any:
        return place(batches.batch(step, rows))

    worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")
    pending = collections.deque()
    try:
        for step in range(start_step, stop_step):
            while len(pending) <= depth and (ahead := step + len(pending)) < stop_step:
                pending.append(worker.submit(make, ahead))
            yield pending.popleft().result()
    finally:
        worker.shutdown(cancel_futures=True)


def _eos(vocabulary) -> int:
    return -1 if vocabulary.eos_id is None else vocabulary.eos_id


def _checked_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
    if set(lengths) != set(FEATURES) or not all(
        isinstance(n, int) and n >= 1 for n in lengths.values()
    ):
        raise UserError(
            f"TASK_FEATURE_LENGTHS must be like {{'inputs': 512, 'targets': 16}}, whole numbers "
            f"of tokens; it is {dict(lengths)}"
        )
    return {feature: lengths[feature] for feature in FEATURES}


def _sequences(
    data: list[Tokens], lengths: dict[str, int], eos: int
) -> tuple[Sequences, Sequences]:
    sizes = np.array([len(tokens_) for tokens_ in data])
    first = np.cumsum(sizes) - sizes
    inputs, targets = (
        Sequences(tuple(getattr(d, feature) for d in data), first, lengths[feature], eos)
        for feature in FEATURES
    )
    return inputs, targets
