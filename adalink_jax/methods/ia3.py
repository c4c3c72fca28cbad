"""(IA)³: trained scales of keys, values and the hidden units of the MLP.

Liu et al. 2022 (arXiv 2205.05638), as their code T-Few has it: ``k ∘ l_k``, ``v ∘ l_v`` and
``(γ(W_0 x) ∘ W_1 x) ∘ l_ff`` in all blocks of both stacks, learning rate 3e-3 with Adafactor. What
is stored is l − 1, so that zero is the base.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Method, Params, Site, Stacks
from adalink_jax.methods.linears import kernel_of, modules_of, with_kernels
from adalink_jax.methods.low_rank import Vector
from adalink_jax.values import Size


@dataclasses.dataclass(frozen=True)
class IA3(Method):
    """(IA)³ in the blocks of both stacks.

    Attributes:
      feed_forward: whether the hidden units of the MLP are scaled too.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    feed_forward: bool = True
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "ia3"

    def _scaled(self, t: Array, ctx: Context) -> Array:
        scale = Vector("scale", self.routes, name=self.scope)(t.shape[-1], t.dtype, ctx)
        return t * (1 + ctx.gate * scale)

    def operand(
        self, x: Float[Array, "B T Din"], site: Site, ctx: Context
    ) -> Float[Array, "B T Din"]:
        # Scaling the input of wo is right for T5 1.0 too, where relu(l · h) is not l · relu(h).
        if site.layer != "wo" or not self.feed_forward or site.stack not in self.stacks:
            return x
        return self._scaled(x, ctx)

    def linear(self, x, y: Float[Array, "B T Dout"], kernel, site: Site, ctx: Context):
        if site.layer not in ("key", "value") or site.stack not in self.stacks:
            return y
        return self._scaled(y, ctx)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Scales the columns of key and value kernels, and the rows of the MLP's last kernel."""
        kernels = {}
        for place, leaves in modules_of(adapter, self.scope):
            scale = 1 + leaves["scale"][route]
            kernels[place] = kernel_of(base, place) * (
                scale[:, None] if place.endswith("/wo") else scale
            )
        return with_kernels(base, kernels)
