"""Describes a configuration without running it: parameters, bytes and placement."""

from collections.abc import Mapping
from json import dumps
from typing import TYPE_CHECKING, Any

from flax import traverse_util
from rich.console import Console
from rich.table import Table

from adalink_jax.checkpoints import open_base
from adalink_jax.checkpoints.architecture import describe_architecture
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models.parameters import abstract_params, check_trains
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs.options import MethodSetting, ModelSetting
from adalink_jax.values import AnyPath

if TYPE_CHECKING:
    from adalink_jax.config.records import Configuration


def describe(
    *,
    model: ModelSetting = None,
    method: MethodSetting | None = None,
    initial_checkpoint_path: AnyPath | None = None,
    json: bool = False,
    configuration: "Configuration | None" = None,
) -> None:
    """Prints a configuration's parameters by part, their bytes and their placement.

    Args:
      model: the architecture; None takes it from the checkpoint.
      method: the method; None describes the base without a method.
      initial_checkpoint_path: the base's path; only read if `model` is None.
      json: whether to print one JSON object instead of tables.
      configuration: not used; every function that gin binds takes it.

    Raises:
      UserError: neither a model nor a checkpoint.
    """
    del configuration
    if model is None:
        if initial_checkpoint_path is None:
            raise UserError("nothing to describe: give MODEL or INITIAL_CHECKPOINT_PATH")
        model = open_base(initial_checkpoint_path).config
    described = description(model, method or Method())
    if json:
        print(dumps(described, indent=1))
    else:
        print_description(described)


def description(config: T5Config, method: Method) -> dict[str, Any]:
    """Counts all parameters of a base and a method, and says where they are; allocates none.

    Args:
      config: the base's architecture.
      method: the method.

    Returns:
      A JSON-able dict: "architecture"; "method" with its settings; "parameters" and "bytes"
      (float32), each with "total", "trainable", "frozen"; "groups", the same counts by part of the
      network; "tensors", with each parameter's shape, logical axes, mesh axes, and whether it
      trains.
    """
    if method != Method():
        check_trains(config, method)
    params, axes = abstract_params(config, method)
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    flat_axes: dict[str, Any] = traverse_util.flatten_dict(dict(axes), sep="/")
    rules = dict(sharding.RULES)
    tensors, groups = {}, {}
    for name, leaf in sorted(flat.items()):
        names = list(flat_axes[f"{name}_axes"].names)
        trains = method.trainable(name)
        tensors[name] = {
            "shape": list(leaf.shape),
            "axes": names,
            "mesh_axes": [rules[axis] for axis in names],
            "trainable": trains,
            **({"rate_factor": method.rate_factor(name)} if trains else {}),
        }
        group = groups.setdefault(_group(name, method), {"total": 0, "trainable": 0, "frozen": 0})
        group["total"] += leaf.size
        group["trainable" if trains else "frozen"] += leaf.size
    parameters = {key: sum(g[key] for g in groups.values()) for key in next(iter(groups.values()))}
    method.check_rate_factors([name for name in flat if method.trainable(name)])
    return {
        "architecture": describe_architecture(config),
        "method": {"name": method.scope, **method.settings()},
        "parameters": parameters,
        "bytes": {key: 4 * count for key, count in parameters.items()},
        "groups": groups,
        "tensors": tensors,
    }


def _group(name: str, method: Method) -> str:
    """Returns the part of the network that a parameter belongs to, e.g. "encoder layers"."""
    parts = name.split("/")
    if method.owns(name):
        return f"{parts[0]} {next(scope for scope in method.scopes if scope in parts)}"
    if len(parts) > 1 and parts[1].startswith("layers_"):
        return f"{parts[0]} layers"
    return f"{parts[0]} {parts[1]}" if len(parts) > 2 else parts[0]


def print_description(described: Mapping[str, Any]) -> None:
    """Prints a description as tables; as plain text if the output is not a terminal."""
    console = Console(highlight=False)
    for title in ("architecture", "method"):
        settings = ", ".join(f"{name}={value}" for name, value in described[title].items())
        console.print(f"[bold]{title}[/]: {settings}", soft_wrap=True)
    table = Table("part", *(("total", "trainable", "frozen")))
    for column in table.columns[1:]:
        column.justify = "right"
    totals = {"all": described["parameters"], "all, MiB as float32": described["bytes"]}
    for name, counts in described["groups"].items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    table.add_section()
    for name, counts in totals.items():
        scale = 2**20 if "MiB" in name else None
        table.add_row(name, *(f"{n / scale:,.3f}" if scale else f"{n:,}" for n in counts.values()))
    console.print(table)
    trainable = {n: t for n, t in described["tensors"].items() if t["trainable"]}
    factors = [tensor["rate_factor"] for tensor in trainable.values()]
    several = len(set(factors)) > 1
    table = Table("trained", "shape", "mesh axes", *(["learning rate"] if several else []))
    for name, tensor in list(trainable.items())[:12]:
        factor = [f"× {tensor['rate_factor']:g}"] if several else []
        axes = ", ".join(map(str, tensor["mesh_axes"]))
        table.add_row(name, str(tensor["shape"]), axes, *factor)
    console.print(table)
    if len(trainable) > 12:
        console.print(f"… and {len(trainable) - 12} more; --json lists all")
