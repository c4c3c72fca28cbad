"""Full fine-tuning: no hook, every parameter trains."""

import dataclasses
from typing import Any, ClassVar

from adalink_jax.methods.base import Method, Params


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning. What it trains is the base itself; its adapter file is the model."""

    scope: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """There is nothing to fold: the adapter is the model."""
        return dict(adapter)
