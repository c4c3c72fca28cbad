"""How far a score, or a difference of two, can be trusted.

Two things make a score what it is by chance: the examples that it was measured on, and the seeds
that the method was trained with. Both are drawn again: examples with replacement (bootstrap), and
the seeds' mean from Student's distribution around the one that was seen. To draw two or three
seeds with replacement as well would give intervals that are far too short. So would drawing
examples that nearly all have the right answer: shares then come from the Beta and Dirichlet
distributions with Jeffreys' prior (Brown, Cai and DasGupta, 2001), and other scores have no
interval.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.stats

from adalink_jax.tools.report.groups import Group
from adalink_jax.tools.report.predictions import (
    DRAWS,
    NoDraws,
    drawn_scores,
    swapped_gaps,
    wins,
    wrong_answers,
)
from adalink_jax.tools.report.runs import Run

_LEVELS = (2.5, 97.5)
# The least value of each metric whose greatest is 100.
_SCORES = {
    "accuracy": 0.0, "sequence_accuracy": 0.0, "f1": 0.0, "matthews_corrcoef": -100.0,
    "pearson_corrcoef": -100.0, "spearman_corrcoef": -100.0,
}  # fmt: skip
_SHARES = {"accuracy", "sequence_accuracy"}
# Metrics of answers that are right or wrong.
_CLASSES = _SHARES | {"f1", "matthews_corrcoef"}
# Of fewer examples that tell anything, drawing the same ones again says too little.
_FEW = 5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its uncertainty.

    Attributes:
      seeds: number of seeds.
      mean: the mean over seeds, in points.
      deviation: the standard deviation over seeds; None for one seed.
      interval: the 95 % interval; None where neither examples nor seeds can be drawn.
      over: what the interval covers, "seeds and examples", "seeds" or "examples"; "" without one.
      why: why examples could not be drawn; "" if they were.
    """

    seeds: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    over: str
    why: str


@functools.cache
def estimate(group: Group, tasks: tuple[str, ...]) -> Estimate | None:
    """Returns a group's mean score over tasks; None unless every task has the same seeds."""
    means = group.means(tasks)
    if means is None:
        return None
    runs = {task: list(group.by_task[task].values()) for task in tasks}
    drawn, why = None, ""
    try:
        drawn = _drawn_means(runs)
    except NoDraws as error:
        why = str(error)
    found = _estimated(means, drawn, why, _least_deviation(runs))[0]
    ends = [_ends(group, task) for task in tasks]
    if found.interval is None or None in ends:
        return found
    lows, highs = zip(*filter(None, ends), strict=True)
    low, high = max(found.interval[0], np.mean(lows)), min(found.interval[1], np.mean(highs))
    return dataclasses.replace(found, interval=(float(low), float(high)))


def _ends(group: Group, task: str) -> tuple[float, float] | None:
    """Returns the least and the greatest value that a task's score can have, if that is known."""
    names = _metrics(group.by_task[task].values(), task)
    if not names or not names <= _SCORES.keys():
        return None
    return min(_SCORES[name] for name in names), 100.0


def _metrics(runs: Iterable[Run], task: str) -> set[str]:
    """Returns the metrics that make some runs' scores."""
    return {name.rpartition("/")[2] for run in runs for name in run.results[task].counted}


def _is_share(runs: Sequence[Run], task: str) -> bool:
    """Returns whether a score is the share of right answers on one split."""
    return len(runs[0].results[task].examples) == 1 and _metrics(runs, task) <= _SHARES


def _drawn_means(runs: Mapping[str, Sequence[Run]]) -> np.ndarray:
    """Returns draws of the mean over tasks and seeds, {task: a run of each seed} → [DRAWS]."""
    found, mistakes, told = [], 0, True
    for task, some in runs.items():
        drawn, wrong = drawn_scores(some, task).mean(1), wrong_answers(some, task)
        if _is_share(some, task) and (len(some) == 1 or wrong < _FEW):
            # With several seeds that is a little wide: the mean of several answers varies less.
            right = float(np.mean([run.scores[task] for run in some])) / 100
            count = sum(some[0].results[task].examples.values())
            rng = np.random.default_rng(zlib.crc32(f"{task}/share".encode()))
            drawn = 100 * rng.beta(count * right + 0.5, count * (1 - right) + 0.5, DRAWS)
        else:
            told = False
        found.append(drawn)
        mistakes += wrong
    if not told and mistakes < _FEW:
        raise NoDraws(f"{', '.join(runs)}: fewer than {_FEW} examples have a wrong answer")
    return np.mean(found, 0)


def _least_deviation(runs: Mapping[str, Sequence[Run]]) -> float:
    """Returns the deviation that hides between two equal scores, as scores come in steps."""
    counts = [sum(some[0].results[task].examples.values()) for task, some in runs.items()]
    return math.sqrt(sum((100 / count) ** 2 / 12 for count in counts if count)) / len(counts)


def _estimated(
    by_seed: Mapping[int, float], drawn: np.ndarray | None, why: str, least: float = 0.0
) -> tuple[Estimate, np.ndarray | None]:
    """Returns the estimate from values by seed and draws of their mean; and all draws.

    Args:
      by_seed: {seed: value}.
      drawn: the mean with examples drawn again; None without draws.
      why: why there are none.
      least: seeds are taken to deviate by this at least.
    """
    values = np.array(list(by_seed.values()))
    count, mean = len(values), float(values.mean())
    deviation = float(values.std(ddof=1)) if count > 1 else None
    draws, over = np.full(DRAWS, mean) if drawn is None else drawn, []
    if deviation is not None:
        # All of Student's quantiles, in any order.
        quantiles = scipy.stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, count - 1)
        off = np.random.default_rng(count).permutation(quantiles)
        draws = draws + off * max(deviation, least) / math.sqrt(count)
        over.append("seeds")
    if drawn is not None:
        over.append("examples")
    interval = None
    if over:
        low, high = np.percentile(draws, _LEVELS)
        interval = (float(low), float(high))
    found = Estimate(count, mean, deviation, interval, " and ".join(over), why)
    return found, draws if over else None


@dataclasses.dataclass(frozen=True)
class Difference:
    """One group's score minus another's, on the same seeds and examples.

    Attributes:
      estimate: the difference; its mean and interval are in points.
      won, lost: how many predictions only the first has right, and only the second, over all
        seeds; None where predictions cannot be compared.
      test: what `p` is by, as `compared` says; "" without one.
      p: the two-sided probability of such a difference if there were none.
    """

    estimate: Estimate
    won: int | None
    lost: int | None
    test: str
    p: float | None

    @property
    def g(self) -> float | None:
        """Cohen's g: the share of `won` among the predictions that differ, minus a half."""
        if self.won is None or self.lost is None or not self.won + self.lost:
            return None
        return self.won / (self.won + self.lost) - 0.5


def incomparable(first: Group, second: Group, tasks: tuple[str, ...]) -> str:
    """Returns why two groups' mean scores over tasks have no difference; "" if they have one."""
    pairs = [_common(first, second, task) for task in tasks]
    if not any(pairs):
        return "no common seed"
    if any(pair.keys() != pairs[0].keys() for pair in pairs):
        return "not the same common seeds of all tasks"
    for task, pair in zip(tasks, pairs, strict=True):
        results = [run.results[task] for both in pair.values() for run in both]
        kinds = {(*sorted(one.examples.items()), *sorted(one.counted)) for one in results}
        if len(kinds) > 1:
            return "not scored on the same examples by the same metrics"
    return ""


def difference(first: Group, second: Group, tasks: tuple[str, ...]) -> Difference | None:
    """Returns the first's mean score over tasks minus the second's, over their common seeds.

    With one common seed the difference is one of two trained models: the interval covers other
    examples. The test is McNemar's where the score is a share of right answers; else predictions
    change sides at random, example by example (approximate randomization: Noreen, 1989). With
    several seeds it is one of two methods: interval and test cover other examples and other seeds.

    Returns:
      None if they are `incomparable`.
    """
    if incomparable(first, second, tasks):
        return None
    pairs = {task: _common(first, second, task) for task in tasks}
    gaps = {
        seed: [p[seed][0].scores[t] - p[seed][1].scores[t] for t, p in pairs.items()]
        for seed in pairs[tasks[0]]
    }
    by_seed = {seed: float(np.mean(some)) for seed, some in gaps.items()}
    drawn, counts, why = None, None, ""
    try:
        counts = _all_wins(pairs)
        drawn = _drawn_gaps(pairs)
    except NoDraws as error:
        why = str(error)
    least = _least_deviation({task: next(iter(pair.values())) for task, pair in pairs.items()})
    estimated, draws = _estimated(by_seed, drawn, why, least)
    won, lost = counts or (None, None)
    if len(by_seed) == 1:
        return Difference(estimated, won, lost, *_tested(pairs, estimated.mean, counts))
    assert draws is not None  # Of the seeds, at least.
    fewer = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    p = min(1.0, 2 * (fewer + 1) / (len(draws) + 1))
    return Difference(estimated, won, lost, "t" if drawn is None else "bootstrap and t", p)


_Pairs = Mapping[str, Mapping[int, tuple[Run, Run]]]


def _common(first: Group, second: Group, task: str) -> dict[int, tuple[Run, Run]]:
    """Returns {seed: a run of each} for the seeds that both have."""
    others = second.by_task.get(task, {})
    ours = first.by_task.get(task, {})
    return {seed: (run, others[seed]) for seed, run in ours.items() if seed in others}


def _all_wins(pairs: _Pairs) -> tuple[int, int] | None:
    """Counts the predictions that only one has right, of tasks where they are right or wrong."""
    found = [
        wins(*both, task)[:2]
        for task, pair in pairs.items()
        for both in pair.values()
        if _metrics(both, task) <= _CLASSES
    ]
    return (sum(won for won, _ in found), sum(lost for _, lost in found)) if found else None


def _drawn_gaps(pairs: _Pairs) -> np.ndarray:
    """Returns draws of the mean difference over tasks and seeds, with the same examples for all."""
    found, differing, told = [], 0, True
    for task, pair in pairs.items():
        ours, others = zip(*pair.values(), strict=True)
        scores = drawn_scores([*ours, *others], task)
        drawn = scores[:, : len(pair)].mean(1) - scores[:, len(pair) :].mean(1)
        won, lost, differ = np.array([wins(*both, task) for both in pair.values()]).T
        if _is_share([*ours, *others], task) and (len(pair) == 1 or differ.sum() < _FEW):
            count = sum(ours[0].results[task].examples.values())
            cells = np.array([won.mean(), lost.mean()])
            rng = np.random.default_rng(zlib.crc32(f"{task}/shares".encode()))
            shares = rng.dirichlet([*cells + 0.5, count - cells.sum() + 1], DRAWS)
            drawn = 100 * (shares[:, 0] - shares[:, 1])
        else:
            told = False
        found.append(drawn)
        differing += int(differ.sum())
    if not told and differing < _FEW:
        raise NoDraws(f"{', '.join(pairs)}: fewer than {_FEW} answers differ")
    return np.mean(found, 0)


def _tested(pairs: _Pairs, gap: float, counts: tuple[int, int] | None) -> tuple[str, float | None]:
    """Returns the test of two trained models' difference, and its p."""
    both = {task: next(iter(pair.values())) for task, pair in pairs.items()}
    if counts and len(both) == 1 and all(_is_share(runs, task) for task, runs in both.items()):
        return "McNemar", mcnemar(*counts)
    try:
        swapped = np.mean([swapped_gaps(*runs, task) for task, runs in both.items()], 0)
    except NoDraws:
        return "", None
    # Equal but for rounding is as far off.
    as_far = int(np.sum(np.abs(swapped) >= abs(gap) - 1e-6))
    return "randomization", (as_far + 1) / (len(swapped) + 1)


def mcnemar(won: int, lost: int) -> float:
    """Returns McNemar's exact two-sided p: a fair coin decides each pair that differs."""
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method, in the given order."""
    corrected, least = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, ps[index] * (len(ps) - place)))
        corrected[index] = least
    return corrected
