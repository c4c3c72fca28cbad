"""The options of a run, in groups that gin files bind by name: ``Batches.packing = True``.

A group is checked when it is made. `train` and `evaluate` share groups, so that a gin file sets
each value once for both. Two more groups are defined next to the code that they configure:
`adalink_jax.distributed.sharding.Layout` and `adalink_jax.training.loop.Periods`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError, check_counts, nearest
from adalink_jax.evaluation import MODES
from adalink_jax.models.config import REMATS
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.training.loop import Periods

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Data:
    """The task, and the maximum lengths of its sequences.

    Attributes:
      mixture_or_task_name: a name registered with SeqIO.
      task_feature_lengths: {"inputs": T, "targets": L} in tokens; longer inputs are truncated and
        counted.
      cache_dir: where token arrays are cached; None for ADALINK_CACHE_DIR or ~/.cache/adalink_jax.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    cache_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of training steps.

    Attributes:
      batch_size: number of rows of the global batch.
      gradient_accumulation_steps: number of parts of a batch, with one in memory at a time.
      packing: whether rows hold several examples, or one each and are bucketed by length.
      few_shot: train on this many examples of each task, chosen by the seed; None for all.
    """

    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    packing: bool = False
    few_shot: int | None = None

    def __post_init__(self):
        check_counts(
            BATCH_SIZE=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )
        if self.batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"BATCH_SIZE is {self.batch_size}, which gradient_accumulation_steps = "
                f"{self.gradient_accumulation_steps} does not divide"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How tasks are scored.

    Attributes:
      mode: "rank_classification" (the label with the highest likelihood), "greedy" or "beam".
      batch_size: number of rows of a batch.
      limit: score only this many examples of each split, the first ones; None for all.
      split: the split to score, e.g. "test"; None for a task's own evaluation splits, which are
        "validation" for most.
    """

    mode: str = dataclasses.field(
        default="rank_classification", metadata={"recorded_as": "evaluation_mode"}
    )
    batch_size: int = dataclasses.field(default=64, metadata={"recorded_as": "eval_batch_size"})
    limit: int | None = dataclasses.field(default=None, metadata={"recorded_as": "eval_limit"})
    split: str | None = dataclasses.field(default=None, metadata={"recorded_as": "eval_split"})

    def __post_init__(self):
        _check_choice("the evaluation mode", self.mode, MODES)
        check_counts(eval_batch_size=self.batch_size)
        if self.limit is not None:
            check_counts(eval_limit=self.limit)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of activations and of the stored base.

    Attributes:
      dtype: dtype of the activations, "float32" or "bfloat16"; trained parameters are float32.
      frozen_dtype: dtype of a frozen base on devices: "float32", "bfloat16" or "int8".
    """

    dtype: str = "float32"
    frozen_dtype: str = "float32"

    def __post_init__(self):
        _check_choice("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES)


@dataclasses.dataclass(frozen=True)
class Layers:
    """How the layers of a stack are run. All choices compute the same function.

    Attributes:
      scan_layers: whether layers are stacked and scanned; None does so for more than 12 layers.
      remat: what the backward pass recomputes: "none", "minimal" or "full".
    """

    scan_layers: bool | None = None
    remat: str = "none"

    def __post_init__(self):
        if self.scan_layers not in (None, True, False):
            raise UserError(f"scan_layers is {self.scan_layers!r}; it takes True, False or None")
        _check_choice("remat", self.remat, REMATS)


@dataclasses.dataclass(frozen=True)
class Loss:
    """Options of the training loss, beside cross-entropy.

    Attributes:
      z_loss: coefficient of the z-loss, which keeps the logits' normalizer near 1.
      label_smoothing: probability taken from the target token, in [0, 1).
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not self.z_loss >= 0:
            raise UserError(f"z_loss is {self.z_loss!r}; it must be a number ≥ 0")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing!r}; it must be in [0, 1)")


_GROUPS = (Data, Batches, Evaluation, Periods, Precision, Layout, Layers, Loss)
_BY_NAME = {f"{group.__module__}.{group.__qualname__}": group for group in _GROUPS}


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's arguments in the form of its record: each value by name, without groups.

    Records written before there were groups have this form, and such runs can still be resumed.

    Args:
      values: JSON-able arguments by name; a group is ``{"@": its full name, field: value, …}``.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        group = _BY_NAME.get(value.get("@", "")) if isinstance(value, Mapping) else None
        if group is None:
            flat[name] = value
            continue
        for field in dataclasses.fields(group):
            if field.name in value:
                flat[field.metadata.get("recorded_as", field.name)] = value[field.name]
    return flat


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(
            f"{name} is {value!r}; it takes one of {', '.join(choices)}"
            f"{nearest(str(value), choices)}"
        )
