"""What the plots of a report show, as panels of points and lines."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from adalink_jax.tools.report.groups import Group
from adalink_jax.tools.report.intervals import estimate
from adalink_jax.tools.report.plots import Heat, Level, Panel, Point, Series
from adalink_jax.tools.report.predictions import constant_score
from adalink_jax.tools.report.runs import FROZEN
from adalink_jax.tools.report.scores import Measure

_CHANCE = "chance (always one answer)"


def titled(measure: Measure, base: str, bases: int) -> str:
    """Returns a panel's title: the measure, with the base where there are several."""
    return f"{measure.name}, {base}" if bases > 1 else measure.name


def lines_by(
    groups: Sequence[Group], field: str, measure: Measure
) -> dict[str, list[tuple[int, Group]]]:
    """Returns groups that differ in one number, as lines: {name: [(number, group)]}, ascending.

    Args:
      groups: groups with one base.
      field: "size" or "few_shot", an attribute of `Run`.
      measure: leaves out groups without a mean over its tasks.
    """
    lines: dict[str, list[tuple[int, Group]]] = defaultdict(list)
    for group in groups:
        number = getattr(group.first, field)
        if number is not None and group.means(measure.tasks):
            said = f"{group.first.method.size_field} {number}"
            said = f"{number} examples" if field == "few_shot" else said
            lines[", ".join(p for p in group.line.split(", ") if p != said)].append((number, group))
    return {name: sorted(line, key=lambda one: one[0]) for name, line in lines.items()}


def by_number(
    title: str, xlabel: str, lines: dict[str, list[tuple[int, Group]]], measure: Measure,
    groups: Sequence[Group],
) -> Panel:  # fmt: skip
    """Returns score by rank, or by number of examples."""
    series = tuple(
        Series(name, line[0][1].first.method_name, tuple(_point(x, g, measure) for x, g in line))
        for name, line in lines.items()
    )
    return Panel(title, xlabel, series, _levels(groups, measure), "steps of two")


def by_cost(
    title: str, xlabel: str, measure: Measure, groups: Sequence[Group],
    cost: Callable[[Group], int | None],
) -> Panel | None:  # fmt: skip
    """Returns score by what a method stores or computes; None if fewer than two can be compared.

    Full fine-tuning is a line, as the frozen base is, unless it has a place on the axis.
    """
    points, lines = [], []
    for group in groups:
        if not group.means(measure.tasks) or group.first.method_name == FROZEN:
            continue
        (lines if cost(group) is None else points).append(group)
    series = tuple(
        Series(g.line, g.first.method_name, (_point(cost(g) or 0, g, measure),)) for g in points
    )
    levels = tuple(_level(group, measure) for group in lines) + _levels(groups, measure)
    if not series or len(series) + len(levels) < 2:
        return None
    return Panel(title, xlabel, series, levels, "log")


def stored(group: Group) -> int | None:
    """Returns the number of stored parameters; None for what is a whole model."""
    return None if group.first.method.trains_base else group.first.stored


def operations(group: Group) -> int | None:
    """Returns the FLOPs of a training step."""
    return group.first.step_flops


def learning(title: str, measure: Measure, groups: Sequence[Group]) -> Panel | None:
    """Returns score by step, from step 0 where that is the frozen base's score."""
    bases = [g for g in groups if g.first.method_name == FROZEN and not g.first.in_context]
    series = []
    for group in groups:
        curve = _curve(group, measure.tasks)
        if len(curve) < 2:
            continue
        if group.first.method.start in ("base", "near"):
            starts = [b for b in bases if _same_examples(b, group, measure.tasks)]
            start = starts[0].means(measure.tasks) if len(starts) == 1 else None
            curve = {**({0: list(start.values())} if start else {}), **curve}
        points = tuple(
            Point(step, sum(ys) / len(ys), dots=tuple(ys) if len(ys) > 1 else ())
            for step, ys in sorted(curve.items())
        )
        series.append(Series(group.line, group.first.method_name, points))
    if not series:
        return None
    return Panel(title, "step", tuple(series), _levels(groups, measure))


def _curve(group: Group, tasks: Sequence[str]) -> dict[int, list[float]]:
    """Returns {step: mean over tasks by seed} at the steps where all tasks and seeds have one."""
    if not group.means(tasks):
        return {}
    curves = [
        [dict(group.by_task[task][seed].curve) for task in tasks]
        for seed in group.by_task[tasks[0]]
    ]
    steps = {step for one in curves for curve in one for step in curve}
    found = {}
    for step in steps:
        values = [
            [curve.get(step, {}).get(task) for task, curve in zip(tasks, one, strict=True)]
            for one in curves
        ]
        if not any(value is None for one in values for value in one):
            found[step] = [sum(v or 0.0 for v in one) / len(tasks) for one in values]
    return found


def _same_examples(one: Group, other: Group, tasks: Sequence[str]) -> bool:
    if not one.means(tasks):
        return False
    return all(one.results(t)[0].examples == other.results(t)[0].examples for t in tasks)


def _point(x: float, group: Group, measure: Measure) -> Point:
    found = estimate(group, measure.tasks)
    assert found is not None, "asked for groups with a mean only"
    dots = tuple((group.means(measure.tasks) or {}).values())
    return Point(x, found.mean, found.interval, dots if len(dots) > 1 else ())


def _level(group: Group, measure: Measure) -> Level:
    found = estimate(group, measure.tasks)
    assert found is not None, "asked for groups with a mean only"
    return Level(group.line, group.first.method_name, found.mean, found.interval)


def _levels(groups: Sequence[Group], measure: Measure) -> tuple[Level, ...]:
    """Returns the frozen base's scores, and chance."""
    frozen = [g for g in groups if g.first.method_name == FROZEN and g.means(measure.tasks)]
    levels = [_level(group, measure) for group in frozen]
    chance = [_chance(groups, task) for task in measure.tasks]
    if chance and None not in chance:
        mean = sum(value or 0.0 for value in chance) / len(chance)
        levels.append(Level(_CHANCE, "", mean))
    return tuple(levels)


def _chance(groups: Sequence[Group], task: str) -> float | None:
    """Returns the score of a constant answer; None unless all groups agree about it."""
    runs = [run for group in groups for run in list(group.by_task.get(task, {}).values())[:1]]
    found = {constant_score(run, task) for run in runs}
    return found.pop() if len(found) == 1 else None


def heat(title: str, columns: Sequence[str], gains: dict[str, dict[str, float]]) -> Heat:
    """Returns a map of {line: {column: points gained by mixing}}."""
    cells = {(line, column): gain for line, some in gains.items() for column, gain in some.items()}
    return Heat(title, tuple(gains), tuple(columns), cells)
