"""The options of a run, in groups that gin files bind by name: ``Batches.packing = True``.

A group is checked when it is made. `train` and `evaluate` share groups, so that a gin file sets
each value once for both. Four more groups are defined next to the code that they configure:
`adalink_jax.distributed.sharding.Layout`, `adalink_jax.training.loop.Periods`,
`adalink_jax.training.selection.Selection`, and `adalink_jax.data.own.Table`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from adalink_jax.data.images import Encoder
from adalink_jax.data.own import Table
from adalink_jax.distributed.sharding import Layout
from adalink_jax.errors import UserError
from adalink_jax.evaluation import MODES
from adalink_jax.methods.base import Method, Params
from adalink_jax.models.config import ATTENTIONS, REMATS, T5Config, activations_dtype
from adalink_jax.models.kernels import FROZEN_DTYPES
from adalink_jax.training.loop import Periods
from adalink_jax.training.selection import Selection
from adalink_jax.values import (
    AnyPath,
    Checked,
    Count,
    Length,
    LocalPath,
    NotNegative,
    OneOf,
    Range,
    Rate,
    Says,
    Size,
)

Lengths = Annotated[
    Mapping[str, Length], Says("lengths in tokens, such as {'inputs': 512, 'targets': 16}")
]
Share = Annotated[float, Range(0, 1, open_start=True, open_end=True)]
Beams = Annotated[int, Range(1, 1024)]
MethodSetting = Annotated[
    Method, Says("a method, such as @adalink.AdaLink(); a file of gin/methods has each")
]
ModelSetting = Annotated[
    T5Config | None,
    Says("an architecture, such as @t5.T5Config(), which the files of gin/models have, or None"),
]
EncoderSetting = Annotated[
    LocalPath | Encoder | None, Says("the path of an image encoder's folder, or None for none")
]
BaseSetting = Annotated[
    AnyPath | tuple[T5Config, Params] | None, Says("the path of a base, or None for none")
]


def _image(name: str, default: Any = None) -> Any:
    metadata = {"recorded_as": f"image_{name}", "later": True}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Data(Checked):
    """The task, and the maximum lengths of its sequences.

    Attributes:
      mixture_or_task_name: a name registered with SeqIO, or the name that a `Table` gets.
      task_feature_lengths: {"inputs": T, "targets": L} in tokens; longer inputs are truncated and
        counted. None takes the longest of a `Table`, up to 512.
      cache_dir: where token arrays are cached; None for ADALINK_CACHE_DIR or ~/.cache/adalink_jax.
      held_out: the share of each task's training examples, e.g. 0.1, that is not trained on: the
        split "held_out", to choose on. A hash of the input's text says which. None for none.
    """

    mixture_or_task_name: str
    task_feature_lengths: Lengths | None
    cache_dir: LocalPath | None = None
    held_out: Share | None = None

    @property
    def lengths(self) -> Mapping[str, int]:
        """The lengths; raises `UserError` if they are None."""
        if self.task_feature_lengths is None:
            raise UserError(
                "TASK_FEATURE_LENGTHS is None, which takes the lengths of a table (--data); for "
                f"{self.mixture_or_task_name} give them, such as {{'inputs': 512, 'targets': 16}}"
            )
        return self.task_feature_lengths


@dataclasses.dataclass(frozen=True)
class Images(Checked):
    """The pictures of tasks that have some, and the frozen encoder that sees them.

    Attributes:
      encoder: the folder or the name of an image encoder; None for tasks of text alone.
      folder: the folder that the paths of pictures begin in; None for that of the environment
        variable IMAGE_DIR, or where all pictures are drawn.
      stored: whether the encoder's features are computed once, before training, and stored in the
        folder ``images`` of the cache (`Data.cache_dir`); else they are computed for each batch.
      dtype: what features are rounded to: "float32", which is exact, or "float16", which takes
        half the space.
      batch_size: number of pictures that the encoder gets at a time.
    """

    encoder: EncoderSetting = _image("encoder")
    folder: LocalPath | None = _image("folder")
    stored: bool = _image("stored", True)
    dtype: Annotated[str, OneOf(("float32", "float16"))] = _image("dtype", "float32")
    batch_size: Size = _image("batch_size", 32)

    def __post_init__(self):
        super().__post_init__()
        changed = any(getattr(self, one.name) != one.default for one in dataclasses.fields(self))
        if self.encoder is None and changed:
            raise UserError("Images.encoder is not set, but other settings of images are")


@dataclasses.dataclass(frozen=True)
class Batches(Checked):
    """The batches of training steps.

    Attributes:
      batch_size: number of rows of the global batch.
      gradient_accumulation_steps: number of parts of a batch, with one in memory at a time.
      packing: whether rows hold several examples, or one each and are bucketed by length. A packed
        row is as long as the longest input may be, and has room for the targets of all its inputs.
      few_shot: train on this many examples of each task, chosen by the seed; None for all.
      padding: None pads inputs to lengths that grow by a third to a half. "cheapest" chooses those
        for which padding over TRAIN_STEPS and compilations cost the least: few in a short run, many
        in a long one; the run keeps those of its first start.
    """

    batch_size: Size = 32
    gradient_accumulation_steps: Size = 1
    packing: bool = False
    few_shot: Count | None = None
    padding: Annotated[str, OneOf(("cheapest",))] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.packing and self.padding is not None:
            raise UserError(
                f"Batches.padding is {self.padding!r}, but with Batches.packing there is one length"
            )
        if self.batch_size % self.gradient_accumulation_steps:
            raise UserError(
                f"BATCH_SIZE is {self.batch_size}, which gradient_accumulation_steps = "
                f"{self.gradient_accumulation_steps} does not divide"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation(Checked):
    """How tasks are scored.

    Attributes:
      mode: "rank_classification" (the label with the highest likelihood), "greedy" or "beam".
      beam_size: number of beams of the mode "beam"; None for 4, as in T5's own evaluations.
      batch_size: number of rows of a batch.
      limit: score only this many examples of each split, the first ones; None for all.
      split: the split to report, e.g. "test", or "held_out" (`Data.held_out`); None for a task's
        own evaluation splits, which are "validation" for most.
    """

    mode: Annotated[str, OneOf(MODES)] = dataclasses.field(
        default="rank_classification", metadata={"recorded_as": "evaluation_mode"}
    )
    batch_size: Size = dataclasses.field(default=64, metadata={"recorded_as": "eval_batch_size"})
    limit: Count | None = dataclasses.field(default=None, metadata={"recorded_as": "eval_limit"})
    split: str | None = dataclasses.field(default=None, metadata={"recorded_as": "eval_split"})
    beam_size: Beams | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.beam_size is not None and self.mode != "beam":
            raise UserError(
                f"beam_size is {self.beam_size}, but the evaluation mode is {self.mode}; set "
                "Evaluation.mode to beam"
            )


@dataclasses.dataclass(frozen=True)
class Precision(Checked):
    """The dtypes of activations and of the stored base.

    Attributes:
      dtype: dtype of the activations, "float32" or "bfloat16"; trained parameters are float32.
      frozen_dtype: dtype of a frozen base on devices: "float32", "bfloat16" or "int8".
    """

    dtype: str = "float32"
    frozen_dtype: Annotated[str, OneOf(FROZEN_DTYPES)] = "float32"

    def __post_init__(self):
        super().__post_init__()
        activations_dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Layers(Checked):
    """How the layers of a stack are run. All choices compute the same function.

    Attributes:
      scan_layers: whether layers are stacked and scanned; None does so for more than 12 layers.
      remat: what the backward pass recomputes: "none", "minimal" or "full".
      attention: what computes attention: "xla", or "cudnn" on NVIDIA's GPUs, in bfloat16.
    """

    scan_layers: bool | None = None
    remat: Annotated[str, OneOf(REMATS)] = "none"
    attention: Annotated[str, OneOf(ATTENTIONS)] = "xla"


@dataclasses.dataclass(frozen=True)
class Loss(Checked):
    """Options of the training loss, beside cross-entropy.

    Attributes:
      z_loss: coefficient of the z-loss, which keeps the logits' normalizer near 1.
      label_smoothing: probability taken from the target token, in [0, 1).
    """

    z_loss: NotNegative = 1e-4
    label_smoothing: Rate = 0.0


GROUPS = (
    *(Data, Table, Images, Batches, Evaluation, Periods, Selection, Precision, Layout, Layers),
    Loss,
)
_BY_NAME = {f"{group.__module__}.{group.__qualname__}": group for group in GROUPS}


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
        if group is Table and not any(value[field.name] for field in dataclasses.fields(Table)):
            continue  # There is no table, as in all earlier records.
        if group is Images and not value["encoder"]:
            continue  # There are no images, as in all earlier records.
        for field in dataclasses.fields(group):
            if field.name in value:
                flat[field.metadata.get("recorded_as", field.name)] = value[field.name]
    return flat
