"""Plans which examples form global batch number `step`. Only imports NumPy.

Everything here is a function of the sizes of the tasks, the lengths of their examples, the seed
and the step. No state is saved: a run can resume at any step, on any number of hosts, with the
same batches.

A *stream* is the endless sequence of examples that training sees. It consists of mixture epochs.
Each epoch is a shuffle of a fixed quota of examples per task. Each task gives its examples in
passes: all of them in a new order, then all again. The stream is cut into batches either by
length (`Bucketed`) or by packing several examples into a row (`Packed`).
"""

import bisect
import dataclasses
import functools
import math
import threading

import numpy as np
import numpy.typing as npt

from adalink_jax.data.ragged import ranges

# Padded lengths, each a third to a half larger than the one before. On GLUE about a fifth of the
# input tokens is padding, with only a few compilations.
INPUT_BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
TARGET_BUCKETS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Padded lengths among which `cheapest` chooses; from 32 on, each is at most an eighth longer.
LENGTHS = (*range(4, 64, 4), *range(64, 2049, 8))

# Maximum number of batches in a window of `Bucketed`: large enough that a batch has similar
# lengths, small enough that an example stays near its place in the stream.
WINDOW = 32

# Steps that a compilation is said to cost: about 20 on two cores at T5 small's size, about 500 on
# accelerators.
COMPILATION = 100

# A token of a target also attends to the input and has logits: it is said to cost as much as two
# of the input.
TARGET_COST = 2

# The purposes of random numbers, each with its own stream.
_PASS, _MIX, _BATCHES, _ROWS, _DRAWS = range(5)


def draw(n: int, seed: int, purpose: int, a: int, b: int = 0) -> np.ndarray:
    """Returns uint64 [n] random values that only depend on the arguments.

    Philox is counter-based: the seed and the purpose are its key, a and b its counter. Raw values
    are used because NumPy guarantees them to be equal in all versions. It does not guarantee that
    for the methods of `Generator`.
    """
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, 0, a, b], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(n)


def permutation(n: int, seed: int, purpose: int, a: int, b: int = 0) -> np.ndarray:
    """Returns int64 [n], a permutation of 0 … n - 1 that only depends on the arguments."""
    return np.argsort(draw(n, seed, purpose, a, b), kind="stable")


def draw_seed(seed: int, number: int) -> int:
    """Returns the seed, below 2^31, of draw `number` of data that is drawn at random."""
    return int(draw(1, seed, _DRAWS, number)[0] >> np.uint64(33))


def quotas(sizes: npt.ArrayLike, rates: npt.ArrayLike) -> np.ndarray:
    """Returns the number of examples of each task in a mixture epoch.

    A mixture epoch ends when the first task, at its rate, has used all its examples. With
    proportional mixing (rate = number of examples, perhaps capped) an epoch has every example of
    an uncapped task exactly once. With equal mixing every task has as many examples as the
    smallest one. Fractions are rounded by largest remainder. If rounding would change a task's
    share by more than 1 % (a small task with a high rate), an epoch is several such rounds.

    Args:
      sizes: int [K], number of examples of each task, all positive.
      rates: float [K], mixing rates, not negative, not all zero.

    Returns:
      int64 [K]; a task of rate 0 has quota 0.
    """
    sizes, rates = np.asarray(sizes, np.int64), np.asarray(rates, np.float64)
    share = rates / rates.sum()
    used = share > 0
    total = float(np.min(sizes[used] / share[used]))
    counts = _apportion(round(total), share)
    if np.any(np.abs(counts[used] / (total * share[used]) - 1) > 0.01):
        total *= math.ceil(100 / (total * share[used].min()))
        counts = _apportion(round(total), share)
    return counts


def _apportion(total: int, share: np.ndarray) -> np.ndarray:
    """Splits `total` by shares that sum to 1, by largest remainder; ties go to the first."""
    exact = total * share
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


class Stream:
    """The endless sequence of examples of a mixture. A single task is a mixture of one task.

    Examples have global numbers: task 0's come first, then task 1's, and so on.

    Attributes:
      sizes: int64 [K], examples of each task.
      first: int64 [K], global number of each task's example 0.
      quotas: int64 [K], examples of each task in a mixture epoch.
      epoch_size: examples in a mixture epoch.
      seed: the seed of all draws, 0 ≤ seed < 2^64.
      first_epoch: the mixture epoch that is epoch 0 here.
    """

    def __init__(self, sizes: npt.ArrayLike, rates: npt.ArrayLike, seed: int, first_epoch: int = 0):
        """Plans the mixture; see `quotas` for `sizes` and `rates`."""
        self.sizes = np.asarray(sizes, np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.quotas = quotas(self.sizes, rates)
        self.epoch_size = int(self.quotas.sum())
        self.seed, self.first_epoch = seed, first_epoch
        self._pass = functools.lru_cache(maxsize=2 * len(self.sizes))(self._shuffled)
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def tasks(self, examples: np.ndarray) -> np.ndarray:
        """Returns int64 [n], the index of the task of each global example number."""
        return np.searchsorted(self.first, examples, side="right") - 1

    def examples(self, start: int, stop: int) -> np.ndarray:
        """Returns int64 [stop - start], the examples at these positions of the stream."""
        parts = []
        for epoch in range(start // self.epoch_size, -(-stop // self.epoch_size)):
            begin = epoch * self.epoch_size
            parts.append(self.epoch(epoch)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        """Returns int64 [epoch_size], the examples of a mixture epoch in order.

        Only the order of the *tasks* is drawn per epoch. Each task fills its places from its own
        passes in order, so no example repeats before all others of its task were used.
        """
        epoch += self.first_epoch
        labels = np.repeat(np.arange(len(self.sizes)), self.quotas)
        labels = labels[permutation(self.epoch_size, self.seed, _MIX, epoch)]
        examples = np.empty(self.epoch_size, np.int64)
        examples[np.argsort(labels, kind="stable")] = np.concatenate(
            [self._task(k, epoch * int(n), int(n)) for k, n in enumerate(self.quotas)]
        )
        return examples

    def _task(self, task: int, start: int, count: int) -> np.ndarray:
        """Returns int64 [count], examples start … start + count - 1 of a task's own stream."""
        size = int(self.sizes[task])
        parts = [np.zeros(0, np.int64)]
        while count:
            number, begin = divmod(start, size)
            parts.append(self._pass(task, number)[begin : begin + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts) + self.first[task]

    def _shuffled(self, task: int, number: int) -> np.ndarray:
        """Returns int64 [size], the order of a task's examples in pass `number`."""
        return permutation(int(self.sizes[task]), self.seed, _PASS, task, number)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the examples of one global batch are placed.

    Attributes:
      examples: int64 [n], global example numbers, row by row, in the order of their segments.
      rows: int64 [n], the row of each example, not decreasing.
      input_length: T, the padded length of the inputs.
      target_length: L, the padded length of the targets.
    """

    examples: np.ndarray
    rows: np.ndarray
    input_length: int
    target_length: int


def buckets(known: tuple[int, ...], longest: int, limit: int) -> tuple[int, ...]:
    """Returns the padded lengths of `known` that sequences up to `longest` need, at most `limit`.

    Args:
      known: lengths, ascending.
      longest: length of the longest sequence after truncation to `limit`.
      limit: the configured length.
    """
    lengths = [length for length in known if length < limit] + [limit]
    return tuple(lengths[: bisect.bisect_left(lengths, min(longest, limit)) + 1])


def cheapest(lengths: npt.ArrayLike, steps: int) -> tuple[int, ...]:
    """Returns the padded lengths that cost the least: tokens of padding, and compilations.

    A compilation is said to cost as much as `COMPILATION` steps. That holds on no machine exactly,
    but on all of them alike, so equal commands have equal batches.

    Args:
      lengths: int [n], the padded lengths of a sample of batches, where each may have any.
      steps: number of steps.
    """
    known, counts = np.unique(np.asarray(lengths), return_counts=True)
    tokens = steps * counts / counts.sum()  # Batches of each length; times a length, tokens.
    compilation = COMPILATION * float(np.average(known, weights=counts))
    least: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # For the first 0, 1, … known lengths.
    for end in range(1, len(known) + 1):
        padded = int(known[end - 1])
        least.append(
            min(
                (cost + compilation + padded * float(tokens[start:end].sum()), (*chosen, padded))
                for start, (cost, chosen) in enumerate(least)
            )
        )
    return least[-1][1]


class Bucketed:
    """Batches with one example per row and similar input lengths.

    The stream is cut into windows of batches. Inside a window, examples are sorted by input length
    (ties keep the stream's random order) and cut into batches, and the batches are shuffled. A
    batch is padded to the smallest bucket that holds its longest sequence.

    Attributes:
      window: number of batches in a window, at most half an epoch. Sorting puts equal examples
        together, so with a window of several epochs a batch would repeat one example.
      input_buckets, target_buckets: the padded lengths that can occur.
    """

    def __init__(
        self,
        stream: Stream,
        input_lengths: np.ndarray,
        target_lengths: np.ndarray,
        batch_size: int,
        max_inputs: int,
        max_targets: int,
        known: tuple[int, ...] = INPUT_BUCKETS,
    ):
        """Plans batches.

        Args:
          stream: the examples.
          input_lengths: int [examples], tokens of each input, at most `max_inputs`.
          target_lengths: int [examples], tokens of each target, at most `max_targets`.
          batch_size: number of examples in a global batch.
          max_inputs: the configured input length.
          max_targets: the configured target length.
          known: the padded lengths of inputs, ascending, of which as many are used as are needed.
        """
        self.stream, self.batch_size = stream, batch_size
        self.input_lengths, self.target_lengths = input_lengths, target_lengths
        self.window = max(1, min(WINDOW, stream.epoch_size // (2 * batch_size)))
        self.input_buckets = buckets(known, int(input_lengths.max()), max_inputs)
        # All short targets get the same length: a few more tokens cost less than a compilation.
        longest = int(target_lengths.max())
        shortest = min(longest, 16)
        self.target_buckets = buckets(
            tuple(length for length in TARGET_BUCKETS if length >= shortest), longest, max_targets
        )
        self._sorted = functools.lru_cache(maxsize=2)(self._sorted_window)

    def batch(self, step: int) -> Placement:
        """Returns the examples of global batch `step`."""
        examples = self._sorted(step // self.window)[step % self.window]
        return Placement(
            examples,
            np.arange(self.batch_size),
            _smallest(self.input_buckets, self.input_lengths[examples].max()),
            _smallest(self.target_buckets, self.target_lengths[examples].max()),
        )

    def _sorted_window(self, window: int) -> np.ndarray:
        """Returns int64 [batches of the window, batch_size]."""
        size, seed = self.window * self.batch_size, self.stream.seed
        examples = self.stream.examples(window * size, (window + 1) * size)
        order = np.argsort(self.input_lengths[examples], kind="stable")
        batches = examples[order].reshape(self.window, self.batch_size)
        return batches[permutation(self.window, seed, _BATCHES, window)]


def _smallest(lengths: tuple[int, ...], longest: int) -> int:
    return lengths[bisect.bisect_left(lengths, int(longest))]


def next_fit(
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    max_inputs: int,
    max_targets: int,
    max_segments: int,
) -> np.ndarray:
    """Packs examples into rows in order. A new row starts when the next example does not fit.

    Args:
      input_lengths: int [n], tokens of each input, at most `max_inputs`.
      target_lengths: int [n], tokens of each target, at most `max_targets`.
      max_inputs: maximum input tokens of a row.
      max_targets: maximum target tokens of a row.
      max_segments: maximum examples of a row.

    Returns:
      int64 [rows + 1]; row r holds examples ``[r] … [r + 1] - 1``.

    Raises:
      ValueError: an example is longer than a row.
    """
    n = len(input_lengths)
    # The end of a row only depends on its start, so all possible ends are computed at once.
    ends = np.minimum(np.arange(n) + max_segments, n)
    for lengths, limit in ((input_lengths, max_inputs), (target_lengths, max_targets)):
        if n and lengths.max() > limit:
            raise ValueError(f"a sequence of {lengths.max()} tokens for rows of {limit}")
        total = np.concatenate([[0], np.cumsum(lengths)])
        np.minimum(ends, np.searchsorted(total, total[:-1] + limit, side="right") - 1, out=ends)
    ends, starts = ends.tolist(), [0]
    while starts[-1] < n:
        starts.append(ends[starts[-1]])
    return np.array(starts)


def packed_targets(
    stream: Stream,
    input_lengths: np.ndarray,
    target_lengths: np.ndarray,
    max_inputs: int,
    max_targets: int,
    max_segments: int,
) -> int:
    """Returns the length of the targets of packed rows that costs the least.

    A row holds a target for each of its inputs. With room for one longest target, targets would
    fill a row first, and most of its inputs would be padding. The length is `max_targets` times 1,
    2, 3, 4, 6, 8, 12 …; what counts is the cost of the first mixture epoch.

    Args:
      stream: the examples.
      input_lengths: int [examples], tokens of each input, at most `max_inputs`.
      target_lengths: int [examples], tokens of each target, at most `max_targets`.
      max_inputs: maximum input tokens of a row.
      max_targets: maximum target tokens of an example.
      max_segments: maximum examples of a row.
    """
    examples = stream.epoch(0)
    sizes = (input_lengths[examples], target_lengths[examples], max_inputs)
    costs = {}
    times, following = 1, 2
    while True:
        length = times * max_targets
        rows = len(next_fit(*sizes, length, max_segments)) - 1
        costs[length] = rows * (max_inputs + TARGET_COST * length)
        if times >= max_segments:
            return min(costs, key=costs.__getitem__)
        times, following = following, times * 2 if times > 1 else 3


class Packed:
    """Batches with several examples per row. `next_fit` packs each mixture epoch separately.

    The rows of an epoch are shuffled. The number of rows of an epoch depends on its order; the
    numbers for all epochs up to the current one are computed once and kept.
    """

    def __init__(
        self,
        stream: Stream,
        input_lengths: np.ndarray,
        target_lengths: np.ndarray,
        batch_size: int,
        max_inputs: int,
        max_targets: int,
        max_segments: int,
    ):
        """Plans batches of `batch_size` rows; see `Bucketed` and `next_fit` for the arguments."""
        self.stream, self.batch_size = stream, batch_size
        self.input_lengths, self.target_lengths = input_lengths, target_lengths
        self.max_inputs, self.max_targets = max_inputs, max_targets
        self.max_segments = max_segments
        self._ends = [0]  # rows of the epochs 0 … i - 1
        self._lock = threading.Lock()
        self.epoch = functools.lru_cache(maxsize=2)(self._packed_epoch)

    def batch(self, step: int) -> Placement:
        """Returns the examples of global batch `step`."""
        row, stop = step * self.batch_size, (step + 1) * self.batch_size
        examples, counts = [], []
        while row < stop:
            epoch = self._epoch_of(row)
            stream, starts, order = self.epoch(epoch)
            chosen = order[row - self._ends[epoch] : stop - self._ends[epoch]]
            counts.append(starts[chosen + 1] - starts[chosen])
            examples.append(stream[ranges(starts[chosen], counts[-1])])
            row += len(chosen)
        rows = np.repeat(np.arange(self.batch_size), np.concatenate(counts))
        return Placement(np.concatenate(examples), rows, self.max_inputs, self.max_targets)

    def _epoch_of(self, row: int) -> int:
        with self._lock:
            while self._ends[-1] <= row:
                _, starts, _ = self.epoch(len(self._ends) - 1)
                self._ends.append(self._ends[-1] + len(starts) - 1)
        return bisect.bisect_right(self._ends, row) - 1

    def _packed_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the examples of an epoch, the starts of its rows, and the order of the rows."""
        examples = self.stream.epoch(epoch)
        starts = next_fit(
            self.input_lengths[examples],
            self.target_lengths[examples],
            self.max_inputs,
            self.max_targets,
            self.max_segments,
        )
        number = epoch + self.stream.first_epoch
        return examples, starts, permutation(len(starts) - 1, self.stream.seed, _ROWS, number)
