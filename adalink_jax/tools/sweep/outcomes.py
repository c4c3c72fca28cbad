"""What a run's folder says of it: scores, predictions, and how many parameters it has."""

import functools
import json
import pathlib
from collections.abc import Sequence

from adalink_jax import files


def score(folder: pathlib.Path, task: str) -> float:
    """Returns a run's score on a task."""
    return files.read_json(folder / "results.json")["tasks"][task]["score"]


def trained(folder: pathlib.Path) -> int:
    """Returns the number of parameters of a run's adapter."""
    tensors = files.read_json(folder / "adapter/adapter.json")["tensors"]
    return sum(functools.reduce(int.__mul__, one["shape"], 1) for one in tensors.values())


def predictions(folder: pathlib.Path, task: str) -> list[dict]:
    """Returns what a run predicted for a task: `inputs`, `target` and `prediction` of each row."""
    found: list[dict] = []
    for path in sorted((folder / "predictions").glob(f"{task}-*.jsonl")):  # One for each split.
        # Not `splitlines`: texts may hold other separators of lines, such as U+2028.
        found += map(json.loads, path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    return found


def compared(before: Sequence[dict], after: Sequence[dict]) -> dict[str, int]:
    """Counts what was wrong before, what of that is right now, what is right now, and all."""
    wrong = [i for i, one in enumerate(before) if not is_right(one)]
    mended = sum(is_right(after[i]) for i in wrong)
    right = sum(map(is_right, after))
    return {"wrong": len(wrong), "mended": mended, "right": right, "count": len(after)}


def is_right(prediction: dict) -> bool:
    """Returns whether a prediction is the target."""
    return prediction["prediction"] == prediction["target"]
