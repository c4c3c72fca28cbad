"""Reads a finished run, or an evaluation of a base, from its folder."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.architecture import config_from
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.tools.cost.counts import Shape, traced_flops

# Runs with equal settings are traced once.
_counted = functools.cache(traced_flops)

_RANDOM = "random weights"
# Replaces the method's name if a base was scored without an adapter.
FROZEN = "the frozen base"


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings and results of one run; scoring a base is a run with no steps.

    Attributes:
      path: its folder, as given.
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
      scores: each evaluated task's score, in percent; tasks without one are left out.
      metrics: each evaluated task's metrics, {"validation/accuracy": …}.
      curve: (step, {task: score}) of each evaluation.
      command: the command that started it.
    """

    path: str
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
    scores: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    command: str

    @property
    def label(self) -> str:
        """The method, its settings and examples, e.g. "lora, rank 4, layers 0, 16 examples"."""
        if self.method_name == FROZEN:
            return f"{FROZEN}, {self.in_context or 'no'} examples in context"
        few = "" if self.few_shot is None else f", {self.few_shot} examples"
        return method_label(self.method_name, self.method) + few

    @property
    def sharing(self) -> str:
        """How a mixture's tasks are adapted: "per task", "shared", or "" for a single task."""
        if len(self.tasks) < 2:
            return ""
        return "per task" if self.method.routes > 1 else "shared"

    @property
    def size(self) -> int | None:
        """The method's size, such as a rank; None for a method without one."""
        return self.method.size


def method_label(name: str, method: Method) -> str:
    """Returns a method's name with its size and the settings that differ from the defaults."""
    parts = [name]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        # The label describes the stored result, not how it was trained.
        if field.name == "routes" or field.name in method.training_only:
            continue
        if field.name == method.size_field or value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"{field.name} {shown}")
    return ", ".join(parts)


def read(folder: pathlib.Path) -> Run | None:
    """Reads a finished run or the evaluation of a base; returns None for that of an adapter.

    Raises:
      UserError: the folder holds neither, or its files are damaged.
    """
    try:
        record, results = (_json(folder / name) for name in ("run.json", "results.json"))
        evaluation = "adapter_path" in record.get("configuration", {})
        adapter, metrics = None, []
        if not evaluation:
            adapter = _json(folder / "adapter/adapter.json")
            lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            metrics = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        missing = pathlib.Path(str(error.filename)).name
        raise UserError(f"{folder} holds no finished run: {missing} is missing") from error
    except ValueError as error:
        raise UserError(f"{folder}: a file of the run is no JSON; it is damaged") from error
    try:
        if evaluation:
            without_adapter = record["configuration"]["adapter_path"] is None
            return _evaluation(folder, record, results) if without_adapter else None
        return _run(folder, record, results, adapter, metrics)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{folder}: not the record of a run ({error!r})") from error


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _outcome(record: Any, results: Any) -> dict[str, Any]:
    """Returns the fields that a run and an evaluation have in common."""
    path = record["configuration"].get("initial_checkpoint_path")
    name = pathlib.Path(path).name if path else _RANDOM
    return {
        "base": f"{name} ({record['base']['fingerprint'][:6]})" if path else _RANDOM,
        "mixture": record["data"]["name"],
        "seed": record["configuration"]["seed"],
        "scores": {
            task: result["score"]
            for task, result in results["tasks"].items()
            if result["score"] is not None
        },
        "metrics": {
            task: {
                f"{split}/{name}": value
                for split, content in result["splits"].items()
                for name, value in content["metrics"].items()
            }
            for task, result in results["tasks"].items()
        },
        "command": record["starts"][0]["command"],
    }


def _evaluation(folder: pathlib.Path, record: Any, results: Any) -> Run:
    return Run(
        path=folder.as_posix(),
        method_name=FROZEN,
        method=Method(),
        tasks=tuple(results["tasks"]),
        few_shot=None,
        in_context=record["configuration"]["in_context"],
        steps=0,
        learning_rate=None,
        stored=0,
        bytes=0,
        seconds=None,
        step_flops=None,
        curve=(),
        **_outcome(record, results),
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
    shape = Shape(configured["batch_size"], lengths["inputs"], lengths["targets"])
    curve = []
    for line in metrics:
        scores = {
            key.split("/")[1]: value
            for key, value in line.items()
            if key.startswith("eval/") and key.endswith("/score")
        }
        if scores:
            curve.append((line["step"], scores))
    return Run(
        path=folder.as_posix(),
        method_name=adapter["method"],
        method=method,
        tasks=tuple(task["name"] for task in record["data"]["tasks"]),
        few_shot=configured.get("few_shot"),
        in_context=0,
        steps=results["step"],
        learning_rate=_base_rate(configured["learning_rate"]),
        stored=sum(math.prod(entry["shape"]) for entry in adapter["tensors"].values()),
        bytes=(folder / "adapter/adapter.safetensors").stat().st_size,
        seconds=_seconds(record["starts"]),
        step_flops=_counted(config, method, shape).train,
        curve=tuple(curve),
        **_outcome(record, results),
    )


def _base_rate(schedule: Any) -> float | None:
    return schedule.get("base_learning_rate") if isinstance(schedule, Mapping) else None


def _seconds(starts: Any) -> float | None:
    times = [start.get("seconds") for start in starts]
    return None if None in times else sum(times)
