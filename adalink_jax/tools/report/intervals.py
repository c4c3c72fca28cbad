"""How far a score, or a difference of two, can be trusted.

Two things make a score what it is by chance: the examples that it was measured on, and the seeds
that the method was trained with. Both are drawn again: examples with replacement (bootstrap), and
the seeds' mean from Student's distribution around the one that was seen. To draw two or three
seeds with replacement as well would give intervals that are far too short.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from adalink_jax.tools.report.groups import Group
from adalink_jax.tools.report.predictions import DRAWS, NoDraws, aligned, drawn_scores
from adalink_jax.tools.report.runs import Run

_LEVELS = (2.5, 97.5)
# The least value of each metric whose greatest is 100.
_SCORES = {
    "accuracy": 0.0, "sequence_accuracy": 0.0, "f1": 0.0, "matthews_corrcoef": -100.0,
    "pearson_corrcoef": -100.0, "spearman_corrcoef": -100.0,
}  # fmt: skip


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
    try:
        drawn = np.mean([drawn_scores(list(group.by_task[t].values()), t) for t in tasks], 0)
        why = ""
    except NoDraws as error:
        drawn, why = None, str(error)
    found = _estimated(means, None if drawn is None else drawn.mean(1), why)[0]
    ends = [_ends(group, task) for task in tasks]
    if found.interval is None or None in ends:
        return found
    lows, highs = zip(*filter(None, ends), strict=True)
    low, high = max(found.interval[0], np.mean(lows)), min(found.interval[1], np.mean(highs))
    return dataclasses.replace(found, interval=(float(low), float(high)))


def _ends(group: Group, task: str) -> tuple[float, float] | None:
    """Returns the least and the greatest value that a task's score can have, if that is known."""
    names = {name.rpartition("/")[2] for name in group.results(task)[0].counted}
    if not names or not names <= _SCORES.keys():
        return None
    return min(_SCORES[name] for name in names), 100.0


def _estimated(
    by_seed: Mapping[int, float], drawn: np.ndarray | None, why: str
) -> tuple[Estimate, np.ndarray | None]:
    """Returns the estimate from values by seed and draws of their mean; and all draws."""
    values = np.array(list(by_seed.values()))
    count, mean = len(values), float(values.mean())
    deviation = float(values.std(ddof=1)) if count > 1 else None
    draws, over = np.full(DRAWS, mean) if drawn is None else drawn, []
    if deviation is not None:
        rng = np.random.default_rng(count)
        draws = draws + rng.standard_t(count - 1, DRAWS) * deviation / math.sqrt(count)
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
      test: what `p` is by: "McNemar" or "bootstrap"; "" without one.
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


def difference(first: Group, second: Group, tasks: tuple[str, ...]) -> Difference | None:
    """Returns the first's mean score over tasks minus the second's, over their common seeds.

    With one common seed the difference is one of two trained models: the interval covers other
    examples, and the test is McNemar's where the score is a share of right answers. With several,
    it is one of two methods: interval and test cover other examples and other seeds.

    Returns:
      None unless every task has the same common seeds, at least one.
    """
    pairs = [_common(first, second, task) for task in tasks]
    if not pairs or not pairs[0] or any(pair.keys() != pairs[0].keys() for pair in pairs):
        return None
    by_task = list(zip(tasks, pairs, strict=True))
    by_seed = {
        seed: float(
            np.mean([pair[seed][0].scores[t] - pair[seed][1].scores[t] for t, pair in by_task])
        )
        for seed in pairs[0]
    }
    drawn, counts, why = None, None, ""
    try:
        drawn = np.mean([_drawn_gap(pair, task) for task, pair in by_task], 0)
        found = [_won(*runs, task) for task, pair in by_task for runs in pair.values()]
        counts = sum(won for won, _ in found), sum(lost for _, lost in found)
    except NoDraws as error:
        why = str(error)
    estimated, draws = _estimated(by_seed, drawn, why)
    if counts and len(by_seed) == 1 and len(tasks) == 1 and _is_share(first, tasks[0]):
        return Difference(estimated, *counts, "McNemar", mcnemar(*counts))
    won, lost = counts or (None, None)
    if draws is None:
        return Difference(estimated, won, lost, "", None)
    fewer = min(int(np.sum(draws <= 0)), int(np.sum(draws >= 0)))
    p = min(1.0, 2 * (fewer + 1) / (len(draws) + 1))
    return Difference(estimated, won, lost, "bootstrap", p)


def _common(first: Group, second: Group, task: str) -> dict[int, tuple[Run, Run]]:
    """Returns {seed: a run of each} for the seeds that both have."""
    others = second.by_task.get(task, {})
    ours = first.by_task.get(task, {})
    return {seed: (run, others[seed]) for seed, run in ours.items() if seed in others}


def _drawn_gap(pair: Mapping[int, tuple[Run, Run]], task: str) -> np.ndarray:
    """Returns draws of the mean difference over seeds, with the same examples for all runs."""
    ours, others = zip(*pair.values(), strict=True)
    scores = drawn_scores([*ours, *others], task)
    return scores[:, : len(pair)].mean(1) - scores[:, len(pair) :].mean(1)


def _won(first: Run, second: Run, task: str) -> tuple[int, int]:
    """Counts the predictions that only one of two runs has right."""
    won = lost = 0
    for split in first.results[task].examples:
        one, other = aligned([first, second], task, split)
        right = one.predictions == one.targets, other.predictions == other.targets
        won += int(np.sum(right[0] & ~right[1]))
        lost += int(np.sum(right[1] & ~right[0]))
    return won, lost


def _is_share(group: Group, task: str) -> bool:
    names = {name.rpartition("/")[2] for name in group.results(task)[0].counted}
    return names <= {"accuracy", "sequence_accuracy"}


def mcnemar(won: int, lost: int) -> float:
    """Returns McNemar's exact two-sided p: a fair coin decides each pair that differs."""
    total, fewer = won + lost, min(won, lost)
    if not total:
        return 1.0
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
            - total * math.log(2) for k in range(fewer + 1)]  # fmt: skip
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method, in the given order."""
    corrected, least = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, ps[index] * (len(ps) - place)))
        corrected[index] = least
    return corrected
