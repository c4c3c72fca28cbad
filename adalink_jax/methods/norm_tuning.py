"""Norm tuning: trained scales of the layer norms (Zhao et al. 2023, arXiv 2312.11420).

``y' = y ∘ (1 + d)`` after each norm, d from zero. The base's own scales stay frozen beside d, so an
adapter is small, may have routes, and folds exactly.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Method, Params, Site, Stacks
from adalink_jax.methods.low_rank import Vector
from adalink_jax.values import Size


@dataclasses.dataclass(frozen=True)
class NormTuning(Method):
    """Scales of all layer norms, the last one of each stack among them.

    Attributes:
      stacks: the stacks whose norms are adapted.
      routes: K, the number of modules; each token's route chooses one.
    """

    stacks: Stacks = ("encoder", "decoder")
    routes: Size = 1

    scope: ClassVar[str] = "norm_tuning"

    def norm(self, y: Float[Array, "B T D"], site: Site, ctx: Context) -> Float[Array, "B T D"]:
        if site.stack not in self.stacks:
            return y
        scale = Vector("scale", self.routes, name=self.scope)(y.shape[-1], y.dtype, ctx)
        return y * (1 + scale)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Multiplies the scales of the base's norms."""
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep="/")
        scales: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        for name, leaf in scales.items():
            norm = name.removesuffix(f"/{self.scope}/scale") + "/scale"
            flat[norm] = np.asarray(flat[norm], np.float32) * (1 + np.asarray(leaf[route]))
        return traverse_util.unflatten_dict(flat, sep="/")
