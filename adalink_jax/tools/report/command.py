"""Makes a report of finished runs: tables, plots, CSV, and a page that opens offline.

adalink report runs/glue runs/ranks --to report
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools import tables
from adalink_jax.tools.report import page, plots, sections
from adalink_jax.tools.report.runs import FROZEN, Run, read

_COLUMNS = (
    "base", "method", "mixture", "sharing", "task", "seed", "steps", "stored", "step_flops",
    "score", "path", "command",
)  # fmt: skip


_TITLE = "Methods side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the runs and the folder to write."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or folders above them")
    parser.add_argument("--to", required=True, help="the folder to write")
    parser.add_argument("--title", default=_TITLE, help="the report's title")


def run(arguments: argparse.Namespace) -> None:
    """Writes the report; see `report`."""
    report(arguments.runs, arguments.to, arguments.title)


def report(runs: Sequence[str], to: str, title: str = _TITLE) -> None:
    """Reads the runs in or below some folders, writes their report and prints its main tables.

    Raises:
      UserError: there is no finished run, or a run is damaged.
      OSError: the report cannot be written.
    """
    loaded = [run for path in runs for run in find(pathlib.Path(path))]
    loaded.sort(key=lambda r: (r.base, r.method_name, r.size or 0, r.label, r.mixture, r.seed))
    write(loaded, pathlib.Path(to), title)
    _print_tables(loaded)
    print(f"{len(loaded)} runs: {to}/report.md, {to}/report.html, {to}/runs.csv")


def find(path: pathlib.Path) -> list[Run]:
    """Returns the finished runs, and scored bases, in or below a folder, sorted by path.

    Raises:
      UserError: there is no finished run, or a run is damaged.
    """
    folders = sorted(record.parent for record in path.rglob("run.json"))
    finished = [folder for folder in folders if (folder / "results.json").exists()]
    if not finished:
        unfinished = f"; {len(folders)} are not finished" if folders else ""
        raise UserError(f"{path} holds no finished run{unfinished}")
    for folder in sorted(set(folders) - set(finished)):
        print(f"not finished, left out: {folder}", file=sys.stderr)
    loaded = {folder: read(folder) for folder in finished}
    for folder in (folder for folder, run in loaded.items() if run is None):
        print(f"the evaluation of an adapter, left out: {folder}", file=sys.stderr)
    return [run for run in loaded.values() if run is not None]


def write(runs: Sequence[Run], folder: pathlib.Path, title: str) -> None:
    """Writes report.md, report.html, runs.csv and the plots.

    Args:
      runs: at least one.
      folder: created if it does not exist; files of these names in it are replaced.
      title: the report's title.
    """

    def drawing(plot: Callable) -> Callable[[dict, str], str]:
        def draw(values: dict, file: str) -> str:
            with files.replaced_file(folder / file) as image:
                plot(values, image)
            return file

        return draw

    parts = (
        sections.single_task,
        sections.multi_task,
        functools.partial(sections.ranks, draw=drawing(plots.ranks)),
        sections.equal_parameters,
        functools.partial(sections.cost_and_score, draw=drawing(plots.cost)),
        functools.partial(sections.interference, draw=drawing(plots.interference)),
        functools.partial(sections.learning, draw=drawing(plots.learning)),
        sections.commands,
    )
    trained = [run for run in runs if run.method_name != FROZEN]
    blocks = [page.Heading(title, 1)]
    for part in parts:
        named = getattr(part, "func", part)
        with_bases = named in (sections.single_task, sections.cost_and_score, sections.commands)
        blocks += part(runs if with_bases else trained)
    files.write_text(folder / "report.md", page.markdown(blocks))
    files.write_text(folder / "report.html", page.html_page(blocks, folder))
    files.write_text(folder / "runs.csv", _csv(runs))


def _csv(runs: Sequence[Run]) -> str:
    """Returns one CSV line per run and task; metrics that a task does not have are empty."""
    metrics = sorted({name for run in runs for values in run.metrics.values() for name in values})
    rows = []
    for run in runs:
        record = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
        record |= {"method": run.label, "sharing": run.sharing}
        for task, values in run.metrics.items():
            score = run.scores.get(task, "")
            rows.append(record | {"task": task, "score": score} | dict(values))
    return tables.csv_text([*_COLUMNS, *metrics], rows)


def _print_tables(runs: Sequence[Run]) -> None:
    """Prints the tables of single tasks and mixtures; for only one task, its table of costs."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    tables = [*sections.single_task(runs), *sections.multi_task(runs)]
    if len({run.mixture for run in runs}) == 1:
        tables = [sections.cost_table(runs)]
    for block in tables:
        if isinstance(block, page.Table):
            table = Table(*block.header)
            for row in block.rows:
                table.add_row(*row)
            console.print(table)
