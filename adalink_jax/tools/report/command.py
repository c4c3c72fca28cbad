"""Makes a report of finished runs: tables, plots, CSV, and a page that opens offline.

adalink report runs/glue runs/ranks --to report
adalink report runs/glue --to report --compare "adalink, rank 4" "lora, rank 4"
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from adalink_jax import files
from adalink_jax.errors import UserError
from adalink_jax.tools import tables
from adalink_jax.tools.report import elsewhere, evidence, page, plots, sections, web
from adalink_jax.tools.report.groups import Group, groups_of
from adalink_jax.tools.report.runs import Run, read
from adalink_jax.tools.report.scores import measures

_COLUMNS = (
    "base", "method", "mixture", "sharing", "task", "seed", "steps", "stored", "step_flops",
    "score", "examples", "truncated", "path", "command",
)  # fmt: skip


TITLE = "Methods side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the runs, the folder to write and the methods to compare."""
    parser.add_argument("runs", nargs="+", help="folders of runs, or folders above them")
    parser.add_argument("--to", required=True, help="the folder to write")
    parser.add_argument("--title", default=TITLE, help="the report's title")
    parser.add_argument(
        "--compare", nargs=2, action="append", default=[], metavar=("A", "B"),
        help="test the difference of two methods, named as in the report's tables, or by a part of"
        " the name that only one has; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="also make each run one of a project at Weights & Biases"
    )
    parser.add_argument(
        "--tensorboard", action="store_true",
        help="also write TO/tensorboard: each run with its settings, for the page HPARAMS",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Writes the report; see `report`."""
    report(
        arguments.runs, arguments.to, arguments.title, arguments.compare,
        arguments.wandb, arguments.tensorboard,
    )  # fmt: skip


def report(
    runs: Sequence[str], to: str, title: str = TITLE, compare: Sequence[Sequence[str]] = (),
    wandb: str | None = None, tensorboard: bool = False,
) -> None:  # fmt: skip
    """Reads the runs in or below some folders, writes their report and prints its main tables.

    Args:
      runs: the folders.
      to: the folder to write; files of the report's names in it are replaced.
      title: the report's title.
      compare: pairs of methods' labels, or of parts of them.
      wandb: a project at Weights & Biases that gets the runs, too.
      tensorboard: whether to write the runs for TensorBoard's page of hyperparameters, too.

    Raises:
      UserError: there is no finished run, a run is damaged, a label is not one method's, or what
        `wandb` or `tensorboard` need is not there.
      OSError: the report cannot be written.
    """
    elsewhere.check(wandb, tensorboard)
    loaded, left_out = find(*map(pathlib.Path, runs))
    groups, notes = groups_of(loaded)
    notes = [*left_out, *notes]
    compared = evidence.compared(groups, compare)
    with files.held(to, "the report"):
        write(loaded, groups, notes, compared, pathlib.Path(to), title)
        if tensorboard:
            elsewhere.to_tensorboard(groups, pathlib.Path(to) / "tensorboard")
        if wandb is not None:
            elsewhere.to_wandb(groups, wandb, pathlib.Path(to))
    _print_tables(groups, compared)
    for note in notes:
        print(note, file=sys.stderr)
    count = sum(len(group.runs) for group in groups)
    more = f", {to}/tensorboard" if tensorboard else ""
    more += f", project {wandb} at Weights & Biases" if wandb else ""
    print(f"{count} runs: {to}/report.md, {to}/report.html, {to}/runs.csv{more}")


def find(*paths: pathlib.Path) -> tuple[list[Run], list[str]]:
    """Returns the finished runs, and scored bases, in or below folders, and what was left out.

    The runs of a folder are sorted by path. A folder without any is left out if another has some.

    Raises:
      UserError: there is no such folder, no run to report in any of them, or a run is damaged.
    """
    runs: list[Run] = []
    notes, empty = [], []
    names = ("run.json", "results.json")
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no folder '{path}'")
        folders = sorted({found.parent for name in names for found in path.rglob(name)})
        finished = [folder for folder in folders if all((folder / n).exists() for n in names)]
        if not finished:
            unfinished = f"; {len(folders)} are not finished or have no run.json" if folders else ""
            empty.append(f"'{path}' holds no finished run{unfinished}")
        for folder in sorted(set(folders) - set(finished)):
            why = "not finished" if (folder / "run.json").exists() else "without its run.json"
            notes.append(f"{why}, left out: {folder}")
        loaded = {folder: read(folder) for folder in finished}
        for folder in (folder for folder, run in loaded.items() if run is None):
            notes.append(f"the evaluation of an adapter, left out: {folder}")
        runs += [run for run in loaded.values() if run is not None]
    if not runs:
        raise UserError("; ".join(dict.fromkeys(empty or notes)))
    return runs, list(dict.fromkeys([*empty, *notes]))


def write(
    runs: Sequence[Run], groups: Sequence[Group], notes: Sequence[str],
    compared: Sequence[page.Block], folder: pathlib.Path, title: str,
) -> None:  # fmt: skip
    """Writes report.md, report.html, runs.csv, the plots, and each table as CSV and LaTeX.

    Args:
      runs: at least one.
      groups: their groups.
      notes: what to say about runs that were left out.
      compared: the section of comparisons.
      folder: created if it does not exist; files of these names in it are replaced.
      title: the report's title.
    """
    parts = (
        sections.single_task,
        sections.multi_task,
        evidence.intervals,
        lambda _: compared,
        sections.by_examples,
        sections.by_size,
        sections.equal_parameters,
        sections.cost_and_score,
        sections.interference,
        sections.learning,
        sections.settings,
        evidence.predictions,
        functools.partial(sections.runs, runs, notes=notes),
    )
    blocks = [page.Heading(title, 1), *(block for part in parts for block in part(groups))]
    for block in blocks:
        if isinstance(block, page.Figure):
            with files.replaced_file(folder / block.file) as image:
                plots.png(block.panels, image)
        if isinstance(block, page.Table):
            path, content = folder / "tables" / block.name, (block.header, block.texts)
            files.write_text(path.with_name(f"{block.name}.csv"), tables.csv_lines(*content))
            latex = tables.latex(*content, block.text_columns, block.notes)
            files.write_text(path.with_name(f"{block.name}.tex"), latex)
    files.write_text(folder / "report.md", page.markdown(blocks))
    files.write_text(folder / "report.html", web.page(blocks))
    files.write_text(folder / "runs.csv", _csv(groups))


def _csv(groups: Sequence[Group]) -> str:
    """Returns one CSV line per run and task; metrics that a task does not have are empty."""
    runs = [(group, run) for group in groups for run in group.runs]
    metrics = sorted(
        {n for _, run in runs for result in run.results.values() for n in result.metrics}
    )
    rows = []
    for group, run in runs:
        record = {name: getattr(run, name, "") for name in _COLUMNS}
        record |= {"base": group.base, "method": group.label, "command": page.quoted(run.command)}
        for task, result in run.results.items():
            counts = {
                "examples": sum(result.examples.values()),
                "truncated": sum(result.truncated.values()),
                "score": "" if result.score is None else result.score,
            }
            rows.append(record | {"task": task} | counts | dict(result.metrics))
    return tables.csv_text([*_COLUMNS, *metrics], rows)


def _print_tables(groups: Sequence[Group], compared: Sequence[page.Block]) -> None:
    """Prints the tables of single tasks and mixtures; for only one task, its table of costs."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    found = [*sections.single_task(groups), *sections.multi_task(groups)]
    measured = measures(groups)
    if len(measured) == 1:
        found = [sections.cost_table(measured[0])]
    for block in [*found, *compared]:
        if isinstance(block, page.Table):
            shared, kept = block.divided()
            if shared:
                console.print(", ".join(f"{block.header[i]}: {block.texts[0][i]}" for i in shared))
            table = Table(*(block.header[i] for i in kept))
            for row in block.texts:
                table.add_row(*(row[i] for i in kept))
            console.print(table)
            for note in block.notes:
                console.print(note)
