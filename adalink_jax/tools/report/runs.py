"""Reads a finished run, or an evaluation of a base, from its folder."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from adalink_jax.checkpoints.architecture import config_from
from adalink_jax.errors import UserError
from adalink_jax.files import check_digests, read_json
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.tools.cost.counts import Shape, traced_step_flops

# Runs with equal settings are traced once.
_counted = functools.cache(traced_step_flops)

_READ = ("results.json", "metrics.jsonl", "adapter/adapter.json")
_RANDOM = "random weights"
# Replaces the method's name if a base was scored without an adapter.
FROZEN = "the frozen base"

# Recorded settings that cannot change a result, or are a field of `Run`; so are all names that end
# as paths do. Every other setting tells runs apart, also one that this module has never seen.
_INCIDENTAL = frozenset(
    {
        "attention", "checkpoint_period", "devices", "eval_at_start", "eval_batch_size",
        "eval_period", "fully_sharded", "keep_checkpoints", "log_period", "mixture_or_task_name",
        "model", "model_parallelism", "remat", "scan_layers", "seed", "slices", "train_examples",
        "train_steps", "wandb",
    }
)  # fmt: skip
_PATHS = ("_path", "_dir", "_file")


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one run reached on one task.

    Attributes:
      score: in percent; None for a task without metrics.
      metrics: {"validation/accuracy": …}.
      examples: number of scored examples of each split.
      truncated: number of inputs of each split that were longer than the configured length.
      absent: evaluation splits that the task's source lacks.
      scored_by: the metric that is the score; None for the mean of all.
    """

    score: float | None
    metrics: Mapping[str, float | None]
    examples: Mapping[str, int]
    truncated: Mapping[str, int]
    absent: tuple[str, ...]
    scored_by: str | None = None

    @property
    def counted(self) -> list[str]:
        """The metrics that make the score."""
        return [n for n in self.metrics if self.scored_by in (None, n.rpartition("/")[2])]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Settings and results of one run; scoring a base is a run with no steps.

    Attributes:
      path: its folder, as given.
      digest: a hash of its record and results, which a copy of the folder shares.
      started: when it was first started, as ISO 8601; "" if the record does not say.
      code: the revision and the versions that its last start ran.
      base: name of the base's folder, with the first digits of its fingerprint.
      method_name: a name in ``METHODS``; `FROZEN` for a base without an adapter.
      method: the method with its settings, as stored (without what only training needs).
      mixture: the task or mixture it was trained or scored on.
      tasks: the mixture's tasks.
      few_shot: number of training examples per task; None for all.
      in_context: number of examples in front of each input.
      seed: the run's seed.
      steps: training steps.
      learning_rate: the schedule's base rate; None for a schedule without one.
      stored: number of parameters in the adapter.
      bytes: size of the file with the adapter's arrays.
      seconds: wall-clock time of training with compilation and evaluations; None if a start of
        the run was cut off before it recorded its time.
      step_flops: FLOPs of a training step at the full lengths; None without training.
      results: what it reached on each task.
      settings: what else is recorded and may change a result, as JSON by dotted name: neither
        seed, nor task, nor paths.
      data: a digest of each task's data, as far as it does not depend on the seed.
      curve: (step, {task: score}) of each evaluation.
      command: the command that started it.
      watched: the splits that the curve is of, if they are not those that are reported.
    """

    path: str
    digest: str
    started: str
    code: str
    base: str
    method_name: str
    method: Method
    mixture: str
    tasks: tuple[str, ...]
    few_shot: int | None
    in_context: int
    seed: int
    steps: int
    learning_rate: float | None
    stored: int
    bytes: int
    seconds: float | None
    step_flops: int | None
    results: Mapping[str, Scored]
    settings: Mapping[str, str]
    data: Mapping[str, str]
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    command: str
    watched: str = ""

    @property
    def scores(self) -> dict[str, float]:
        """Each task's score, in percent; tasks without one are left out."""
        found = ((task, result.score) for task, result in self.results.items())
        return {task: score for task, score in found if score is not None}

    @property
    def recipe(self) -> str:
        """The last file of methods/ in its command, where that is not named as the method is.

        A recipe is a method with settings (houlsby.gin), or several methods together (mam.gin).
        """
        files = re.findall(r"--gin_file[= ][^=]*?\bmethods/([\w-]+)\.gin", self.command)
        return files[-1] if files and files[-1] != self.method_name else ""

    @property
    def sharing(self) -> str:
        """How a mixture's tasks are adapted: "per task", "shared", or "" for a single task."""
        if len(self.tasks) < 2:
            return ""
        return "per task" if self.method.routes > 1 else "shared"

    @property
    def alone(self) -> bool:
        """Whether it was trained and scored on one task and nothing else."""
        return len({*self.tasks, *self.results}) == 1

    @property
    def size(self) -> int | None:
        """The method's size, such as a rank; None for a method without one."""
        return self.method.size


def read(folder: pathlib.Path) -> Run | None:
    """Reads a finished run or the evaluation of a base; returns None for that of an adapter.

    Predictions may have been deleted. That is said on stderr.

    Raises:
      UserError: the folder holds neither, or its files are damaged.
    """
    try:
        record, results = (read_json(folder / name) for name in ("run.json", "results.json"))
        digests = record.get("files", {})
        check_digests(folder, {name: digests[name] for name in digests if _is_read(folder, name)})
        for name in digests:
            if name.startswith("predictions/") and not (folder / name).exists():
                note = "is gone, so its scores have no interval over examples"
                print(f"{folder / name} {note}", file=sys.stderr)
        if "adapter_path" in record["configuration"]:
            without_adapter = record["configuration"]["adapter_path"] is None
            return _evaluation(folder, record, results) if without_adapter else None
        adapter = read_json(folder / "adapter/adapter.json")
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return _run(folder, record, results, adapter, [json.loads(line) for line in lines])
    except FileNotFoundError as error:
        missing = pathlib.Path(str(error.filename)).name
        raise UserError(f"{folder} holds no finished run: {missing} is missing") from error
    except ValueError as error:
        raise UserError(f"{folder}: a file of the run is no JSON; it is damaged") from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{folder}: not the record of a run ({error!r})") from error


def _is_read(folder: pathlib.Path, name: str) -> bool:
    """Whether a file of a run's record is read; predictions are only if they are still there."""
    return name in _READ or name.startswith("predictions/") and (folder / name).exists()


def _bytes(folder: pathlib.Path, record: Any) -> int:
    """Returns the size of the adapter's arrays, which are not read: they may be a whole model."""
    name = "adapter/adapter.safetensors"
    size = (folder / name).stat().st_size
    recorded = record.get("files", {}).get(name, {}).get("bytes", size)
    if size != recorded:
        raise UserError(f"{folder / name} is damaged: {size:,} bytes, where {recorded:,} were made")
    return size


def _outcome(folder: pathlib.Path, record: Any, results: Any) -> dict[str, Any]:
    """Returns the fields that a run and an evaluation have in common."""
    path = record["configuration"].get("initial_checkpoint_path")
    name = pathlib.Path(path).name if path else _RANDOM
    last = record["starts"][-1]
    return {
        "path": folder.as_posix(),
        "digest": _digest([record, results]),
        "started": record["starts"][0].get("time", ""),
        "code": _digest([last.get(name) for name in ("git_revision", "python", "versions")]),
        "base": f"{name} ({record['base']['fingerprint'][:6]})" if path else _RANDOM,
        "mixture": record["data"]["name"],
        "results": {task: _scored(result) for task, result in results["tasks"].items()},
        "command": record["starts"][0]["command"],
    }


def _scored(result: Any) -> Scored:
    splits = result["splits"].items()
    return Scored(
        score=_number(result["score"]),
        metrics={
            f"{split}/{name}": _number(value)
            for split, content in splits
            for name, value in content["metrics"].items()
        },
        examples={split: content.get("examples", 0) for split, content in splits},
        truncated={split: content.get("truncated_inputs", 0) for split, content in splits},
        absent=tuple(result.get("absent_splits", ())),
        scored_by=result.get("scored_by"),
    )


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{value!r} is no score")
    return value


def _evaluation(folder: pathlib.Path, record: Any, results: Any) -> Run:
    in_context = record["configuration"]["in_context"]
    evaluated = record["data"].get("evaluated", {})
    return Run(
        method_name=FROZEN,
        method=Method(),
        tasks=tuple(results["tasks"]),
        few_shot=None,
        in_context=in_context,
        seed=record["configuration"]["seed"] if in_context else 0,  # It only chooses these.
        steps=0,
        learning_rate=None,
        stored=0,
        bytes=0,
        seconds=None,
        step_flops=None,
        settings=_settings(record, steps=0),
        # The seed chooses what stands in front of an input.
        data={
            task: _digest(_unseeded(splits, in_context > 0)) for task, splits in evaluated.items()
        },
        curve=(),
        **_outcome(folder, record, results),
    )


def _run(folder: pathlib.Path, record: Any, results: Any, adapter: Any, metrics: Any) -> Run:
    configured = record["configuration"]
    config = config_from(adapter["architecture"], str(folder))
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in adapter["settings"].items()
    }
    method = METHODS[adapter["method"]](**settings)
    lengths = record["data"]["lengths"]
    images = record["data"].get("image_encoder", {}).get("tokens", 0)
    targets = record["data"].get("packed_targets", lengths["targets"])
    shape = Shape(configured["batch_size"], lengths["inputs"], targets, images)
    few_shot = configured.get("few_shot")
    # The step at which a run stopped early differs from seed to seed.
    early = results.get("stopped_early", False)
    allowed = configured["train_steps"] if early else results["step"]
    return Run(
        method_name=adapter["method"],
        method=method,
        tasks=tuple(task["name"] for task in record["data"]["tasks"]),
        few_shot=few_shot,
        in_context=0,
        seed=configured["seed"],
        steps=results["step"],
        learning_rate=_base_rate(configured["learning_rate"]),
        stored=sum(math.prod(entry["shape"]) for entry in adapter["tensors"].values()),
        bytes=_bytes(folder, record),
        seconds=_seconds(record["starts"]),
        step_flops=_counted(config, method, shape),
        settings={
            **{f"method.{name}": json.dumps(value) for name, value in settings.items()},
            **_settings(record, steps=allowed),
        },
        data={
            task["name"]: _digest(_unseeded(task, few_shot is not None))
            for task in record["data"]["tasks"]
        },
        curve=tuple(_curve(metrics)),
        watched=_watched(metrics, results),
        **_outcome(folder, record, results),
    )


def _curve(metrics: Any) -> Iterator[tuple[int, dict[str, float]]]:
    for line in metrics:
        scores = {
            key.split("/")[1]: value
            for key, value in line.items()
            if key.startswith("eval/") and key.endswith("/score")
        }
        if scores:
            yield line["step"], scores


def _watched(metrics: Any, results: Any) -> str:
    """Returns the splits that were scored while training, if they are others than the results'."""
    keys = [key.split("/") for line in metrics for key in line if key.startswith("eval/")]
    watched = {(key[1], key[2]) for key in keys if len(key) > 3}
    reported = {(task, split) for task, one in results["tasks"].items() for split in one["splits"]}
    return ", ".join(sorted({split for _, split in watched - reported}))


def _settings(record: Any, steps: int) -> dict[str, str]:
    """Returns what can change a result, as JSON by dotted name; see `Run.settings`."""
    # The fingerprint of random weights depends on the seed.
    base = dict(record["base"])
    if record["configuration"].get("initial_checkpoint_path") is None:
        base.pop("fingerprint")
    else:
        base.pop("architecture", None)  # It is the fingerprint's.
    chooses = record["configuration"].get("keep") is not None
    parts = {
        "": record["configuration"],
        # Where the best step is kept, it is one of those that are evaluated.
        "keep": {"eval_period": record["configuration"].get("eval_period")} if chooses else None,
        "base": base,
        "data": {"vocabulary": record["data"].get("vocabulary")},
        "steps": steps,
    }
    flat = dict(_flattened(parts, ()))
    return {name: value for name, value in flat.items() if value != "null"}


def _flattened(value: Any, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            if not (name.endswith(_PATHS) or not names and name in _INCIDENTAL):
                yield from _flattened(item, (*names, name) if name else names)
    else:
        yield ".".join(names), json.dumps(value, sort_keys=True)


def _unseeded(data: Any, chosen_by_seed: bool) -> Any:
    """Returns a record of data without what truncation or, where it chose them, a seed changes."""
    if not isinstance(data, Mapping):
        return data
    # What preprocessors draw at random is another draw for each seed.
    chosen_by_seed = chosen_by_seed or "drawn" in data
    left_out = {"truncated", *(("drawn", "sha256", "seed") if chosen_by_seed else ())}
    return {
        name: value if name == "source" else _unseeded(value, chosen_by_seed)
        for name, value in data.items()
        if name not in left_out
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _base_rate(schedule: Any) -> float | None:
    return schedule.get("base_learning_rate") if isinstance(schedule, Mapping) else None


def _seconds(starts: Any) -> float | None:
    times = [start.get("seconds") for start in starts]
    return None if None in times else sum(times)
