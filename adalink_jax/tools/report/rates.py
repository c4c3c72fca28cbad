"""Prints the best learning rate of the runs of one base and method, or tables of many grids.

adalink learning-rates runs/experiment/rates/tuned/adalink
adalink learning-rates runs/experiment/rates --to learning_rates.md
"""

import argparse
import pathlib
import statistics
from collections.abc import Sequence

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools.report import page
from adalink_jax.tools.report.command import find
from adalink_jax.tools.report.runs import Run
from adalink_jax.tools.report.sections import cell, grouped, task_scores

_NOTE = (
    "Percent on the validation split, after the same number of steps at every rate. The chosen"
    " rate has the highest mean over the tasks, and is the smaller of two equal ones."
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
    grids = grids_of(find(pathlib.Path(folder)))
    if len(grids) > 1:
        kinds = "; ".join(", ".join(kind) for kind in grids)
        raise UserError(f"{folder} holds grids of several bases or methods: {kinds}")
    return best(next(iter(grids.values())))


def write(folder: str, to: str) -> None:
    """Writes the grids of all bases and methods below a folder as Markdown."""
    grids = grids_of(find(pathlib.Path(folder)))
    files.write_text(to, page.markdown(_document(grids)))
    print(to)


def grids_of(runs: Sequence[Run]) -> dict[tuple[str, str], dict[float, dict[str, list[float]]]]:
    """Returns each base's and method's scores: {(base, method): {rate: {task: scores}}}.

    Raises:
      UserError: a run has no constant rate or another number of steps, or a rate lacks a task that
        another rate of the grid has, so their means cannot be compared.
    """
    grids = {}
    for kind, some in grouped(runs, lambda run: (run.base, run.label)).items():
        if len({run.steps for run in some}) > 1 or None in {run.learning_rate for run in some}:
            raise UserError(f"the runs of {', '.join(kind)} differ in more than their rate")
        by_rate = grouped(some, lambda run: (run.learning_rate,))
        grid = {rate: task_scores(by_rate[rate,]) for (rate,) in sorted(by_rate)}
        tasks = {task for scores in grid.values() for task in scores}
        for rate, scores in grid.items():
            if missing := sorted(tasks - scores.keys()):
                raise UserError(f"{', '.join(kind)}: no run of {missing[0]} at rate {rate}")
        grids[kind] = grid
    return grids


def best(grid: dict[float, dict[str, list[float]]]) -> float:
    """Returns the rate with the highest mean over tasks; if two are equal, the smaller one."""
    return max(grid, key=lambda rate: _mean(grid[rate]))


def _mean(scores: dict[str, list[float]]) -> float:
    return statistics.fmean(statistics.fmean(values) for values in scores.values())


def _document(grids: dict) -> list[page.Block]:
    tasks = list(dict.fromkeys(t for grid in grids.values() for s in grid.values() for t in s))
    rows = []
    for kind, grid in grids.items():
        for rate, scores in grid.items():
            cells = [cell(scores.get(task, ()), 0) for task in tasks]
            chosen = "chosen" if rate == best(grid) else ""
            rows.append([*kind, f"{rate:g}", *cells, f"{_mean(scores):.1f}", chosen])
    header = ["base", "method", "rate", *tasks, "mean", ""]
    title = page.Heading("Learning rates", 1)
    return [title, page.Paragraph(_NOTE), page.Table(header, rows, 2)]
