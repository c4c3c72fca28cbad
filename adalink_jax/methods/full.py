"""Full fine-tuning: no hook, every parameter trains."""

import dataclasses
from typing import Any, ClassVar

from adalink_jax.methods.base import Method, Params


@dataclasses.dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning. It trains the base itself; its adapter file is the whole model."""

    scope: ClassVar[str] = "full"
    trains_base: ClassVar[bool] = True

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Returns the adapter, which is the whole model."""
        return dict(adapter)
