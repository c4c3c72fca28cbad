"""The projection of images alone: how a frozen language model first learns to read pictures.

LLaVA's first stage (Liu et al. 2023, arXiv 2304.08485) and LiMBeR (Merullo et al. 2023, arXiv
2209.15162) train nothing else. The projection is the base's own, so the adapter folds into it.
"""

import dataclasses
from typing import Any, ClassVar

from adalink_jax.methods.base import Method, Params, merge


@dataclasses.dataclass(frozen=True)
class Projection(Method):
    """Training of the base's image projection; all else is frozen."""

    scope: ClassVar[str] = "projection"
    needs_images: ClassVar[bool] = True

    def trainable(self, name: str) -> bool:
        return name.startswith("encoder/image_projection/")

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Puts the trained projection in the place of the base's."""
        return merge(base, adapter)
