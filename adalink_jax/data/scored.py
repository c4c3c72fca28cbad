"""The examples of one split for evaluation, as NumPy arrays."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from adalink_jax.data import plan
from adalink_jax.data.arrays import Sequences
from adalink_jax.data.batches import checked_lengths, eos_of, with_pictures
from adalink_jax.data.corpus import (
    check_labels,
    examples,
    mixture,
    tokens,
    vocabulary_identity,
)
from adalink_jax.data.images import Pictures
from adalink_jax.data.tokenized import HELD_OUT, Tokens
from adalink_jax.errors import UserError


class EvalExamples:
    """One split of one task for evaluation, with every example exactly once.

    Attributes:
      task: the task's name.
      split: the split.
      vocabulary: the SeqIO vocabulary.
      targets: int32 token sequences by example, not truncated.
      input_texts, target_texts: the texts by example.
      of: the number of examples that there are, of which `limit` and `few` take some.
      references: the reference texts by example; None if the task has none beside its targets.
      labeled: whether the targets are known; those of a benchmark's test split may not be.
      truncated: {"inputs": n}, examples whose input is longer than the configured length.
      long_targets: number of targets that are longer than the configured length.
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
        held_out: float | None = None,
        few: int | None = None,
        pictures: Pictures | None = None,
    ):
        """Tokenizes the split, or reads its cache.

        Args:
          task_name: a task registered with SeqIO.
          split: one of its splits; or "held_out", the examples of "train" that `held_out` keeps
            from training.
          lengths: {"inputs": T, "targets": L}; longer inputs are truncated and keep their
            end-of-sequence token. So are targets, but only in `batches`.
          limit: take only this many examples, the first ones; all if None.
          cache_dir: as for `TrainBatches`.
          in_context: number of solved training examples in front of each input: the same that
            few-shot training with this seed uses.
          seed: seed of the choice of these examples, and of `few`.
          held_out: the share of "train" that is not trained on, and in no context; None for none.
          few: take at most this many examples, chosen by `seed` as few-shot training does.
          pictures: as for `TrainBatches`.

        Raises:
          UserError: as for `TrainBatches`; also if `limit` is below 1, targets are none of the
            task's labels, or the examples in context leave no room for an input.
        """
        from tasks import UNLABELED

        lengths = checked_lengths(lengths)
        if limit is not None and limit < 1:
            raise UserError(f"evaluation needs at least one example; the limit is {limit}")
        self.task, self.split = task_name, split
        self.vocabulary = mixture(task_name).vocabulary

        def read(split: str, drawn: int = 0) -> Tokens:
            share = held_out if split in ("train", HELD_OUT) else None
            named = split if share is None else "train"
            found = tokens(task_name, named, cache_dir, lengths, drawn)
            found = with_pictures(found, pictures, task_name)
            return found if share is None else found.parted(share, split == HELD_OUT)

        # A few of training's examples are those of its first epoch.
        data = read(split, 0 if few is None else plan.draw_seed(seed, 0))
        self.of = len(data)
        data = data if few is None else data.few(min(few, len(data)), seed)
        self.labeled = set(data.target_texts.counts()) != {UNLABELED}
        if self.labeled:
            check_labels(task_name, split, data.target_texts)
        if in_context:
            shown = read("train", plan.draw_seed(seed, 0)).few(in_context, seed)
            data = data.after(shown, self.vocabulary.eos_id)
            if (shortest := int(data.inputs.lengths.min())) > lengths["inputs"]:
                raise UserError(
                    f"in_context is {in_context}: with so many examples in front, an input of "
                    f"{task_name} ends after {shortest} tokens or more, but TASK_FEATURE_LENGTHS "
                    f"allows {lengths['inputs']}"
                )
        self._count = len(data) if limit is None else min(limit, len(data))
        inputs = data.inputs.head(self._count)
        self.targets = data.targets.head(self._count)
        self._inputs, self._targets = (
            Sequences((some,), np.zeros(1, np.int64), length, eos_of(self.vocabulary))
            for some, length in ((inputs, lengths["inputs"]), (self.targets, lengths["targets"]))
        )
        self.input_texts = data.input_texts.head(self._count)
        self.target_texts = data.target_texts.head(self._count)
        self.references = None
        if data.references is not None:
            self.references = [json.loads(one) for one in data.references.head(self._count)]
        self._images = None
        if pictures is not None and data.digests is not None:
            self._images = pictures.features(data.digests[: self._count])
        self._numbers = np.arange(self._count) if data.numbers is None else data.numbers
        self.truncated = {"inputs": self._inputs.truncated(0)}
        self.long_targets = self._targets.truncated(0)
        self._lengths = lengths
        self.identity = {
            "name": task_name,
            "split": split,
            **data.identity,
            "evaluated": self._count,
            "truncated": self.truncated,
            "vocabulary": vocabulary_identity(self.vocabulary),
            "lengths": lengths,
            **({"image_encoder": pictures.identity} if pictures and self._images else {}),
        }

    def __len__(self) -> int:
        return self._count

    def features(self) -> list[dict[str, Any]]:
        """Returns each example with all its features, as SeqIO hands them to `postprocess_fn`."""
        numbers = self._numbers[: self._count]
        split = "train" if self.split == HELD_OUT else self.split
        found = examples(self.task, split, self._lengths, int(numbers.max()) + 1)
        return [found[number] for number in numbers]

    def images(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the part of a batch of `batches` that holds images, if there are pictures.

        It is made when the batch is used, as a whole split's would not fit in memory.

        Returns:
          The arrays of `images.Features.batch`; none if the task has no pictures.
        """
        if self._images is None:
            return {}
        rows = np.flatnonzero(batch["indices"] >= 0)
        return self._images.batch(batch["indices"][rows], rows, len(batch["indices"]))

    def batches(
        self, batch_size: int, route: int = 0, targets: bool = False
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of similar input length, short ones first.

        Args:
          batch_size: B, rows of every batch; the last batch is padded with empty rows.
          route: the route of all tokens.
          targets: whether to yield the targets, too.

        Yields:
          encoder_input_tokens and encoder_routes, int32 [B, T], where T is a length bucket; and
          indices, int64 [B], the example of each row, or -1 for an empty row. With `targets` also
          decoder_target_tokens, int32 [B, L].
        """
        order = np.argsort(self._inputs.lengths, kind="stable")
        for start in range(0, self._count, batch_size):
            chosen = order[start : start + batch_size]
            tokens_ = _padded(self._inputs, plan.INPUT_BUCKETS, chosen, batch_size)
            indices = np.full(batch_size, -1, np.int64)
            indices[: len(chosen)] = chosen
            batch = {
                "encoder_input_tokens": tokens_,
                "encoder_routes": np.full(tokens_.shape, route, np.int32),
                "indices": indices,
            }
            if targets:
                filled = _padded(self._targets, plan.TARGET_BUCKETS, chosen, batch_size)
                batch["decoder_target_tokens"] = filled
            yield batch


def _padded(
    sequences: Sequences, known: tuple[int, ...], chosen: np.ndarray, rows: int
) -> np.ndarray:
    """Returns these sequences as int32 [rows, length], padded to the smallest length that fits."""
    longest = int(sequences.lengths[chosen].max())
    length = plan.buckets(known, longest, sequences.limit)[-1]
    out = np.zeros((rows, length), np.int32)
    sequences.fill(out, chosen, np.arange(len(chosen)) * length)
    return out
