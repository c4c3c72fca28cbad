"""Prints the best learning rate of the runs of one base and method, or tables of many grids.

adalink learning-rates runs/experiment/rates/tuned/adalink
adalink learning-rates runs/experiment/rates --to learning_rates.md
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools.report import page
from adalink_jax.tools.report.command import find
from adalink_jax.tools.report.groups import (
    Group,
    basic_label,
    grouped,
    groups_of,
    shown,
    varying,
    word,
)
from adalink_jax.tools.report.runs import Run
from adalink_jax.tools.report.scores import cell, tasks_of

_NOTE = (
    "Percent on the split {}, after the same number of steps at every rate. The chosen"
    " rate has the highest mean over the tasks, and is the smaller of two equal ones."
)
_SCALED = (
    " CIDEr and other scores have no common scale, so the mean is that of each task's score in"
    " percent of the best in its grid."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the runs and the file to write."""
    parser.add_argument("folder", help="the folder of the runs, one run per rate and task")
    parser.add_argument("--to", help="the Markdown file to write")


def run(arguments: argparse.Namespace) -> None:
    """Prints the best rate, or writes the grids of all bases and methods."""
    if arguments.to is None:
        print(best_of(arguments.folder))
    else:
        write(arguments.folder, arguments.to)


def best_of(folder: str) -> float:
    """Returns the best rate for the runs of one base and method below a folder; see `grids_of`."""
    grids = _read(folder)
    if len(grids) > 1:
        kinds = "; ".join(", ".join(kind) for kind in grids)
        raise UserError(f"{folder} holds grids of several bases or methods: {kinds}")
    return best(next(iter(grids.values())))


def write(folder: str, to: str) -> None:
    """Writes the grids of all bases and methods below a folder as Markdown."""
    grids = _read(folder)
    files.write_text(to, page.markdown(_document(grids)))
    print(to)


def _read(folder: str) -> dict[tuple[str, str], dict[float, Group]]:
    runs, notes = find(pathlib.Path(folder))
    for note in (*notes, *groups_of(runs)[1]):
        print(note, file=sys.stderr)
    return grids_of(runs)


_RATE = "learning_rate.base_learning_rate"


def grids_of(runs: Sequence[Run]) -> dict[tuple[str, str], dict[float, Group]]:
    """Returns each base's and method's runs by rate: {(base, method): {rate: group}}, ascending.

    Raises:
      UserError: a run has no constant rate, two differ in more than the rate, or a rate lacks a
        task or seed that another rate of the grid has, so that their means cannot be compared.
    """
    groups, _ = groups_of(runs)
    grids = {}
    for kind, some in grouped(groups, lambda group: (group.base, basic_label(group.first))).items():
        if None in {group.first.learning_rate for group in some}:
            raise UserError(f"the runs of {', '.join(kind)} have no base learning rate")
        other = [name for name in varying(some) if name != _RATE]
        if other or len({(group.mixture, group.first.method) for group in some}) > 1:
            values = {shown(group.settings.get(name)) for name in other[:1] for group in some}
            more = f": {word(other[0])} is {' and '.join(sorted(values))}" if other else ""
            raise UserError(f"the runs of {', '.join(kind)} differ in more than their rate{more}")
        by_rate = {group.first.learning_rate: group for group in some}
        grids[kind] = dict(sorted(by_rate.items()))
        _check_complete(kind, grids[kind])
    return grids


def _check_complete(kind: tuple[str, str], grid: dict[float, Group]) -> None:
    """Raises `UserError` unless all rates have scores of the same tasks and seeds."""
    tasks = tasks_of(grid.values())
    if not tasks:
        raise UserError(f"the runs of {', '.join(kind)} have no scores to choose by")
    seeds = sorted({seed for group in grid.values() for t in tasks for seed in group.scores(t)})
    for rate, group in grid.items():
        for task in tasks:
            if not group.scores(task):
                raise UserError(f"{', '.join(kind)}: no run of {task} at rate {rate}")
            if missing := [seed for seed in seeds if seed not in group.scores(task)]:
                raise UserError(f"{', '.join(kind)}: no seed {missing[0]} of {task} at rate {rate}")


def best(grid: dict[float, Group]) -> float:
    """Returns the rate with the highest mean over tasks; if two are equal, the smaller one.

    Of scores without a common scale, each is taken in percent of the task's best in the grid.
    """
    return max(grid, key=lambda rate: _mean(grid, rate))


def _mean(grid: dict[float, Group], rate: float) -> float:
    tasks, group = tasks_of(grid.values()), grid[rate]
    if group.of_one_scale(tasks):
        return statistics.fmean((group.means(tasks) or {}).values())
    scores = {task: statistics.fmean(group.scores(task).values()) for task in tasks}
    tops = {t: max(statistics.fmean(g.scores(t).values()) for g in grid.values()) for t in tasks}
    return statistics.fmean(100 * scores[t] / tops[t] if tops[t] > 0 else 0.0 for t in tasks)


def _shown_mean(grid: dict[float, Group], rate: float, tasks: Sequence[str]) -> str:
    """Returns a table's cell; a grid of some of its tasks has no mean to compare with others."""
    group = grid[rate]
    return cell(group.means(tasks)) if group.of_one_scale(tasks) else f"{_mean(grid, rate):.1f}"


def _document(grids: dict[tuple[str, str], dict[float, Group]]) -> list[page.Block]:
    tasks = tasks_of(group for grid in grids.values() for group in grid.values())
    rows = []
    for kind, grid in grids.items():
        for rate, group in grid.items():
            cells = [cell(group.scores(task)) for task in tasks]
            chosen = "chosen" if rate == best(grid) else ""
            rows.append([*kind, f"{rate:g}", *cells, _shown_mean(grid, rate, tasks), chosen])
    header = ["base", "method", "rate", *tasks, "mean", ""]
    title = page.Heading("Learning rates", 1)
    splits = sorted({
        split
        for grid in grids.values()
        for group in grid.values()
        for run in group.runs
        for result in run.results.values()
        for split in result.examples
    })  # fmt: skip
    note = _NOTE.format(" or ".join(splits))
    if not all(group.of_one_scale(tasks) for grid in grids.values() for group in grid.values()):
        note += _SCALED
    return [title, page.Paragraph(note), page.Table(header, rows, 2, "learning-rates")]
