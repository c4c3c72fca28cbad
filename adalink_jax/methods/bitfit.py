"""BitFit: trained biases of linear layers (Ben Zaken et al. 2022, arXiv 2106.10199).

T5 has no biases, so they are added here, at zero: ``y' = y + b``. So do Compacter's authors, who
train them with a rate of 3e-4; their norms' biases are not among them here.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Site, Stacks
from adalink_jax.methods.linears import OnLinears
from adalink_jax.methods.low_rank import Vector
from adalink_jax.values import Size


@dataclasses.dataclass(frozen=True)
class BitFit(OnLinears):
    """Biases of chosen linear layers.

    Attributes:
      linears: shell patterns over "block/layer", as LoRA's.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "bitfit"

    def linear(self, x, y: Float[Array, "B T Dout"], kernel, site: Site, ctx: Context):
        if not self.adapts(site):
            return y
        bias = Vector("bias", self.routes, name=self.scope)(y.shape[-1], y.dtype, ctx)
        return y + ctx.gate * bias
