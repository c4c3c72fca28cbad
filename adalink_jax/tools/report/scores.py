"""Scores as tables show them: over which tasks and seeds, and on which examples."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from adalink_jax.tools.report.groups import Group, grouped
from adalink_jax.tools.report.runs import FROZEN

_MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰ"


class Measure(NamedTuple):
    """A score that groups are compared by: one task's, or the mean over several.

    Attributes:
      name: the task, the mixture, or "mean of 8 tasks".
      tasks: all of them count, each with the same weight.
      groups: those that were trained on these tasks in this way, and the frozen bases.
    """

    name: str
    tasks: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def is_mixture(self) -> bool:
        """Whether the groups were trained on a mixture."""
        return any(group.mixture for group in self.groups)

    @property
    def by_base(self) -> dict[str, list[Group]]:
        """The groups of each base."""
        return grouped(self.groups, lambda group: group.base)

    def title(self, group: Group) -> str:
        """Returns the name, with the group's base where there are several."""
        return f"{self.name}, {group.base}" if len(self.by_base) > 1 else self.name


def tasks_of(groups: Iterable[Group]) -> tuple[str, ...]:
    """Returns the tasks with scores, sorted: of trained groups, if any are trained.

    A frozen base is often scored on more tasks than are trained. They are not columns that every
    trained group would lack.
    """
    tasks: dict[bool, set[str]] = defaultdict(set)
    for group in groups:
        tasks[group.first.method_name != FROZEN] |= group.by_task.keys()
    return tuple(sorted(tasks[True] or tasks[False]))


def measures(groups: Sequence[Group]) -> list[Measure]:
    """Returns what the groups can be compared by: tasks alone, their mean, and each mixture.

    Tasks whose scores have no common scale have no mean, and their mixture is no measure.
    """
    alone = tuple(group for group in groups if not group.mixture)
    tasks = tasks_of(alone)
    found = [Measure(task, (task,), alone) for task in tasks]
    if len(tasks) > 1 and all(group.of_one_scale(tasks) for group in alone):
        found.append(Measure(f"mean of {len(tasks)} tasks", tasks, alone))
    for mixture in sorted({group.mixture for group in groups} - {""}):
        mixed = tuple(
            group
            for group in groups
            if group.mixture == mixture or group.first.method_name == FROZEN
        )
        if all(group.of_one_scale(tasks_of(mixed)) for group in mixed):
            found.append(Measure(mixture, tasks_of(mixed), mixed))
    return found


def cell(scores: Mapping[int, float] | None, of: int = 0) -> str:
    """Formats {seed: score} as mean ± standard deviation; "(n)" if there are fewer than `of`."""
    if not scores:
        return ""
    values = list(scores.values())
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    few = f" ({len(values)})" if len(values) < of else ""
    return f"{statistics.fmean(values):z.1f}{spread}{few}"


def seeds_of(group: Group, tasks: Sequence[str]) -> int:
    """Returns the largest number of seeds of a task."""
    return max((len(group.scores(task)) for task in tasks), default=0)


class Footnotes:
    """Says below a table what a score does not cover, or what it does not share with the others.

    Args:
      groups: the lines of the table.
      tasks: its tasks.
    """

    def __init__(self, groups: Sequence[Group], tasks: Sequence[str]):
        self._usual = {
            task: {
                of: _most([of(group, task) for group in groups if group.scores(task)])
                for of in (_examples, _metrics, _seeds)
            }
            for task in tasks
        }
        self._details: dict[str, dict[str, None]] = {}

    def marks(self, group: Group, tasks: Iterable[str]) -> str:
        """Returns the letters of the notes on a score, and keeps the notes."""
        kinds = {}
        for task in tasks:
            for kind, detail in self._notes(group, task):
                self._details.setdefault(kind, {})[detail] = None
                kinds[kind] = None
        return "".join(_MARKS[list(self._details).index(kind)] for kind in kinds)

    def texts(self) -> tuple[str, ...]:
        """Returns the notes, each with its letter."""
        return tuple(
            f"{mark} {kind}: {', '.join(details)}."
            for mark, (kind, details) in zip(_MARKS, self._details.items(), strict=False)
        )

    def _notes(self, group: Group, task: str) -> Iterable[tuple[str, str]]:
        results = group.results(task)
        if not results:
            return
        limit = int(group.settings.get("eval_limit") or 0)
        # A split that is smaller was scored whole.
        if limit and limit in {count for one in results for count in one.examples.values()}:
            yield "Only the first examples of each split are scored", f"{task} {limit:,}"
        if held_out := group.settings.get("held_out"):
            yield "A share of the training examples is held out", f"{task} {float(held_out):.1%}"
        if "keep" in group.settings:
            split = json.loads(group.settings.get("keep_split", "null"))
            split = split or ("held_out" if held_out else "the examples that are scored")
            yield "The adapter is that of the best step", f"{task} chosen on {split}"
        yield from self._unlike_others(group, task)
        cut = max(sum(result.truncated.values()) for result in results)
        if cut:
            of = sum(results[0].examples.values())
            yield "Inputs longer than the configured length are cut", f"{task} {cut:,} of {of:,}"
        for split in sorted({split for result in results for split in result.absent}):
            yield "Splits that were not there", f"{task} {split}"

    def _unlike_others(self, group: Group, task: str) -> Iterable[tuple[str, str]]:
        usual = self._usual[task]
        if _examples(group, task) != usual[_examples]:
            ours, theirs = (
                " + ".join(f"{count:,}" for _, count in examples) or "none"
                for examples in (_examples(group, task), usual[_examples])
            )
            kind = "Scored on different examples than other lines"
            yield kind, f"{task} {ours} rather than {theirs}"
        if (metrics := _metrics(group, task)) != usual[_metrics] and metrics:
            ours, theirs = (" + ".join(names) for names in (metrics, usual[_metrics]))
            kind = "Scored by different metrics than other lines"
            yield kind, f"{task} {ours} rather than {theirs}"
        # A base that was not trained has no seeds of its own.
        if (seeds := _seeds(group, task)) != usual[_seeds] and seeds:
            ours, theirs = (", ".join(map(str, some)) for some in (seeds, usual[_seeds]))
            yield "Trained with different seeds than other lines", f"{ours} rather than {theirs}"


def _most(values: Iterable[tuple]) -> tuple:
    """Returns the most frequent value that is not empty."""
    counts = Counter(value for value in values if value)
    return counts.most_common(1)[0][0] if counts else ()


def _seeds(group: Group, task: str) -> tuple[int, ...]:
    return () if group.first.method_name == FROZEN else tuple(group.scores(task))


def _metrics(group: Group, task: str) -> tuple[str, ...]:
    return tuple(sorted({name.rpartition("/")[2] for name in group.results(task)[0].counted}))


def _examples(group: Group, task: str) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(group.results(task)[0].examples.items()))
