"""Global batches for training, as NumPy arrays."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.data import plan
from adalink_jax.data.arrays import Sequences, assemble
from adalink_jax.data.corpus import (
    FEATURES,
    check_labels,
    mixture,
    tokens,
    vocabulary_identity,
)
from adalink_jax.data.images import Features, Pictures
from adalink_jax.data.tokenized import Tokens
from adalink_jax.errors import UserError

# A packed row has at most one example per this many tokens. This bounds the routes of a row.
TOKENS_PER_SEGMENT = 8

# Batches whose lengths are looked at to choose padded lengths: several windows of them.
_SAMPLE = 8 * plan.WINDOW

# The smallest share of a task in a mixture. A smaller share would need huge epochs.
_LEAST_SHARE = 1e-5


@dataclasses.dataclass(frozen=True)
class _Draw:
    """One draw of the data, with the plan of its batches; data that is not random has one.

    Attributes:
      inputs, targets: the sequences of all tasks.
      plan: places their examples.
      images: the features of their pictures; None if no task has any.
      first_step: the step that is batch 0 of the plan.
    """

    inputs: Sequences
    targets: Sequences
    plan: plan.Packed | plan.Bucketed
    images: Features | None = None
    first_step: int = 0


class TrainBatches:
    """The training batches of a mixture or task: ``batch(step)`` is a function of seed and step.

    A batch is global, so batches do not depend on the number of hosts. Each host only makes the
    rows that its devices hold. A resumed run asks for a later step.

    Rows are packed with as many examples as fit (`plan.Packed`). Or they hold one example each,
    and are padded to the length bucket of their batch (`plan.Bucketed`).

    A task whose preprocessors draw at random (templates, noise) is drawn anew about every epoch,
    each time from the seed and the number of the draw. With `few_shot` it is drawn once.

    Of a task with pictures (`Tokens.images`), batches hold the pictures' features. A picture is
    always whole, so rows are not packed.

    Attributes:
      name: the mixture or task.
      tasks: names of its tasks that have a train split; the index of a task is its route.
      untrained: names of its tasks without one.
      vocabulary: the SeqIO vocabulary.
      lengths: the configured lengths, {"inputs": T, "targets": L}, in tokens.
      batch_size: number of rows of a global batch.
      packing: whether rows are packed.
      held_out: the share of each task's examples that is not trained on; None for none.
      max_segments: maximum number of examples in a row; 1 unless packed.
      max_routes_per_row: maximum number of distinct routes in a row, as routing needs it.
      epoch_size: number of examples in an epoch of the mixture; see `plan.quotas`.
      steps_per_draw: number of batches from one draw; None if nothing is drawn anew.
      pictures: what sees the pictures; None without any.
      image_tokens: M, the number of image tokens of a row; 0 without pictures.
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
        held_out: float | None = None,
        padded_to: Sequence[int] = (),
        steps: int | None = None,
        pictures: Pictures | None = None,
        packed_targets: int | None = None,
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
            (`Tokens.few`); None for all.
          held_out: the share of each task's examples that is not trained on
            (`Tokens.parted`); None for none.
          padded_to: padded lengths of inputs, ascending; those of `plan.INPUT_BUCKETS` if empty.
          steps: choose the cheapest of `plan.LENGTHS` for so many steps (`plan.cheapest`) in their
            place; None for those of `padded_to`.
          pictures: sees the pictures of tasks that have some; None for no such task.
          packed_targets: length of the targets of a packed row; None for the cheapest
            (`plan.packed_targets`).

        Raises:
          UserError: an unknown name; invalid lengths, few_shot, held_out or batch size; pictures
            without `pictures`, or with packing; or an error of `tokens`, `mixture` or `pictures`.
        """
        self.lengths = checked_lengths(lengths)
        if batch_size < 1:
            raise UserError(f"a batch needs at least one row; BATCH_SIZE is {batch_size}")
        if not 0 <= seed < 2**64:
            raise UserError(f"SEED must be a number from 0 to 2^64 - 1; it is {seed}")
        mix = mixture(mixture_or_task_name)
        self.name, self.vocabulary = mix.name, mix.vocabulary
        self.tasks = mix.trained
        self.untrained = tuple(task for task in mix.tasks if task not in mix.trained)
        if not self.tasks:
            raise UserError(f"{mix.name} has no split 'train' to train on")
        self._rates = tuple(mix.rates[mix.tasks.index(task)] for task in self.tasks)
        self.batch_size, self.packing = batch_size, bool(packing)
        for task, rate in zip(self.tasks, self._rates, strict=True):
            if 0 < rate < _LEAST_SHARE * sum(mix.rates):
                raise UserError(
                    f"mixture '{mix.name}': task '{task}' has rate {rate:g} of "
                    f"{sum(mix.rates):g}, less than one example in {1 / _LEAST_SHARE:,.0f}"
                )
        self._seed, self._cache_dir = seed, cache_dir
        self.held_out, self.few_shot = held_out, few_shot
        self.pictures = pictures
        data = [self._tokens(task, 0) for task in self.tasks]
        for task, tokens_ in zip(self.tasks, data, strict=True):
            check_labels(task, "train", tokens_.target_texts)
        self.drawn = tuple(t for t, d in zip(self.tasks, data, strict=True) if d.drawn)
        if held_out is not None:
            data = [examples.parted(held_out, False) for examples in data]
        if few_shot is not None:
            data = [examples.few(few_shot, seed) for examples in data]
        chooses = steps is not None and not packing
        self._data, self._padded_to = data, plan.LENGTHS if chooses else tuple(padded_to)
        self._packed_targets = packed_targets
        self._first = self._laid_out(data, 0)
        if steps is not None and isinstance(placed := self._first.plan, plan.Bucketed):
            sample = [placed.batch(step).input_length for step in range(min(steps, _SAMPLE))]
            # The longest of all is needed, whether or not it is in the sample.
            self._padded_to = plan.cheapest([*sample, placed.input_buckets[-1]], steps)
            self._first = self._laid_out(data, 0)
        self.image_tokens = self._first.images.shape[0] if self._first.images else 0
        if pictures is not None and not self.image_tokens:
            raise UserError(f"Images.encoder is set, but no task of {self.name} has pictures")
        self._at = functools.lru_cache(maxsize=2)(self._drawn_anew)
        self.truncated = {
            task: {
                "inputs": self._first.inputs.truncated(k),
                "targets": self._first.targets.truncated(k),
            }
            for k, task in enumerate(self.tasks)
        }
        self._check_whole_labels()
        placed = self._first.plan
        self.max_segments = placed.max_segments if isinstance(placed, plan.Packed) else 1
        self.max_routes_per_row = min(len(self.tasks), self.max_segments)
        self.epoch_size = placed.stream.epoch_size
        self.steps_per_draw = None
        if self.drawn and few_shot is None:
            self.steps_per_draw = _steps_of_an_epoch(placed)
        self.identity = self._identity()

    def _tokens(self, task: str, draw: int) -> Tokens:
        seed = plan.draw_seed(self._seed, draw)
        found = tokens(task, "train", self._cache_dir, self.lengths, seed)
        if self.packing and found.images is not None:
            raise UserError(
                f"task '{task}' has pictures, which rows of several examples have no place for; "
                "set Batches.packing to False"
            )
        return with_pictures(found, self.pictures, task)

    def _laid_out(self, data: list[Tokens], draw: int) -> _Draw:
        inputs, targets = _sequences(data, self.lengths, eos_of(self.vocabulary))
        # Packed rows are counted by their lengths, which are another draw's before this one.
        first_epoch = draw if self.packing else 0
        stream = plan.Stream([len(d) for d in data], self._rates, self._seed, first_epoch)
        length, target_length = self.lengths["inputs"], self.lengths["targets"]
        if self.packing:
            segments = max(1, length // TOKENS_PER_SEGMENT)
            lengths = (inputs.lengths, targets.lengths, length)
            if self._packed_targets is None:
                self._packed_targets = plan.packed_targets(
                    stream, *lengths, target_length, segments
                )
            first_step = draw * self.steps_per_draw if draw and self.steps_per_draw else 0
            packed = plan.Packed(
                stream, *lengths[:2], self.batch_size, length, self._packed_targets, segments
            )
            return _Draw(inputs, targets, packed, first_step=first_step)
        known = self._padded_to or plan.INPUT_BUCKETS
        sizes = (inputs.lengths, targets.lengths, self.batch_size, length, target_length)
        laid = plan.Bucketed(stream, *sizes, known)
        return _Draw(inputs, targets, laid, self._features(data))

    def _features(self, data: list[Tokens]) -> Features | None:
        """Returns the features of the pictures of all tasks."""
        if self.pictures is None or all(tokens_.digests is None for tokens_ in data):
            return None
        none = (np.zeros((len(tokens_), 32), np.uint8) for tokens_ in data)
        digests = [
            without if tokens_.digests is None else tokens_.digests
            for tokens_, without in zip(data, none, strict=True)
        ]
        return self.pictures.features(np.concatenate(digests))

    def _drawn_anew(self, draw: int) -> _Draw:
        data = [
            self._tokens(task, draw) if task in self.drawn else same
            for task, same in zip(self.tasks, self._data, strict=True)
        ]
        return self._laid_out(data, draw)

    def _check_whole_labels(self) -> None:
        from tasks import LABELS

        for task, cut in self.truncated.items():
            if task in LABELS and cut["targets"]:
                raise UserError(
                    f"{cut['targets']:,} targets of task '{task}' are longer than the "
                    f"{self.lengths['targets']} tokens that TASK_FEATURE_LENGTHS allows; a label "
                    "must not be cut"
                )

    def _identity(self) -> dict:
        tasks = [
            {"name": task, "rate": rate, **tokens_.identity, "truncated": self.truncated[task]}
            for task, rate, tokens_ in zip(self.tasks, self._rates, self._data, strict=True)
        ]
        for task in tasks:
            if "drawn" in task:
                task["drawn"] = {**task["drawn"], "anew_every_steps": self.steps_per_draw}
        widened = self.packing and self._packed_targets != self.lengths["targets"]
        return {
            "name": self.name,
            "tasks": tasks,
            "vocabulary": vocabulary_identity(self.vocabulary),
            "lengths": dict(self.lengths),
            "packing": self.packing,
            **({"packed_targets": self._packed_targets} if widened else {}),
            **({"padded_to": list(self._padded_to)} if self._padded_to else {}),
            **({"image_encoder": self.pictures.identity} if self.pictures else {}),
        }

    def batch(self, step: int, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns global batch `step` (from 0), or some of its rows.

        Args:
          step: number of the batch.
          rows: int64, ascending, the rows to return; None for all.

        Returns:
          Features as in `arrays.assemble`, with these rows; with pictures also those of
          `images.Features.batch`.
        """
        now, placed = self._placed(step)
        count, places, examples = self.batch_size, placed.rows, placed.examples
        if rows is not None:
            wanted = np.isin(places, rows)
            count, examples = len(rows), examples[wanted]
            places = np.searchsorted(rows, places[wanted])
        shape = (count, placed.input_length, placed.target_length)
        made = assemble(now.inputs, now.targets, examples, places, shape, self.packing)
        return made | (now.images.batch(examples, places, count) if now.images else {})

    def _placed(self, step: int) -> tuple[_Draw, plan.Placement]:
        draw = step // self.steps_per_draw if self.steps_per_draw else 0
        now = self._at(draw) if draw else self._first
        return now, now.plan.batch(step - now.first_step)

    def size(self, step: int) -> tuple[int, tuple[int, int, int]]:
        """Returns the tokens of global batch `step` without padding, and its rows, T and L.

        Image tokens are tokens of the input.
        """
        now, placed = self._placed(step)
        tokens = sum(int(one.lengths[placed.examples].sum()) for one in (now.inputs, now.targets))
        if now.images:
            tokens += self.image_tokens * now.images.shown(placed.examples)
        length = self.image_tokens + placed.input_length
        return tokens, (self.batch_size, length, placed.target_length)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The (T, L) that batches of the first draw may have; each is compiled at most once.

        T counts the image tokens in front of the text, too.
        """
        placed, images = self._first.plan, self.image_tokens
        if isinstance(placed, plan.Packed):
            return ((placed.max_inputs, placed.max_targets),)
        return tuple((images + t, n) for t in placed.input_buckets for n in placed.target_buckets)

    @property
    def summary(self) -> str:
        """One line to read: size and layout of an epoch, and what was truncated."""
        parts = [f"{self.name}: {self.epoch_size:,} examples an epoch"]
        if len(self.tasks) > 1:
            parts[0] += f" from {len(self.tasks)} tasks"
        placed = self._first.plan
        if isinstance(placed, plan.Packed):
            _, starts, _ = placed.epoch(0)
            rows = len(starts) - 1
            used = self._first.inputs.lengths[placed.stream.epoch(0)].sum()
            parts.append(
                f"packed {self.epoch_size / rows:.1f} to a row of {placed.max_inputs} tokens and "
                f"{placed.max_targets} of targets, "
                f"{used / rows / self.lengths['inputs']:.0%} of them used"
            )
        else:
            chosen = ", chosen by cost" if self._padded_to else ""
            parts.append(f"padded to {', '.join(map(str, placed.input_buckets))} tokens{chosen}")
        if self.held_out is not None:
            of = sum(data.identity["held_out"]["of"] for data in self._data)
            parts.append(f"{self.held_out:.1%} of {of:,} held out")
        if self.drawn:
            often = f"every {self.steps_per_draw:,} steps" if self.steps_per_draw else "once"
            parts.append(f"drawn at random {often}: {', '.join(self.drawn)}")
        shown = [data.identity["images"]["pictures"] for data in self._data if data.images]
        if shown:
            parts.append(f"{sum(shown):,} pictures of {self.image_tokens} tokens")
        if self.untrained:
            parts.append(f"not trained on, without a train split: {', '.join(self.untrained)}")
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


def _steps_of_an_epoch(placed: plan.Packed | plan.Bucketed) -> int:
    """Returns about how many batches an epoch has; a whole number of a `Bucketed`'s windows."""
    if isinstance(placed, plan.Packed):
        return max(1, (len(placed.epoch(0)[1]) - 1) // placed.batch_size)
    window = placed.window
    return window * max(1, placed.stream.epoch_size // (placed.batch_size * window))


def with_pictures(found: Tokens, pictures: Pictures | None, task: str) -> Tokens:
    """Returns a task's examples with the digests of their pictures, if it has any.

    Raises:
      UserError: it has pictures, and nothing to see them with; or an error of `Pictures.digests`.
    """
    if found.images is None:
        return found
    if pictures is None:
        shown = next((key for key in found.images if key), "")
        raise UserError(
            f"task '{task}' has pictures, such as '{shown}', to which a model of text alone is "
            "blind; set Images.encoder of train or eval, and Images.folder if they are files"
        )
    return found.pictured(pictures.digests(found.images))


def eos_of(vocabulary) -> int:
    """Returns the id of the token that ends a text; -1 if there is none."""
    return -1 if vocabulary.eos_id is None else vocabulary.eos_id


def checked_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
    """Returns {"inputs": T, "targets": L}; raises `UserError` if they are something else."""
    if set(lengths) != set(FEATURES) or not all(
        isinstance(n, int) and n >= 1 for n in lengths.values()
    ):
        raise UserError(
            "lengths (TASK_FEATURE_LENGTHS) must be like {'inputs': 512, 'targets': 16}, whole "
            f"numbers of tokens; it is {dict(lengths)}"
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
