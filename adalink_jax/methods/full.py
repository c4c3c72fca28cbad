"""Full fine-tuning: no hook, every parameter trains."""

import dataclasses
from typing import ClassVar

from adalink_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning. What it trains is the base itself; its adapter file is the model."""

    scope: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True
    stacked_axes: ClassVar[tuple[str, ...]] = ()
