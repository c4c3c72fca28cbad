"""A run's folder: what the run is, what it measured, and whether it may go on here."""

import datetime
import json
import os
import pathlib
import platform
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

# A run may go on with other values of these: they say where things are, how far to go, or by which
# program the same function is computed; contents are compared by fingerprint.
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
    """MODEL_DIR of one training run.

    ``config.gin`` is the resolved configuration; ``run.json`` says what ran where; lines of
    ``metrics.jsonl`` hold no clock value and no path, so that equal runs give equal bytes; times
    go to TensorBoard. Only the first process of a multi-host run writes.

    Attributes:
      path: the folder.
      writes: whether this process writes.
      contents: what the run is, by part, as it was given to `claim`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Makes the folder.

        Raises:
          UserError: it cannot be made or written, or is a URL.
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
        """The content of ``run.json``, None in a new folder."""
        path = self.path / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def claim(self, part: str, given: Mapping[str, Any]) -> None:
        """Says what a part of the run is, for ``run.json``.

        Args:
          part: "configuration", "data" or "base", a key of ``run.json``.
          given: its value now.

        Raises:
          UserError: the folder holds a run of which this part was otherwise.
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
        """Whether the folder holds this run's results after `train_steps` steps.

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
          step: steps done at the start.
        """
        if not self.writes:
            return
        self._started = time.monotonic()
        self.write_record(config_text, step)
        self._cut_metrics(step)
        # Only a run needs it: the maths works on machines without it.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def write_record(self, config_text: str, step: int) -> None:
        """Writes ``config.gin`` and ``run.json``: what was claimed, and this start among others."""
        before = self.record() or {}
        start = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "command": " ".join(sys.argv),
            **code(),
            "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
        }
        run = {**self.contents, "starts": [*before.get("starts", []), start]}
        files.write_text(self.path / "config.gin", config_text)
        self.write_json("run.json", run)

    def record_seconds(self) -> None:
        """Writes into ``run.json`` how long this start took until now."""
        record = self.record()
        if self.writes and record:
            record["starts"][-1]["seconds"] = round(time.monotonic() - self._started, 1)
            self.write_json("run.json", record)

    def _cut_metrics(self, step: int) -> None:
        """Keeps the lines of steps up to this one; a line cut off by a kill goes too."""
        path = self.path / "metrics.jsonl"
        kept = []
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        files.write_text(path, b"".join(kept).decode())
        self._metrics = path.open("a", encoding="utf-8")

    def log(
        self, step: int, values: Mapping[str, float], times: Mapping[str, float] | None = None
    ) -> None:
        """Adds one line to the metrics, and the same to TensorBoard with the times.

        Args:
          step: steps done.
          values: by name; the same in equal runs.
          times: what a clock measured, for TensorBoard alone.
        """
        if self._metrics is None or self._board is None:
            return
        with files.writing(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
        for name, value in {**values, **(times or {})}.items():
            self._board.add_scalar(name, value, step)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file, whole or not at all."""
        text = json.dumps(content, indent=1, sort_keys=True)
        files.write_text(self.path / name, text + "\n")

    def sync(self) -> None:
        """Puts the metrics on disk, so that no checkpoint outlives lines from before it."""
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
    """A nested record by dotted names, without paths and what may change while a run goes on."""
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
    """What runs here: git revision and versions."""
    return {
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"adalink_jax": adalink_jax.__version__}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_revision() -> str | None:
    """The checkout's revision, with "+" where files differ from it; None outside a checkout."""
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
