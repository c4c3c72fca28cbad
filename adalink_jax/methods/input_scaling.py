"""Trained scales of what linear layers read: ``y = (x ∘ (1 + d)) · W``, d from zero.

With `BitFit` and `NormTuning` they are what LLaMA-Adapter V2 unlocks in a frozen model (Gao et al.
2023, arXiv 2304.15010): ``W (s ∘ x) + b`` in each linear layer, and the norms.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Params, Site, Stacks
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.low_rank import Vector
from adalink_jax.values import Size


@dataclasses.dataclass(frozen=True)
class InputScaling(OnLinears):
    """Scales of the inputs of chosen linear layers.

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

    scope: ClassVar[str] = "input_scaling"

    def operand(
        self, x: Float[Array, "B T Din"], site: Site, ctx: Context
    ) -> Float[Array, "B T Din"]:
        if not self.adapts(site):
            return x
        scale = Vector("scale", self.routes, name=self.scope)(x.shape[-1], x.dtype, ctx)
        return x * (1 + ctx.gate * scale)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Scales the rows of each adapted kernel."""
        kernels = {
            place: kernel_of(base, place) * (1 + leaves["scale"][route][:, None])
            for place, leaves in modules_of(adapter, self.scope)
        }
        return with_kernels(base, kernels)
