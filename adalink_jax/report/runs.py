"""A finished run, read from its folder."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints.architecture import config_from
from adalink_jax.cost.formulas import Shape, flops
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method

_RANDOM = "random weights"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run was and what came of it.

    Attributes:
      path: its folder, as it was given.
      base: name of the base's folder, with the first digits of its fingerprint.
      method_name: as in ``METHODS``.
      method: with its settings, as it is stored (without what only training needs).
      mixture: the task or mixture it was trained on.
      tasks: the mixture's tasks.
      few_shot: examples of each task that it was trained on; None for all.
      seed: of the run.
      steps: of training.
      stored: parameters in the adapter.
      step_flops: operations of a training step at the full lengths, by formula; None without one.
      scores: each evaluated task's score, in percent; tasks without one are left out.
      metrics: each evaluated task's metrics, {"validation/accuracy": …}.
      curve: (step, {task: score}) of each evaluation.
      command: that started it.
    """

    path: str
    base: str
    method_name: str
    method: Method
    mixture: str
    tasks: tuple[str, ...]
    few_shot: int | None
    seed: int
    steps: int
    stored: int
    step_flops: int | None
    scores: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]
    curve: tuple[tuple[int, Mapping[str, float]], ...]
    command: str

    @property
    def label(self) -> str:
        """The method, its settings and examples, e.g. "lora, rank 4, layers 0, 16 examples"."""
        few = "" if self.few_shot is None else f", {self.few_shot} examples"
        return method_label(self.method_name, self.method) + few

    @property
    def sharing(self) -> str:
        """How the tasks of a mixture are adapted: "per task", "shared", or "" for a single task."""
        if len(self.tasks) < 2:
            return ""
        return "per task" if getattr(self.method, "routes", 1) > 1 else "shared"

    @property
    def size(self) -> int | None:
        """Rank or prompt length; None for full fine-tuning."""
        return getattr(self.method, "rank", getattr(self.method, "length", None))


def method_label(name: str, method: Method) -> str:
    """A method's name with the settings in which it differs from its class's defaults."""
    parts = [name]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        # A stored prompt is the resulting one: how it was trained is no part of it.
        passing = ("routes", "dropout_rate", "reparameterise", "bottleneck", "initialisation")
        if field.name in passing:
            continue
        if field.name in ("rank", "length") or value != field.default:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            parts.append(f"{field.name} {shown}")
    return ", ".join(parts)


def read(folder: pathlib.Path) -> Run:
    """Reads a finished run.

    Raises:
      UserError: the folder holds no finished run, or its files are damaged.
    """
    try:
        record, results, adapter = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("run.json", "results.json", "adapter/adapter.json")
        )
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
    except FileNotFoundError as error:
        missing = pathlib.Path(str(error.filename)).name
        raise UserError(f"{folder} holds no finished run: {missing} is missing") from error
    except ValueError as error:
        raise UserError(f"{folder}: a file of the run is no JSON; it is damaged") from error
    try:
        return _run(folder, record, results, adapter, metrics)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{folder}: not the record of a run ({error!r})") from error


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
    counted = flops(config, method, shape)
    path = configured.get("initial_checkpoint_path")
    name = pathlib.Path(path).name if path else _RANDOM
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
        base=f"{name} ({record['base']['fingerprint'][:6]})" if path else _RANDOM,
        method_name=adapter["method"],
        method=method,
        mixture=record["data"]["name"],
        tasks=tuple(task["name"] for task in record["data"]["tasks"]),
        few_shot=configured.get("few_shot"),
        seed=configured["seed"],
        steps=results["step"],
        stored=sum(math.prod(entry["shape"]) for entry in adapter["tensors"].values()),
        step_flops=counted and counted.train,
        scores={
            task: result["score"]
            for task, result in results["tasks"].items()
            if result["score"] is not None
        },
        metrics={
            task: {
                f"{split}/{name}": value
                for split, content in result["splits"].items()
                for name, value in content["metrics"].items()
            }
            for task, result in results["tasks"].items()
        },
        curve=tuple(curve),
        command=record["starts"][0]["command"],
    )
