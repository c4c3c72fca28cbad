"""What the plots of a report show, as panels of points and lines."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from adalink_jax.tools.report.groups import Group, grouped
from adalink_jax.tools.report.intervals import estimate
from adalink_jax.tools.report.plots import Heat, Level, Panel, Point, Series
from adalink_jax.tools.report.predictions import constant_score
from adalink_jax.tools.report.runs import FROZEN
from adalink_jax.tools.report.scores import Measure

CHANCE = "chance (always one answer)"
_MOST_LINES = 6


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
    xlabel: str, lines: dict[str, list[tuple[int, Group]]], measure: Measure,
    groups: Sequence[Group],
) -> Panel:  # fmt: skip
    """Returns score by rank, or by number of examples."""
    series = tuple(
        Series(name, line[0][1].first.method_name, tuple(_point(x, g, measure) for x, g in line))
        for name, line in lines.items()
    )
    levels = _levels(groups, measure, bands=False)
    return Panel(measure.title(groups[0]), xlabel, series, levels, "steps of two")


def by_cost(
    xlabel: str, measure: Measure, groups: Sequence[Group],
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
    levels = tuple(_level(group, measure, True) for group in lines)
    levels += _levels(groups, measure, bands=True)
    if not series or len(series) + len(levels) < 2:
        return None
    return Panel(measure.title(groups[0]), xlabel, series, levels, "log")


def stored(group: Group) -> int | None:
    """Returns the number of stored parameters; None for what is a whole model."""
    return None if group.first.method.trains_base else group.first.stored


def operations(group: Group) -> int | None:
    """Returns the FLOPs of a training step."""
    return group.first.step_flops


def learning(measure: Measure, groups: Sequence[Group]) -> list[Panel]:
    """Returns score by step, from step 0 where that is the frozen base's score.

    Many lines are drawn in a panel for each method.
    """
    bases = [g for g in groups if g.first.method_name == FROZEN and not g.first.in_context]
    series = []
    for group in groups:
        curve = _curve(group, measure.tasks)
        if len(curve) < 2:
            continue
        if group.first.method.start in ("base", "near") and not group.first.watched:
            starts = [b for b in bases if _same_examples(b, group, measure.tasks)]
            start = starts[0].means(measure.tasks) if len(starts) == 1 else None
            curve = {**({0: list(start.values())} if start else {}), **curve}
        points = tuple(
            Point(step, sum(ys) / len(ys), dots=tuple(ys) if len(ys) > 1 else ())
            for step, ys in sorted(curve.items())
        )
        series.append(Series(group.line, group.first.method_name, points))
    title, levels = measure.title(groups[0]), _levels(groups, measure, bands=False)
    watched = {group.first.watched for group in groups if group.first.method_name != FROZEN}
    if others := sorted(filter(None, watched)):
        # Other examples than those of the frozen base's score and of chance.
        mixed = " or as reported" if "" in watched else ""
        title, levels = f"{title}, on {' and '.join(others)}{mixed}", ()
    if len(series) <= _MOST_LINES:
        return [Panel(title, "step", tuple(series), levels)] if series else []
    by_method = grouped(series, lambda one: one.method)
    return [
        Panel(f"{title}, {method}", "step", tuple(some), levels)
        for method, some in by_method.items()
    ]


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


def _level(group: Group, measure: Measure, band: bool) -> Level:
    found = estimate(group, measure.tasks)
    assert found is not None, "asked for groups with a mean only"
    interval = found.interval if band else None
    return Level(group.line, group.first.method_name, found.mean, interval)


def _levels(groups: Sequence[Group], measure: Measure, bands: bool) -> tuple[Level, ...]:
    """Returns the frozen base's scores, with their intervals or without, and chance."""
    frozen = [g for g in groups if g.first.method_name == FROZEN and g.means(measure.tasks)]
    levels = [_level(group, measure, bands) for group in frozen]
    constant = [chance(groups, task) for task in measure.tasks]
    if constant and None not in constant:
        mean = sum(value or 0.0 for value in constant) / len(constant)
        levels.append(Level(CHANCE, "", mean))
    return tuple(levels)


def chance(groups: Sequence[Group], task: str) -> float | None:
    """Returns the score of a constant answer; None unless all groups agree about it.

    Runs that lack their predictions have no say, if they were scored on equally many examples.
    """
    runs = [run for group in groups for run in list(group.by_task.get(task, {}).values())[:1]]
    found = {constant_score(run, task) for run in runs}
    if len({tuple(sorted(run.results[task].examples.items())) for run in runs}) == 1:
        found -= {None}
    return found.pop() if len(found) == 1 else None


def heat(title: str, columns: Sequence[str], gains: dict[str, dict[str, float]]) -> Heat:
    """Returns a map of {line: {column: points gained by mixing}}."""
    cells = {(line, column): gain for line, some in gains.items() for column, gain in some.items()}
    return Heat(title, tuple(gains), tuple(columns), cells)
