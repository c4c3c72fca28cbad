"""A report's runs for other programs: Weights & Biases, and TensorBoard's page of hyperparameters.

There a run is a run of its own, with its settings, and with what it reached on each task.
"""

import importlib.util
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from adalink_jax.errors import UserError, install
from adalink_jax.runs import dashboard
from adalink_jax.runs.board import Board
from adalink_jax.tools.report.groups import Group
from adalink_jax.tools.report.runs import Run

_FIELDS = (
    "mixture", "seed", "steps", "learning_rate", "few_shot", "in_context", "stored", "sharing",
)  # fmt: skip


def check(project: str | None, tensorboard: bool) -> None:
    """Raises `UserError` if what is asked for is not installed."""
    dashboard.check(project, "--wandb")
    # TensorFlow alone writes events, but has not the messages of this page.
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard needs tensorboard, which is not installed: " + install("tensorboard")
        )


def to_wandb(groups: Sequence[Group], project: str, folder: pathlib.Path) -> None:
    """Makes each run one of a project; a run that was there before goes on to be the same one.

    Args:
      groups: the report's runs.
      project: the project.
      folder: where the library keeps its own files.

    Raises:
      UserError: the library refuses, e.g. because nobody is logged in, or fails.
    """
    for group, run in _runs(groups):
        board = dashboard.begun(
            project, folder, run.digest[:16], "--wandb", name=_name(group, run), group=group.line,
            config=_settings(group, run),
        )  # fmt: skip
        try:
            for step, scores in run.curve:
                board.log({f"eval/{task}": score for task, score in scores.items()}, step=step)
            board.summary.update(dict(_reached(run)))
            board.finish()
        except Exception as error:  # Of the library's own classes, which come and go.
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"--wandb: {run.path} cannot be sent: {reason}") from error


def to_tensorboard(groups: Sequence[Group], folder: pathlib.Path) -> None:
    """Writes a folder of events for each run; those of an earlier report of a run are replaced.

    Args:
      groups: the report's runs.
      folder: the folder of the runs' folders.

    Raises:
      OSError: a folder cannot be written.
    """
    # Optional.
    from tensorboard.plugins.hparams import (  # pyright: ignore[reportMissingImports]
        api_pb2,
        summary,
    )

    for group, run in _runs(groups):
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", _name(group, run))
        own = folder / f"{name}_{run.digest[:16]}"
        own.mkdir(parents=True, exist_ok=True)
        for earlier in own.glob("events.out.tfevents.*"):
            earlier.unlink()
        # The page compares strings and numbers, and knows no None.
        settings = {k: "" if v is None else v for k, v in _settings(group, run).items()}
        board = Board(own, 0)
        board.add_summary(0, summary.session_start_pb(settings).SerializeToString())
        board.add(run.steps, dict(_reached(run)))
        ended = summary.session_end_pb(api_pb2.STATUS_SUCCESS)
        board.add_summary(run.steps, ended.SerializeToString())
        board.close()


def _runs(groups: Iterable[Group]) -> Iterator[tuple[Group, Run]]:
    return ((group, run) for group in groups for run in group.runs)


def _name(group: Group, run: Run) -> str:
    return f"{group.label}, {run.mixture}, seed {run.seed}"


def _settings(group: Group, run: Run) -> dict[str, str | int | float | None]:
    named = {"base": group.base, "method": run.method_name, "line": group.line}
    return named | {name: getattr(run, name) for name in _FIELDS}


def _reached(run: Run) -> Iterator[tuple[str, float]]:
    for task, result in run.results.items():
        if result.score is not None:
            yield f"{task}/score", result.score
        for name, value in result.metrics.items():
            if value is not None:
                yield f"{task}/{name}", value
