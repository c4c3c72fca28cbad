"""Adapters with T5X's checkpoints: checks restored bases, and reads and writes adapter folders."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import seqio
from flax import traverse_util
from jax.experimental import multihost_utils

from adalink_jax import checkpoints
from adalink_jax.checkpoints.architecture import infer_config
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, split
from adalink_jax.models.t5 import T5Config


def steps_before(checkpoint_path: str) -> int:
    """Returns the step N of a checkpoint ``…/checkpoint_N``, at which a new adapter starts.

    Raises:
      UserError: the path does not end like that.
    """
    name = checkpoint_path.rstrip("/").rpartition("/")[2]
    if not (step := re.fullmatch(r"checkpoint_(\d+)", name)):
        raise UserError(f"{checkpoint_path} is not the path of a T5X checkpoint, …/checkpoint_N")
    return int(step[1])


def stored_adapter(path: str, base_fingerprint: str | None = None) -> checkpoints.Adapter:
    """Loads an adapter from its folder or its run's; checks its base if a fingerprint is given."""
    inner = pathlib.Path(path) / "adapter"
    folder = inner if inner.is_dir() else path
    return checkpoints.load_adapter(folder, base_fingerprint=base_fingerprint)


def stored_method(adapter_path: str) -> Method:
    """Returns the method of a stored adapter, with its settings."""
    adapter = stored_adapter(adapter_path)
    return METHODS[adapter.method_name](**adapter.settings)


def check_restored(
    state_dict: Mapping[str, Any],
    target_state_dict: Mapping[str, Any],
    *,
    is_resuming: bool = False,
    method: Method,
    base_path: str,
    adapter_path: str | None = None,
    may_be_new: bool = True,
) -> Mapping[str, Any]:
    """A `RestoreStateTransformationFn` for T5X that lets only the adapter start anew.

    With ``fallback_to_scratch``, T5X fills everything missing in a checkpoint with random values
    and only logs it. Here that is an error, unless exactly the method's own parameters are missing.
    (T5X's ``assignment_map`` for them would also drop an adapter that is in the checkpoint.)
    A new adapter takes the values at `adapter_path`; `may_be_new` allows it to start without them.

    Raises:
      UserError: a parameter of the base is missing; one in the checkpoint has no place in the
        model; the adapter is incomplete, missing where it must not be, or of another base.
    """

    def refuse(what: str, names: set[str], why: str) -> None:
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise UserError(f"checkpoint {base_path} {what} {len(names)} arrays {why}: {shown}")

    if is_resuming:
        return state_dict
    held, wanted = _parameters(state_dict), _parameters(target_state_dict)
    own = {name for name in wanted if method.owns(name)}
    new = own - held
    refuse("lacks", wanted - held - own, "that would start from random values")
    refuse("holds", held - wanted, "that this model has no place for")
    if new != own:
        refuse("lacks", new, f"of the {method.scope} adapter of which it holds the rest")
    if adapter_path is not None:
        refuse("holds", own - new, f"of an adapter, beside that of {adapter_path}")
        stored_adapter(adapter_path, checkpoints.fingerprint(checkpoints.load_base(base_path)[1]))
    elif not may_be_new:
        refuse("lacks", new, "of the adapter; give ADAPTER_PATH with methods/stored.gin")
    return state_dict


def _parameters(state_dict: Mapping[str, Any]) -> set[str]:
    # An array that is not read yet is a TensorStore spec, which is a dict.
    spec = {"driver", "kvstore", "metadata"}
    target = state_dict["target"]
    return set(
        traverse_util.flatten_dict(target, sep="/", is_leaf=lambda _, node: spec <= node.keys())
    )


@dataclasses.dataclass
class AdapterWriter:
    """A `SaveStateTransformationFn` for T5X that writes the adapter with every checkpoint.

    ``model_dir/adapter`` holds the latest adapter, as in this project's runs. If there are several
    routes, they are named after the mixture's tasks. T5X's own checkpoint does not change. For full
    fine-tuning nothing is written, because T5X's checkpoint is the model.
    """

    method: Method
    config: T5Config
    model_dir: str
    mixture_or_task_name: str
    _fingerprint: str | None = None

    def __call__(self, state_dict: Any, parameter_infos: Any = None) -> tuple[Any, Any]:
        """Writes the adapter in this state; returns the arguments unchanged."""
        if self.method.trains_base:
            return state_dict, parameter_infos
        adapter, base = split(jax.tree.map(_Whole, state_dict["target"]), self.method)
        # The base is frozen, so it is hashed only once.
        self._fingerprint = self._fingerprint or checkpoints.fingerprint(base)
        exported, tree = self.method.export(jax.tree.map(np.asarray, adapter))
        name, names = self.mixture_or_task_name, ["all"]
        if self.method.routes > 1:
            names = [task.name for task in seqio.get_subtasks(seqio.get_mixture_or_task(name))]
        if jax.process_index() == 0:
            checkpoints.save_adapter(
                pathlib.Path(self.model_dir) / "adapter",
                tree,
                method_name=self.method.scope,
                settings=exported.settings(),
                architecture=self.config,
                base_fingerprint=self._fingerprint,
                route_names=names,
                metadata={"t5x_step": int(state_dict["state"]["step"]), "data": {"name": name}},
            )
        return state_dict, parameter_infos


@dataclasses.dataclass
class _Whole:
    """A parameter that is gathered from all hosts when it is read, one at a time."""

    leaf: Any

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if isinstance(self.leaf, jax.Array) and not self.leaf.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(self.leaf, tiled=True), dtype)
        return np.asarray(self.leaf, dtype)


def extract_adapter(checkpoint: str, method: Method, model_dir: str, mixture: str) -> None:
    """Writes the adapter inside a T5X checkpoint to ``model_dir/adapter``.

    The checkpoint is a ``…/checkpoint_N``, native or Orbax. Give the method, settings and mixture
    (or task) of its run; the arrays do not show them.

    Raises:
      UserError: the checkpoint has no parameters of the method, or no T5.
    """
    folder = pathlib.Path(checkpoint).absolute()
    if (folder / "state").is_dir():
        state = ocp.PyTreeCheckpointer().restore(folder / "state")
    else:
        import t5x.checkpoints  # Imported here because nothing else in this module needs T5X.

        state = t5x.checkpoints.load_t5x_checkpoint(str(folder))  # pyright: ignore[reportAttributeAccessIssue]: T5X is absent
    adapter, base = split(state["target"], method)
    if not adapter:
        raise UserError(f"checkpoint {checkpoint} holds no parameters of {method}")
    config = infer_config(checkpoints.shapes_of(base), checkpoint)
    AdapterWriter(method, config, model_dir, mixture)(state)
