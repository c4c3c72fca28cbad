"""A run's folder: its record, its metrics, and the check that a run may resume in it."""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax

import adalink_jax
from adalink_jax import files
from adalink_jax.checkpoints import load_adapter
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.runs.board import Board
from adalink_jax.runs.dashboard import Dashboard
from adalink_jax.runs.metrics import Metrics

# A run may be resumed with other values of these. They say where files are, how far to train, or
# which program computes the same function. Contents are compared by fingerprint.
_FREE = (
    "train_steps",
    "model_dir",
    "initial_checkpoint_path",
    "initial_adapter_path",
    "table_path",
    "table_dev",
    "cache_dir",
    "image_encoder",
    "image_folder",
    "image_stored",
    "keep_checkpoints",
    "eval_at_start",
    "scan_layers",
    "remat",
    "attention",
    "model_parallelism",
    "fully_sharded",
    "slices",
    "devices",
    "wandb",
)
# Nor can these change what a run ends with; the last only where its evaluations do not choose that
# (KEEP).
_WATCHING = ("checkpoint_period", "log_period", "train_examples", "eval_period")
_METRICS, _RESULTS, _ADAPTER = "metrics.jsonl", "results.json", "adapter/adapter.safetensors"
_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy")


class RunFolder:
    """The folder (MODEL_DIR) of one training run, held for it until `close`.

    ``config.gin`` is the resolved configuration. ``run.json`` records what ran where, with digests
    of the other files. Lines of ``metrics.jsonl`` contain no times and no paths, so that equal runs
    write equal bytes; times go to TensorBoard. Only the first process of a multi-host run writes.

    Attributes:
      path: the folder.
      writes: whether this process writes.
      contents: the parts of the run's record that were given to `claim`.
    """

    def __init__(self, path: str | os.PathLike[str], name: str = "MODEL_DIR"):
        """Creates the folder and holds it.

        Args:
          path: the folder.
          name: the name of its setting, for errors.

        Raises:
          UserError: another run holds it; it cannot be created or written, or is a URL.
        """
        self.path = files.local_path(path)
        self.writes = jax.process_index() == 0
        self.contents: dict[str, Any] = {}
        self._name = name
        self._open = contextlib.ExitStack()
        self._metrics: Metrics | None = None
        self._boards: list[Board | Dashboard] = []
        self._record: dict[str, Any] = {}
        self._started = time.monotonic()
        self._check_held: Callable[[], None] = lambda: None
        if self.writes:
            self._check_held = self._open.enter_context(files.held(self.path, name))

    def record(self) -> dict[str, Any] | None:
        """Returns the content of ``run.json``; None in a new folder.

        Raises:
          UserError: it cannot be read, or is not the record of a run.
        """
        path = self.path / "run.json"
        try:
            record = files.read_json(path)
        except FileNotFoundError:
            return None
        parts = [record.get(part, {}) for part in ("configuration", "base", "data", "files")]
        starts = record.get("starts")
        if not (isinstance(starts, list) and all(isinstance(x, dict) for x in (*parts, *starts))):
            raise UserError(f"{path} is damaged: not the record of a run")
        return record

    def claim(self, part: str, given: Mapping[str, Any]) -> None:
        """Sets a part of the run's record, after comparing it with an earlier run in the folder.

        Args:
          part: "configuration", "data" or "base", a key of ``run.json``.
          given: its value in this run.

        Raises:
          UserError: the folder holds a run with another value of this part.
        """
        self.contents[part] = json.loads(json.dumps(given))
        record = self.record()
        if record is None:
            if others := [name for name in ("checkpoints", "adapter") if _holds(self.path / name)]:
                raise UserError(
                    f"{self._name} {self.path} holds {others[0]} but no run.json, so what made it "
                    f"is unknown; use another {self._name}"
                )
            return
        earlier = _with_later_settings(record.get(part, {}), self.contents[part])
        before, now = comparable(earlier), comparable(given)
        free = _WATCHING if now.get("keep") is None else _WATCHING[:-1]
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name not in free
        ]
        if changed:
            more = f" (and {len(changed) - 2} more)" if len(changed) > 2 else ""
            raise UserError(
                f"{self._name} {self.path} holds a run of another {part}: "
                f"{'; '.join(changed[:2])}{more}; set it back to go on with that run, or use "
                f"another {self._name}"
            )

    def is_finished(self, train_steps: int) -> bool:
        """Returns whether the folder holds this run's results after all its steps.

        These are `train_steps`, or fewer if it stopped early. If it was killed before it recorded
        digests of its outcome, they are recorded now.

        Raises:
          UserError: it holds the results of more steps; or they, or what was written with them,
            are damaged or missing.
        """
        path, record = self.path / _RESULTS, self.record() or {}
        digests = record.get("files", {})
        try:
            results = files.read_json(path)
        except FileNotFoundError:
            return False
        self._check_outcome({name: digests[name] for name in digests if name == _RESULTS})
        step = results.get("step")
        if type(step) is not int:
            raise UserError(f"{path} is damaged: step is {step!r}")
        if step > train_steps:
            raise UserError(
                f"TRAIN_STEPS is {train_steps}, but MODEL_DIR {self.path} holds the results of "
                f"{step} steps"
            )
        finished = step == train_steps or results.get("stopped_early") is True
        if finished:
            self._check_outcome(digests)
            if _ADAPTER not in digests:
                load_adapter(self.path / "adapter")
                if digests:  # No earlier version's: it was killed before these were written.
                    self._record = {k: v for k, v in record.items() if k != "files"}
                    self.record_outcome()
        return finished

    def _check_outcome(self, digests: Mapping[str, Any]) -> None:
        try:
            files.check_digests(self.path, digests)
        except UserError as error:
            raise UserError(
                f"{error}; the run is finished: without its results.json, the same command goes on "
                "from the last checkpoint and writes its outcome anew"
            ) from error

    def start(self, config_text: str, step: int, project: str | None = None) -> None:
        """Writes ``config.gin`` and ``run.json``; cuts the metrics back to the restored step.

        Args:
          config_text: the resolved configuration as gin.
          step: number of steps finished before this start.
          project: the project at Weights & Biases that gets the values, too; None for none.

        Raises:
          UserError: the metrics up to that step are damaged; or the project cannot be used.
        """
        if not self.writes:
            return
        self._started = time.monotonic()
        digests = (self.record() or {}).get("files", {})
        metrics = Metrics(self.path / _METRICS, digests.get(_METRICS), step)
        self._metrics = self._open.enter_context(contextlib.closing(metrics))
        # The record is first, so that it never speaks of more lines than there are.
        self.write_record(config_text, step)
        self._metrics.open()
        board = Board(self.path / "tensorboard", step + 1 if step else 0)
        self._boards.append(self._open.enter_context(contextlib.closing(board)))
        if project is not None:
            dashboard = Dashboard(project, self.path, self._record)
            self._boards.append(self._open.enter_context(contextlib.closing(dashboard)))

    def write_record(self, config_text: str, step: int) -> None:
        """Writes ``config.gin`` and ``run.json``: the claimed parts, and all starts of the run."""
        before = self.record() or {}
        start = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "command": shlex.join(sys.argv),
            **code(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
        }
        self._record = {**self.contents, "starts": [*before.get("starts", []), start]}
        files.write_text(self.path / "config.gin", config_text)
        self._write_run()

    def _write_run(self, *outcome: pathlib.Path) -> None:
        """Writes ``run.json``, with digests of the metrics so far and of other files."""
        self._check_held()
        digests = {p.relative_to(self.path).as_posix(): files.digest(p) for p in outcome}
        if self._metrics is not None:
            digests[_METRICS] = self._metrics.digest()
        elif earlier := (self.record() or {}).get("files", {}).get(_METRICS):
            digests[_METRICS] = earlier
        files.write_sealed(self.path / "run.json", {**self._record, "files": digests})

    def record_seconds(self) -> None:
        """Writes the seconds since this start into ``run.json``."""
        if self.writes:
            self._record["starts"][-1]["seconds"] = round(time.monotonic() - self._started, 1)
            self._write_run()

    def record_outcome(self) -> None:
        """Writes digests of results, predictions, submission and adapter into ``run.json``."""
        if self.writes:
            parts = ("predictions/*.jsonl", "submission/*.tsv", "adapter/*")
            below = [file for part in parts for file in self.path.glob(part)]
            self._write_run(self.path / _RESULTS, *below)

    def log(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float] | None = None
    ) -> None:
        """Adds a line to the metrics, and writes values and times to TensorBoard.

        Args:
          step: number of finished steps.
          values: values by name; equal in equal runs.
          times: measured times by name; only written to TensorBoard.
        """
        if self._metrics is None:
            return
        self._check_held()
        self._metrics.write({"step": step, **values})
        for board in self._boards:
            board.add(step, {**values, **(times or {})})

    def sync(self) -> None:
        """Flushes the metrics to disk with their digest, before the next checkpoint is there."""
        if self._metrics is not None:
            self._metrics.sync()
            self._write_run()

    def close(self) -> None:
        """Closes the metrics and the TensorBoard file, and lets go of the folder."""
        self._open.close()


def _holds(folder: pathlib.Path) -> bool:
    """Returns whether there is anything in a folder. A kill can leave an empty one."""
    return folder.is_dir() and any(folder.iterdir())


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a record to dotted names, without the settings that a resumed run may change."""
    flat: dict[str, Any] = {}

    def visit(value: Any, names: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                visit(item, (*names, str(name)))
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                visit(item, (*names, str(index)))
        elif names[-1] not in _FREE:
            flat[".".join(names)] = value

    visit(json.loads(json.dumps(tree)), ())
    return flat


def _with_later_settings(before: Any, now: Any) -> Any:
    """Returns a record with the methods' settings that its version did not have yet.

    They have their defaults, which are what was done before there was a choice.

    Args:
      before: the record of an earlier version, or a part of it.
      now: this run's, which names the class of each object under "@".
    """
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [_with_later_settings(*one) for one in zip(before, now, strict=True)]
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return before
    known = {name: _with_later_settings(item, now.get(name)) for name, item in before.items()}
    kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in METHODS.values()}
    kind = kinds.get(now.get("@", ""))
    if kind is None or now.get("@") != before.get("@"):
        return known
    later = [f for f in dataclasses.fields(kind) if f.name in now and f.name not in before]
    return {
        **known,
        **{f.name: f.default for f in later if f.default is not dataclasses.MISSING},
    }


def code() -> dict[str, Any]:
    """Returns the git revision and the versions that run here."""
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"adalink_jax": adalink_jax.__version__}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git_revision() -> str | None:
    """Returns the checkout's revision, with "+" if files differ; None outside a checkout."""
    root = pathlib.Path(adalink_jax.__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
