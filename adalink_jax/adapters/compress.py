"""Compresses an adapter to two bits a parameter (ComPEFT, Yadav et al. 2023, arXiv 2311.13171).

Of all numbers of a route, the share `density` with the largest magnitudes is kept, and each of
these becomes ±scale · σ, where σ is the standard deviation of all of them. Density and scale are
chosen by the score on a task, as the authors do on validation data, or given.
"""

import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from adalink_jax.adapters.load import adapter_folder, load_adaptation
from adalink_jax.adapters.texts import vocabulary_of
from adalink_jax.checkpoints import Adapter, load_adapter, save_adapter
from adalink_jax.checkpoints.adapters import TENSORS
from adalink_jax.data import own
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Params, merge

# The authors' grids.
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
# Lengths in tokens where an adapter does not record those of its training.
_LENGTHS = {"inputs": 512, "targets": 62}
_BATCH_SIZE = 64


def compressed(tree: Params, density: float, scale: float) -> dict[str, Any]:
    """Returns the tree with numbers −s, 0 and s, with one s for each route.

    Args:
      tree: an adapter's tree, whose leaves have the axis of routes.
      density: the share of numbers that are kept.
      scale: s in standard deviations (with N − 1) of a route's numbers.
    """
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(tree), sep="/")
    arrays = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}
    routes = len(next(iter(arrays.values())))
    made = {name: np.zeros_like(array) for name, array in arrays.items()}
    for route in range(routes):
        vector = np.concatenate([array[route].ravel() for array in arrays.values()])
        order = np.argsort(-np.abs(vector), kind="stable")
        signs = np.zeros_like(vector)
        kept = order[: int(density * vector.size)]
        signs[kept] = np.sign(vector[kept]) * np.float32(scale * np.std(vector, ddof=1))
        start = 0
        for name, array in arrays.items():
            stop = start + array[route].size
            made[name][route] = signs[start:stop].reshape(array[route].shape)
            start = stop
    return traverse_util.unflatten_dict(made, sep="/")


def compress(
    adapter: str,
    to: str,
    density: Sequence[float],
    scale: Sequence[float],
    base: str | None,
    task: str | None,
    data: str | None = None,
) -> int:
    """Writes a compressed adapter, which loads like any other.

    Args:
      adapter: an adapter's folder or its run's.
      to: the folder to write; it must not exist.
      density: shares of the numbers that are kept; the best is taken.
      scale: values of the others in standard deviations; the best is taken.
      base: the base it was trained on; needed to choose.
      task: the task whose score chooses; None if there is only one density and scale.
      data: in the place of a task, a table that the adapter has not seen, of the columns of that
        which it was trained on.

    Raises:
      UserError: the adapter is damaged or cannot be compressed, there is something to choose and
        no task or base to choose by, or a density or scale is out of range.
    """
    if os.path.lexists(to):
        raise UserError(f"{to} exists and is not overwritten; give the path of a new folder")
    for name, values, most in (("density", density, 1.0), ("scale", scale, np.inf)):
        if wrong := [value for value in values if not 0 < value <= most or value == np.inf]:
            limit = " and up to 1" if most == 1 else ""
            raise UserError(f"--{name} is {wrong[0]:g}; it takes a number above 0{limit}")
    loaded = load_adapter(adapter_folder(adapter))
    _check(loaded, adapter)
    pairs = list(itertools.product(density, scale))
    if data is not None:
        if task is not None or base is None:
            raise UserError("--data takes the place of --task, and needs --base")
        task = _registered(loaded, data, base)
    if task is None or base is None:
        if len(pairs) > 1 or task is not None or base is not None:
            raise UserError(
                "to choose a density and a scale, give --base and --task (or --data, a table of "
                "your own); else give one --density and one --scale"
            )
        chosen, scores = pairs[0], None
    else:
        score_of = _scorer(adapter, base, task)
        before = score_of(loaded.tree)
        print(f"score of {task}: {before:.2f} as it is")
        scores = {}
        for pair in pairs:
            scores[pair] = score_of(compressed(loaded.tree, *pair))
            print(f"density {pair[0]:g}, scale {pair[1]:g}: {scores[pair]:.2f}")
        chosen = max(pairs, key=lambda pair: scores[pair])  # Of equal scores the sparsest, first.
    small = compressed(loaded.tree, *chosen)
    for name in _emptied(loaded.tree, small):
        print(
            f"warning: no number of {name} is among the largest, so all are 0 and the adapter may "
            "do nothing; a larger --density keeps more, and --task chooses by score",
            file=sys.stderr,
        )
    _write(loaded, small, to, chosen, task, None if scores is None else scores[chosen])
    bytes_of = [
        pathlib.Path(path, TENSORS).stat().st_size for path in (adapter_folder(adapter), to)
    ]
    print(
        f"{to}: density {chosen[0]:g}, scale {chosen[1]:g}, {bytes_of[1]:,} bytes where there were "
        f"{bytes_of[0]:,}" + ("" if scores is None else f", score {scores[chosen]:.2f}")
    )
    return 0


def _emptied(before: Params, after: Params) -> list[str]:
    """Returns the leaves that had numbers in a route and have only zeros there now."""
    old: dict[str, Any] = traverse_util.flatten_dict(dict(before), sep="/")
    new: dict[str, Any] = traverse_util.flatten_dict(dict(after), sep="/")
    return [
        name
        for name, leaf in old.items()
        if any(np.any(one) and not np.any(two) for one, two in zip(leaf, new[name], strict=True))
    ]


def _check(adapter: Adapter, where: str) -> None:
    """Raises `UserError` if an adapter is more than numbers that are added to a base."""
    method = adapter.method
    names = traverse_util.flatten_dict(adapter.tree, sep="/")
    if method.trains_base or not method.routed or not all(map(method.has_routes, names)):
        raise UserError(
            f"{where}: an adapter of method '{adapter.method_name}' holds parts of a base, which "
            "are not compressed"
        )


def _registered(adapter: Adapter, data: str, base: str) -> str:
    """Registers a table as the task that an adapter was trained on; returns its name."""
    if (known := own.recorded(adapter.data)) is None:
        raise UserError("the adapter was not trained on one table; give a task by --task")
    read = own.read(own.Table(dev=data), known, trains=False)
    print(*read.lines, sep="\n")
    name = adapter.task(adapter.route_names[0])["name"]
    read.register(name, vocabulary_of(base, adapter.data))
    return name


def _scorer(adapter: str, base: str, task: str) -> Callable[[Params], float]:
    """Returns a function from an adapter's tree to its score on the task's evaluation splits."""
    from adalink_jax.evaluation import Evaluator
    from adalink_jax.models.t5 import Transformer

    adaptation = load_adaptation(adapter, base)
    lengths = adaptation.adapter.data.get("lengths") or _LENGTHS
    names = adaptation.routes
    if len(names) > 1 and task not in names:
        raise UserError(f"{adapter} has no route {task!r}; its routes are {', '.join(names)}")
    evaluate = Evaluator(
        Transformer(adaptation.config, adaptation.method),
        [task],
        lengths=lengths,
        batch_size=_BATCH_SIZE,
        routes={task: names.index(task)} if len(names) > 1 else None,
    )

    def score(tree: Params) -> float:
        found = evaluate(merge(adaptation.base, tree)).tasks[task].score
        if found is None:
            raise UserError(f"{task} has no score to choose by")
        return found

    return score


def _write(
    adapter: Adapter,
    tree: Params,
    to: str,
    chosen: tuple[float, float],
    task: str | None,
    score: float | None,
) -> None:
    density, scale = chosen
    # The scores that it records are not the new one's.
    metadata = {name: value for name, value in adapter.metadata.items() if name != "scores"}
    chosen_on = {} if task is None else {"task": task, "score": score}
    metadata["compression"] = {"density": density, "scale": scale, **chosen_on}
    save_adapter(
        to,
        tree,
        method_name=adapter.method_name,
        settings=adapter.settings,
        architecture=adapter.architecture,
        base_fingerprint=adapter.base_fingerprint,
        route_names=adapter.route_names,
        metadata=metadata,
        compressed=True,
    )
