"""A run's folder: its record, its metrics, and the check that a run may resume in it."""

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

import adalink_jax
from adalink_jax import files
from adalink_jax.errors import UserError

# A run may be resumed with other values of these. They say where files are, how far to train, or
# which program computes the same function. Contents are compared by fingerprint.
_FREE = (
    "train_steps",
    "model_dir",
    "initial_checkpoint_path",
    "cache_dir",
    "keep_checkpoints",
    "scan_layers",
    "remat",
    "model_parallelism",
    "fully_sharded",
    "slices",
    "devices",
)
_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "numpy")


class RunFolder:
    """The folder (MODEL_DIR) of one training run.

    ``config.gin`` is the resolved configuration. ``run.json`` records what ran where. Lines of
    ``metrics.jsonl`` contain no times and no paths, so that equal runs write equal bytes; times go
    to TensorBoard. Only the first process of a multi-host run writes.

    Attributes:
      path: the folder.
      writes: whether this process writes.
      contents: the parts of the run's record that were given to `claim`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Creates the folder.

        Raises:
          UserError: it cannot be created or written, or is a URL.
        """
        self.path = files.local_path(path)
        self.writes = jax.process_index() == 0
        self.contents: dict[str, Any] = {}
        self._metrics = None
        self._board: Any = None
        self._started = time.monotonic()
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.writes:
                probe = self.path / ".writable"
                probe.write_text("")
                probe.unlink()

    def record(self) -> dict[str, Any] | None:
        """Returns the content of ``run.json``; None in a new folder."""
        path = self.path / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

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
            others = [p.name for p in self.path.iterdir() if p.name in ("checkpoints", "adapter")]
            if others:
                raise UserError(
                    f"MODEL_DIR {self.path} holds {others[0]} but no run.json, so what made it is "
                    "unknown; use another MODEL_DIR"
                )
            return
        before, now = comparable(record.get(part, {})), comparable(given)
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            more = f" (and {len(changed) - 2} more)" if len(changed) > 2 else ""
            raise UserError(
                f"MODEL_DIR {self.path} holds a run of another {part}: {'; '.join(changed[:2])}"
                f"{more}; set it back to go on with that run, or use another MODEL_DIR"
            )

    def is_finished(self, train_steps: int) -> bool:
        """Returns whether the folder holds this run's results after `train_steps` steps.

        Raises:
          UserError: it holds the results of more steps.
        """
        try:
            results = json.loads((self.path / "results.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / 'results.json'} cannot be read: {error}") from error
        if results.get("step", 0) > train_steps:
            raise UserError(
                f"TRAIN_STEPS is {train_steps}, but MODEL_DIR {self.path} holds the results of "
                f"{results['step']} steps"
            )
        return results.get("step") == train_steps

    def start(self, config_text: str, step: int) -> None:
        """Writes ``config.gin`` and ``run.json``; cuts the metrics back to the restored step.

        Args:
          config_text: the resolved configuration as gin.
          step: number of steps finished before this start.
        """
        if not self.writes:
            return
        self._started = time.monotonic()
        self.write_record(config_text, step)
        self._cut_metrics(step)
        # Imported here because only a run needs it.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

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
        run = {**self.contents, "starts": [*before.get("starts", []), start]}
        files.write_text(self.path / "config.gin", config_text)
        self.write_json("run.json", run)

    def record_seconds(self) -> None:
        """Writes the seconds since this start into ``run.json``."""
        record = self.record()
        if self.writes and record:
            record["starts"][-1]["seconds"] = round(time.monotonic() - self._started, 1)
            self.write_json("run.json", record)

    def _cut_metrics(self, step: int) -> None:
        """Removes lines of later steps, and a last line that is incomplete after a kill."""
        path = self.path / "metrics.jsonl"
        lines = []
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            lines.append(line)
        files.write_text(path, b"".join(lines).decode())
        self._metrics = path.open("a", encoding="utf-8")

    def log(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float] | None = None
    ) -> None:
        """Adds a line to the metrics, and writes values and times to TensorBoard.

        Args:
          step: number of finished steps.
          values: values by name; equal in equal runs.
          times: measured times by name; only written to TensorBoard.
        """
        if self._metrics is None or self._board is None:
            return
        with files.writing(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
        for name, value in {**values, **(times or {})}.items():
            self._board.add_scalar(name, value, step)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file atomically."""
        text = json.dumps(content, indent=1, sort_keys=True)
        files.write_text(self.path / name, text + "\n")

    def sync(self) -> None:
        """Flushes the metrics to disk, so that they are there before the next checkpoint is."""
        if self._metrics is not None:
            with files.writing(self.path / "metrics.jsonl"):
                self._metrics.flush()
                os.fsync(self._metrics.fileno())

    def close(self) -> None:
        """Closes the metrics and the TensorBoard file."""
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()


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
