"""Many runs, side by side: one row a run and task, as CSV, as a table, and as a plot by rank."""

import csv
import json
import pathlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from adalink_jax.errors import UserError

COLUMNS = ("method", "task", "rank", "seed", "trainable", "steps", "score", "run")


def main(runs: Sequence[str], csv_path: str, plot_path: str | None = None) -> int:
    """Writes the CSV, prints the table, draws the plot; returns the exit code."""
    try:
        rows = [row for run in runs for row in rows_of(pathlib.Path(run))]
        write_csv(rows, pathlib.Path(csv_path))
        print_table(rows)
        if plot_path:
            plot_by_rank(rows, pathlib.Path(plot_path))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def rows_of(run: pathlib.Path) -> list[dict[str, Any]]:
    """A finished run's scores, one row a task, with what made it.

    Raises:
      UserError: the folder holds no finished run.
    """
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        adapter = json.loads((run / "adapter" / "adapter.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        missing = pathlib.Path(error.filename).name
        raise UserError(f"{run} holds no finished run: {missing} is missing") from error
    settings = adapter["settings"]
    sizes = [entry["shape"] for entry in adapter["tensors"].values()]
    shared = {
        "method": adapter["method"],
        # A prompt's length is its rank: the number of trained vectors.
        "rank": settings.get("rank", settings.get("length", "")),
        "seed": record["configuration"].get("seed", ""),
        "trainable": sum(_product(shape) for shape in sizes),
        "steps": results["step"],
        "run": run.as_posix(),
    }
    return [
        {**shared, "task": task, "score": result["score"], **_metrics(result)}
        for task, result in results["tasks"].items()
    ]


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{split}/{name}": value
        for split, content in result["splits"].items()
        for name, value in content["metrics"].items()
    }


def write_csv(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """One line a row; a metric that a task does not have is left empty."""
    metrics = sorted({name for row in rows for name in row} - set(COLUMNS))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *metrics], restval="")
        writer.writeheader()
        writer.writerows(rows)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Methods (and ranks) down, tasks across: the mean over seeds, and their spread if several."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    scores: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = (row["method"], row["rank"], row["trainable"])
        if row["score"] is not None:
            scores[key][row["task"]].append(row["score"])
    table = Table("method", "rank", "trainable", *tasks, "mean")
    for (method, rank, trainable), by_task in scores.items():
        means = [statistics.fmean(by_task[task]) for task in tasks if by_task[task]]
        # A mean over fewer tasks than the others have would mislead.
        mean = f"{statistics.fmean(means):.2f}" if len(means) == len(tasks) else ""
        cells = [_cell(by_task[task]) for task in tasks]
        table.add_row(method, str(rank), f"{trainable:,}", *cells, mean)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def plot_by_rank(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws each task's score by rank, a point a seed and a line through their means."""
    from matplotlib import figure

    canvas = figure.Figure(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    lines: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["rank"] != "" and row["score"] is not None:
            lines[row["method"], row["task"]][row["rank"]].append(row["score"])
    if not lines:
        raise UserError("there is no run with a rank to plot")
    for (method, task), by_rank in sorted(lines.items()):
        ranks = sorted(by_rank)
        means = [statistics.fmean(by_rank[rank]) for rank in ranks]
        (line,) = axes.plot(ranks, means, marker="o", label=f"{method}, {task}")
        for rank in ranks:
            points = by_rank[rank]
            axes.plot([rank] * len(points), points, ".", color=line.get_color(), alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({rank for by_rank in lines.values() for rank in by_rank}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set(xlabel="rank", ylabel="score on validation (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=150)
