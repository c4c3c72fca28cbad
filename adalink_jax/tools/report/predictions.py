"""The predictions of runs, and their scores when examples are drawn again.

A metric is computed here by its name, and only where its value for all examples is the one that the
run recorded. So a task with a metric of its own has no draws, rather than wrong ones.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.tools.report.runs import Run

DRAWS = 10_000
# So many draws are held at once.
_CHUNK = 500
# Recorded metrics are rounded to six decimals.
_EQUAL = 1e-4
_CLASSES = 100
_TEXTS = ("inputs", "target", "prediction")


class NoDraws(Exception):
    """Why the scores of some runs cannot be drawn again."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """A run's predictions on one split.

    Attributes:
      labels: the task's labels in the order of their class ids; () if predictions were generated.
      texts: the texts that targets and predictions are numbers of: the labels, then others.
      targets, predictions: int64 [N].
      inputs: a digest of all input texts.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    targets: np.ndarray
    predictions: np.ndarray
    inputs: str


def lines(run: Run, task: str, split: str) -> Iterator[dict]:
    """Yields the lines of a run's predictions, in the order of the split's examples.

    Raises:
      NoDraws: there is no such file.
      UserError: the file is damaged.
    """
    path = pathlib.Path(run.path) / "predictions" / f"{task}-{split}.jsonl"
    try:
        # Not `splitlines`: texts may hold other separators of lines, such as U+2028.
        for text in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            line = json.loads(text)
            texts = {name: line[name] for name in _TEXTS}
            if not all(isinstance(text, str) for text in texts.values()):
                raise TypeError("a text is none")
            yield {**texts, "scores": line.get("scores") or {}}
    except FileNotFoundError as error:
        raise NoDraws(f"{task}: a run has no predictions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r})") from error


@functools.cache
def answers(run: Run, task: str, split: str) -> Answers:
    """Reads a run's predictions on one split; raises as `lines` does."""
    inputs, labels = hashlib.sha256(), ()
    numbers: dict[str, int] = {}
    targets, predictions = [], []
    for line in lines(run, task, split):
        if not numbers:
            labels = tuple(line["scores"])
            numbers = {label: number for number, label in enumerate(labels)}
        inputs.update(line["inputs"].encode() + b"\0")
        for column, name in ((targets, "target"), (predictions, "prediction")):
            column.append(numbers.setdefault(line[name], len(numbers)))
    if len(targets) != run.results[task].examples[split]:
        raise UserError(
            f"{run.path}: {len(targets):,} predictions of {task} {split}, where"
            f" {run.results[task].examples[split]:,} were scored; the file is damaged"
        )
    return Answers(
        labels, tuple(numbers), np.array(targets), np.array(predictions), inputs.hexdigest()
    )


def _accuracy(weights, targets, predictions, answered) -> np.ndarray:
    return weights @ (targets == predictions) / weights.sum(1)


def _f1(weights, targets, predictions, answered) -> np.ndarray:
    if len(answered.labels) != 2:
        raise NoDraws("F1 needs two labels")
    predictions = np.where(predictions < 2, predictions, 1 - targets)
    both = weights @ ((targets == 1) & (predictions == 1))
    either = weights @ ((targets == 1) * 1 + (predictions == 1))
    return _ratio(2 * both, either)


def _matthews(weights, targets, predictions, answered) -> np.ndarray:
    # All answers that are no label are one class.
    classes = len(answered.labels) or len(answered.texts)
    if classes > _CLASSES:
        raise NoDraws(f"more than {_CLASSES} different answers")
    targets, predictions = (np.minimum(ids, classes) for ids in (targets, predictions))
    total, right = weights.sum(1), weights @ (targets == predictions)
    ts, ps = (
        np.stack([weights @ (ids == k) for k in range(classes + 1)], 1)
        for ids in (targets, predictions)
    )
    spread = (total**2 - (ts**2).sum(1)) * (total**2 - (ps**2).sum(1))
    return _ratio(right * total - (ts * ps).sum(1), np.sqrt(np.maximum(spread, 0)))


def _numbers(ids, answered) -> np.ndarray:
    try:
        return np.array([float(text) for text in answered.texts])[ids]
    except ValueError as error:
        raise NoDraws("an answer is no number") from error


def _pearson(weights, targets, predictions, answered) -> np.ndarray:
    return _correlation(weights, _numbers(targets, answered), _numbers(predictions, answered))


def _spearman(weights, targets, predictions, answered) -> np.ndarray:
    ranks = (_ranks(weights, _numbers(ids, answered)) for ids in (targets, predictions))
    return _correlation(weights, *ranks)


def _ranks(weights, values) -> np.ndarray:
    """Returns the mean rank of each value, [B, P], where value p stands weights[b, p] times."""
    different, places = np.unique(values, return_inverse=True)
    counts = np.zeros((len(weights), len(different)))
    np.add.at(counts.T, places, weights.T)
    return (np.cumsum(counts, 1) - (counts - 1) / 2)[:, places]


def _correlation(weights, x, y) -> np.ndarray:
    total = weights.sum(1)
    x, y = (v - ((weights * v).sum(1) / total)[:, None] for v in (x, y))
    spread = (weights * x * x).sum(1) * (weights * y * y).sum(1)
    return _ratio((weights * x * y).sum(1), np.sqrt(spread))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    # As this project's metrics: a constant answer has no correlation, which counts as 0.
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 1e-9)


# (weights [B, P], targets [P], predictions [P], answers) → the metric [B], where example p of the
# answers stands weights[b, p] times.
_METRICS: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_corrcoef": _matthews,
    "pearson_corrcoef": _pearson,
    "sequence_accuracy": _accuracy,
    "spearman_corrcoef": _spearman,
}


def _split_metrics(run: Run, task: str, split: str) -> list[str]:
    names = [n.partition("/")[2] for n in run.results[task].counted if n.startswith(f"{split}/")]
    if unknown := sorted(set(names) - set(_METRICS)):
        raise NoDraws(f"{task}: no bootstrap for the metric {unknown[0]}")
    return names


def _scores(names: Sequence[str], weights, targets, predictions, answered) -> np.ndarray:
    values = [_METRICS[name](weights, targets, predictions, answered) for name in names]
    return 100 * np.mean(values, 0)


def drawn_scores(runs: Sequence[Run], task: str) -> np.ndarray:
    """Returns scores of runs on a task with its examples drawn again, float64 [DRAWS, runs].

    A draw takes as many examples of each split as there are, with replacement, and the same for
    all runs. Equal arguments give equal draws.

    Raises:
      NoDraws: predictions are missing or of other examples, or a metric is not known here.
    """
    return np.mean(
        [np.concatenate(list(_drawn(runs, task, split))) for split in _splits(runs, task)], 0
    )


def _splits(runs: Sequence[Run], task: str) -> list[str]:
    """Returns the splits that all runs were scored on."""
    splits, counted = runs[0].results[task].examples, runs[0].results[task].counted
    if not splits:
        raise NoDraws(f"{task}: no split is recorded")
    if any(run.results[task].examples != splits for run in runs):
        raise NoDraws(f"{task}: not all were scored on the same examples")
    if any(sorted(run.results[task].counted) != sorted(counted) for run in runs):
        raise NoDraws(f"{task}: not all were scored by the same metrics")
    return list(splits)


def wrong_answers(runs: Sequence[Run], task: str) -> int:
    """Returns how many examples at least one of the runs has wrong; raises as `drawn_scores`."""
    count = 0
    for split in _splits(runs, task):
        answered = aligned(runs, task, split)
        count += int(np.sum(np.any([one.predictions != one.targets for one in answered], 0)))
    return count


def wins(first: Run, second: Run, task: str) -> tuple[int, int, int]:
    """Counts examples that only the first has right, only the second, and with other answers.

    Raises:
      NoDraws: as `drawn_scores`.
    """
    won = lost = differ = 0
    for split in _splits([first, second], task):
        one, other = aligned([first, second], task, split)
        right = one.predictions == one.targets, other.predictions == other.targets
        won += int(np.sum(right[0] & ~right[1]))
        lost += int(np.sum(right[1] & ~right[0]))
        differ += int(np.sum(one.predictions != other.predictions))
    return won, lost, differ


def swapped_gaps(first: Run, second: Run, task: str) -> np.ndarray:
    """Returns the first's score minus the second's with predictions swapped at random, [DRAWS].

    Each example's two predictions change sides with probability a half, as if both runs were one.

    Raises:
      NoDraws: as `drawn_scores`.
    """
    runs = [first, second]
    return np.mean(
        [np.concatenate(list(_swapped(runs, task, split))) for split in _splits(runs, task)], 0
    )


def _swapped(runs: Sequence[Run], task: str, split: str) -> Iterator[np.ndarray]:
    answered, names, patterns, counts = _patterns(runs, task, split)
    # Each pattern as it is, and with the two predictions swapped.
    targets = np.tile(patterns[:, 0], 2)
    ours, others = np.concatenate([patterns[:, 1:], patterns[:, :0:-1]]).T
    rng = np.random.default_rng(zlib.crc32(f"{task}/{split}/swapped".encode()))
    for start in range(0, DRAWS, _CHUNK):
        size = (min(_CHUNK, DRAWS - start), len(counts))
        moved = rng.binomial(counts, 0.5, size)
        weights = np.concatenate([counts - moved, moved], 1).astype(float)
        yield (
            _scores(names, weights, targets, ours, answered[0])
            - _scores(names, weights, targets, others, answered[1])
        )


def _drawn(runs: Sequence[Run], task: str, split: str) -> Iterator[np.ndarray]:
    answered, names, patterns, counts = _patterns(runs, task, split)
    total = int(counts.sum())
    rng = np.random.default_rng(zlib.crc32(f"{task}/{split}".encode()))
    for start in range(0, DRAWS, _CHUNK):
        size = min(_CHUNK, DRAWS - start)
        weights = rng.multinomial(total, counts / total, size).astype(float)
        yield np.stack(
            [
                _scores(names, weights, patterns[:, 0], predictions, one)
                for one, predictions in zip(answered, patterns.T[1:], strict=True)
            ],
            1,
        )


def _patterns(
    runs: Sequence[Run], task: str, split: str
) -> tuple[list[Answers], list[str], np.ndarray, np.ndarray]:
    """Returns answers, metrics, the different rows (target, each run's prediction), their counts.

    Examples with equal targets and equal predictions of all runs are one pattern.
    """
    answered, names = aligned(runs, task, split), _split_metrics(runs[0], task, split)
    columns = np.stack([answered[0].targets, *(one.predictions for one in answered)], 1)
    patterns, counts = np.unique(columns, axis=0, return_counts=True)
    for run, one, predictions in zip(runs, answered, patterns.T[1:], strict=True):
        _check(run, task, split, names, counts[None] * 1.0, patterns[:, 0], predictions, one)
    return answered, names, patterns, counts


def _check(run, task, split, names, weights, targets, predictions, answered) -> None:
    for name in names:
        recorded = run.results[task].metrics.get(f"{split}/{name}")
        (value,) = 100 * _METRICS[name](weights, targets, predictions, answered)
        if recorded is None or abs(value - recorded) > _EQUAL:
            raise NoDraws(f"{task}: metric {name} is not what is known here by this name")


def aligned(runs: Sequence[Run], task: str, split: str) -> list[Answers]:
    """Returns the runs' answers on one split, with the numbers of the texts made the same.

    Raises:
      NoDraws: predictions are missing, or the runs were not scored on the same examples.
    """
    answered = [answers(run, task, split) for run in runs]
    first = answered[0]
    numbers = {text: number for number, text in enumerate(first.texts)}
    same = []
    for run, one in zip(runs, answered, strict=True):
        into = np.array([numbers.setdefault(text, len(numbers)) for text in one.texts], int)
        same.append(
            dataclasses.replace(one, targets=into[one.targets], predictions=into[one.predictions])
        )
        # Examples in context are part of the recorded inputs.
        shown = any(other.in_context for other in (run, runs[0]))
        if (
            one.labels != first.labels
            or not np.array_equal(same[-1].targets, same[0].targets)
            or (one.inputs != first.inputs and not shown)
        ):
            raise NoDraws(f"{task}: not all were scored on the same examples")
    return [dataclasses.replace(one, texts=tuple(numbers)) for one in same]


@functools.cache
def constant_score(run: Run, task: str) -> float | None:
    """Returns the score of always giving one and the same answer, the best of the labels.

    That is what knowing nothing but the labels' frequencies gives. None where it is not known.
    """
    splits = []
    try:
        for split in run.results[task].examples:
            names, one = _split_metrics(run, task, split), answers(run, task, split)
            weights = np.ones((1, len(one.targets)))
            _check(run, task, split, names, weights, one.targets, one.predictions, one)
            choices = range(len(one.labels)) or np.unique(one.targets)
            splits.append(
                max(
                    float(
                        _scores(names, weights, one.targets, np.full_like(one.targets, k), one)[0]
                    )
                    for k in choices
                )
            )
    except NoDraws:
        return None
    return float(np.mean(splits)) if splits else None
