"""Results of an evaluation: `results.json`, predictions as JSONL, and a table.

The files contain no times and no paths, and numbers are rounded to `DECIMALS` places, so that
equal runs write equal bytes.
"""

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from adalink_jax import files
from adalink_jax.errors import UserError, nearest

# The tasks of the GLUE average (WNLI is left out, as in T5's and AdaLink's papers).
GLUE_TASKS = (
    "glue_cola",
    "glue_sst2",
    "glue_mrpc",
    "glue_qqp",
    "glue_stsb",
    "glue_mnli",
    "glue_qnli",
    "glue_rte",
)

# Metrics are percentages and float64 sums, log-likelihoods are float32. Digits after the sixth
# decimal are noise.
DECIMALS = 6


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An example and the model's prediction.

    Attributes:
      inputs: the input text, before truncation.
      target: the target text.
      prediction: the label with the highest score, or the generated text.
      scores: each label's log-likelihood; None if the prediction was generated.
      references: all texts that the metrics compare with; None where the target is the only one.
    """

    inputs: str
    target: str
    prediction: str
    scores: Mapping[str, float] | None = None
    references: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class SplitResult:
    """The result of one split of a task.

    Attributes:
      metrics: metrics by name, in the task's own units (percent for GLUE).
      predictions: predictions in the order of the split's examples.
      truncated: number of inputs that were longer than the configured length.
      invalid: the share of generated texts, in [0, 1], that are not a label of the task; None in
        rank classification and for tasks without labels.
      truncated_targets: the same as `truncated` for targets, where a metric needs their likelihood.
      labeled: whether the targets are known; if not, there are no metrics.
      left_out: names of the task's metrics that are not numbers.
      rows: of all examples of a benchmark's test split, also those that a limit leaves out: the row
        in the benchmark's file; None where there is nothing to submit.
      of: the number of the split's examples where only some are evaluated; None for all.
    """

    metrics: Mapping[str, float]
    predictions: tuple[Prediction, ...]
    truncated: int = 0
    invalid: float | None = None
    truncated_targets: int = 0
    labeled: bool = True
    left_out: tuple[str, ...] = ()
    rows: tuple[int, ...] | None = None
    of: int | None = None


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """The result of a task.

    Attributes:
      splits: results by the split's name.
      absent_splits: evaluation splits that the task's source lacks.
      scored_by: the metric that is the score; None for the mean of all.
    """

    splits: Mapping[str, SplitResult]
    absent_splits: tuple[str, ...] = ()
    scored_by: str | None = None

    @property
    def score(self) -> float | None:
        """The mean of each split's metrics, averaged over the splits; None without metrics.

        Where one metric is the score, it is that one's mean over the splits.
        """
        return _mean(_mean(self._counted(split)) for split in self.splits.values())

    def _counted(self, split: SplitResult) -> list[float]:
        return [v for name, v in split.metrics.items() if self.scored_by in (None, name)]


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of all tasks in one mode of `Evaluator`."""

    mode: str
    tasks: Mapping[str, TaskResult]

    @property
    def glue(self) -> tuple[str, ...]:
        """The GLUE tasks that are present, in GLUE's order."""
        return tuple(task for task in GLUE_TASKS if task in self.tasks)

    @property
    def glue_average(self) -> float | None:
        """The mean score of the GLUE tasks that are present; None if there are none."""
        return _mean(self.tasks[task].score for task in self.glue)


def report(results: Results, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the content of ``results.json``, which is equal for equal results.

    Args:
      results: results of an `Evaluator`.
      training: what is to be said of the training, JSON-able: its "step" and more; None if nothing
        was trained.
    """
    content: dict[str, Any] = {"mode": results.mode, "tasks": {}, **(training or {})}
    for task, result in results.tasks.items():
        content["tasks"][task] = {
            "score": _rounded(result.score),
            **({} if result.scored_by is None else {"scored_by": result.scored_by}),
            "splits": {
                name: {
                    "metrics": {key: _rounded(value) for key, value in split.metrics.items()},
                    "examples": len(split.predictions),
                    **({} if split.of is None else {"of_examples": split.of}),
                    "truncated_inputs": split.truncated,
                    "invalid_share": _rounded(split.invalid),
                }
                for name, split in result.splits.items()
            },
            "absent_splits": list(result.absent_splits),
        }
    if results.glue:
        content["glue"] = {
            "average": _rounded(results.glue_average),
            "tasks": list(results.glue),
            "absent_tasks": [task for task in GLUE_TASKS if task not in results.glue],
        }
    return content


def scalars(results: Results, prefix: str = "eval") -> dict[str, float]:
    """Returns all finite numbers by name, for ``metrics.jsonl`` and TensorBoard.

    Names are ``eval/TASK/SPLIT/METRIC``, ``eval/TASK/SPLIT/invalid_share``, ``eval/TASK/score``
    and ``eval/glue_average``, or begin with another prefix.
    """
    values = {name: _rounded(value) for name, value in _numbers(results, prefix).items()}
    return {name: value for name, value in values.items() if value is not None}


def chosen(results: Results, metric: str | None) -> float:
    """Returns the number that results are compared by, as in `scalars`; NaN if it is not finite.

    Args:
      results: results of an `Evaluator`.
      metric: its name in `scalars`; None for the mean of all tasks' scores.

    Raises:
      UserError: there is no number of this name.
    """
    if metric is None:
        value = _mean(task.score for task in results.tasks.values() if task.score is not None)
        if value is None:
            raise UserError("KEEP chooses by the score of a task, and no task here has one")
    else:
        found = {name: n for name, n in _numbers(results, "eval").items() if n is not None}
        if metric not in found:
            raise UserError(
                f"Selection.metric is '{metric}', which is none of {', '.join(found)}"
                f"{nearest(metric, found)}"
            )
        value = found[metric]
    rounded = _rounded(value)
    return math.nan if rounded is None else rounded


def _numbers(results: Results, prefix: str) -> dict[str, float | None]:
    """Returns all numbers by name; None is one that there is not, NaN one that is none."""
    values: dict[str, float | None] = {}
    for task, result in results.tasks.items():
        for name, split in result.splits.items():
            for metric, value in split.metrics.items():
                values[f"{prefix}/{task}/{name}/{metric}"] = value
            values[f"{prefix}/{task}/{name}/invalid_share"] = split.invalid
        values[f"{prefix}/{task}/score"] = result.score
    return {**values, f"{prefix}/glue_average": results.glue_average}


def write(
    results: Results,
    folder: str | os.PathLike[str],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``results.json`` and ``predictions/TASK-SPLIT.jsonl``, each whole or not at all.

    A line of the JSONL holds the example's index in its split, its texts, the prediction, the
    references if there are some and, in rank classification, each label's log-likelihood. Where
    targets are unknown, predictions of a GLUE task are also written as its server wants them, in
    ``submission/``, unless a limit left examples out. ``results.json`` is written last: if it is
    new, the others are too. In a multi-host run, only one process calls this.

    Args:
      results: results of an `Evaluator`.
      folder: created if it does not exist.
      training: as for `report`.

    Raises:
      UserError: no space or no permission.
    """
    folder = pathlib.Path(folder)
    for task, result in results.tasks.items():
        for name, split in result.splits.items():
            lines = (f"{_line(i, one)}\n" for i, one in enumerate(split.predictions))
            files.write_text(folder / "predictions" / f"{task}-{name}.jsonl", "".join(lines))
            if file := _submitted(task, name, split):
                files.write_text(folder / "submission" / file, _submission(task, name, split))
    text = json.dumps(report(results, training), indent=1, allow_nan=False)
    files.write_text(folder / "results.json", text + "\n")


def _submitted(task: str, name: str, split: SplitResult) -> str | None:
    """Returns the name of the file in ``submission/`` that a split gives; None for none."""
    if split.rows is None or len(split.rows) > len(split.predictions):
        return None
    from tasks import glue_file

    return glue_file(task, name)


def _submission(task: str, name: str, split: SplitResult) -> str:
    from tasks import glue_submission

    assert split.rows is not None  # Since `_submitted`.
    return glue_submission(task, name, [p.prediction for p in split.predictions], split.rows)


def _notes_on_submission(results: Results) -> list[str]:
    """Says which files GLUE's server takes, and which of them are not there."""
    splits = [(t, n, s) for t, task in results.tasks.items() for n, s in task.splits.items()]
    notes = [
        f"{task} {name}: only {len(split.predictions):,} of {len(split.rows):,} examples are "
        "predicted, so there is no file for GLUE's server; leave Evaluation.limit out"
        for task, name, split in splits
        if split.rows is not None and len(split.rows) > len(split.predictions)
    ]
    made = {file for one in splits if (file := _submitted(*one))}
    if made:
        from tasks import GLUE_FILES

        absent = [file for file in GLUE_FILES if file not in made]
        notes.append(
            f"submission/ has {', '.join(sorted(made))}: {len(made)} of the {len(GLUE_FILES)} "
            f"files that GLUE's server takes in one zip; absent: {', '.join(absent) or 'none'}"
        )
    return notes


def print_table(results: Results, file: TextIO | None = None) -> None:
    """Prints a table of tasks × metrics, then notes on what is missing or was truncated.

    The table is framed and colored on a terminal, and has plain columns elsewhere.

    Args:
      results: results of an `Evaluator`.
      file: standard output by default.
    """
    console = Console(file=file or sys.stdout, highlight=False)
    header, rows = _table(results)
    if console.is_terminal:
        table = Table(title=f"evaluation by {results.mode.replace('_', ' ')}")
        for i, title in enumerate(header):
            table.add_column(title, justify="left" if i < 2 else "right")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == "GLUE" else None)
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, *rows):
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  ".join(cells).rstrip(), file=console.file)
    for note in _notes(results):
        print(note, file=console.file)


def _table(results: Results) -> tuple[list[str], list[list[str]]]:
    splits = [
        (task, result, name, split)
        for task, result in results.tasks.items()
        for name, split in result.splits.items()
    ]
    metrics = list(dict.fromkeys(metric for *_, split in splits for metric in split.metrics))
    generated = any(split.invalid is not None for *_, split in splits)
    header = ["task", "split", *metrics, *(["invalid"] if generated else []), "examples", "score"]
    rows = []
    for task, result, name, split in splits:
        row = [task, name, *(_shown(split.metrics.get(metric)) for metric in metrics)]
        if generated:
            row.append("" if split.invalid is None else f"{100 * split.invalid:.1f}%")
        # A task's score is shown once, in the row of its last split.
        score = _shown(result.score) if name == list(result.splits)[-1] else ""
        rows.append([*row, f"{len(split.predictions):,}", score])
    if results.glue:
        present = f"{len(results.glue)} of {len(GLUE_TASKS)} tasks"
        blank = [""] * (len(header) - 3)
        rows.append(["GLUE", present, *blank, _shown(results.glue_average)])
    return header, rows


def _notes(results: Results) -> list[str]:
    notes = []
    if results.glue and (absent := [task for task in GLUE_TASKS if task not in results.glue]):
        notes.append(f"the GLUE average leaves out {', '.join(absent)}")
    for task, result in results.tasks.items():
        for name in result.absent_splits:
            notes.append(f"{task}: no split '{name}' in its source, so it is not evaluated")
        for name, split in result.splits.items():
            if not split.labeled:
                notes.append(f"{task} {name}: its labels are not known, so there is no score")
            if split.of is not None and "cider" in split.metrics:
                notes.append(
                    f"{task} {name}: CIDEr weighs words by the {len(split.predictions):,} of "
                    f"{split.of:,} examples that are evaluated, so it is on another scale than "
                    "the whole split's"
                )
            if split.left_out:
                metrics = ", ".join(split.left_out)
                notes.append(f"{task} {name}: metrics that are no numbers are left out: {metrics}")
            if split.truncated_targets:
                notes.append(
                    f"{task} {name}: {split.truncated_targets:,} targets are longer than the "
                    "configured length; the likelihood is that of the truncated ones"
                )
            if split.truncated:
                notes.append(
                    f"{task} {name}: {split.truncated:,} of {len(split.predictions):,} inputs "
                    "are longer than the configured length and were truncated"
                )
    return notes + _notes_on_submission(results)


def _line(index: int, prediction: Prediction) -> str:
    content: dict[str, Any] = {
        "index": index,
        "inputs": prediction.inputs,
        "target": prediction.target,
        "prediction": prediction.prediction,
    }
    if prediction.references is not None:
        content["references"] = list(prediction.references)
    if prediction.scores is not None:
        content["scores"] = {label: _rounded(s) for label, s in prediction.scores.items()}
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _mean(values: Iterable[float | None]) -> float | None:
    values = list(values)
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return math.fsum(known) / len(known)


def _rounded(value: float | None) -> float | None:
    # Adding 0.0 turns -0.0 into 0.0. JSON has no nan or infinity.
    return None if value is None or not math.isfinite(value) else round(value, DECIMALS) + 0.0


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
