"""A run's values at Weights & Biases, for who wants them there (WANDB=PROJECT).

The kept library decides where they go: its own variables hold, such as WANDB_MODE=offline, which
keeps them in MODEL_DIR/wandb until ``wandb sync``, WANDB_ENTITY and WANDB_API_KEY.
"""

import hashlib
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from adalink_jax.errors import UserError, install

logger = logging.getLogger(__name__)


def check(project: str | None, name: str = "WANDB") -> None:
    """Raises `UserError` if a project is given by this name, but wandb is not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(f"{name} is {project!r}, but wandb is not installed: {install('wandb')}")


def begun(
    project: str, folder: pathlib.Path, identity: str, named: str = "WANDB", **about: Any
) -> Any:
    """Begins a run at Weights & Biases, or goes on with it.

    Args:
      project: the project.
      folder: where the library keeps its own files.
      identity: the run's identity there.
      named: the name of the setting of the project, for errors.
      **about: its name, settings and the like, as `wandb.init` has them.

    Raises:
      UserError: the library refuses, e.g. because nobody is logged in.
    """
    import wandb  # pyright: ignore[reportMissingImports]: optional

    try:
        return wandb.init(
            project=project,
            dir=folder,
            id=identity,
            resume="allow",
            settings=wandb.Settings(console="off"),
            **about,
        )
    except Exception as error:  # Of the library's own classes, which come and go.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{named} is {project!r}, but Weights & Biases cannot be used: {reason}; with "
            "WANDB_MODE=offline its files stay on this machine"
        ) from error


class Dashboard:
    """A run at Weights & Biases. All starts of a run are one run there.

    Args:
      project: the project.
      folder: the run's folder, which gives its name.
      record: the run's record, with its settings and starts.

    Raises:
      UserError: the library refuses, e.g. because nobody is logged in.
    """

    def __init__(self, project: str, folder: pathlib.Path, record: Mapping[str, Any]):
        began = record["starts"][0]["time"]
        self._project = project
        identity = hashlib.sha256(f"{folder.absolute()} {began}".encode()).hexdigest()[:16]
        settings = dict(record["configuration"])
        self._run = begun(project, folder, identity, name=folder.name, config=settings)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values by name. An error is said once and ends this, not the run."""
        if self._run is not None:
            try:
                self._run.log(dict(values), step=step)
            except Exception as error:
                logger.warning(
                    "no more values go to Weights & Biases (%s); metrics.jsonl has all",
                    str(error).partition("\n")[0] or type(error).__name__,
                )
                self._run = None

    def close(self) -> None:
        """Ends the run there; as a failed one while an exception is on its way."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish(exit_code=int(sys.exc_info()[0] is not None))
            except Exception as error:
                logger.warning("Weights & Biases: %s", str(error).partition("\n")[0])
