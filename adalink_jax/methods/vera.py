"""VeRA: two frozen random matrices for all layers, and two trained vectors in each.

Kopiczko et al. 2024 (arXiv 2310.11454): ``y' = y + ((x·A) ∘ d)·B ∘ b``. A layer takes the first
Din rows of A and the first Dout columns of B. They are made from a seed, uniform within ±√(6/D) and
±√(6/R) as in peft; d [R] starts at 0.1 and b [Dout] at zero.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Params, Site, Stacks
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.low_rank import routed_vector
from adalink_jax.methods.seeded import seeded_uniform
from adalink_jax.values import Seed, Size


def frozen_pair(
    seed: int, rank: int, width: int, inputs: int, outputs: int
) -> tuple[Float[Array, "Din R"], Float[Array, "R Dout"]]:
    """Returns a layer's parts of A and B.

    Args:
      seed: what they are made from.
      rank: R.
      width: D, which sets A's scale in all layers.
      inputs: Din.
      outputs: Dout.
    """
    down, up = seeded_uniform(seed, max(inputs, outputs), rank)
    return down[:inputs] * math.sqrt(6 / width), up[:outputs].T * math.sqrt(6 / rank)


class _Scaled(nn.Module):
    """The child scope with ``inner [K,R]``, which is d, and ``outer [K,Dout]``, which is b."""

    rank: int
    routes: int
    seed: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T Din"], outputs: int, ctx: Context
    ) -> Float[Array, "B T Dout"]:
        def param(name: str, init: Any, axis: str, size: int) -> Array:
            shape, axes = (self.routes, size), ("routes", axis)
            leaf = param_with_axes(name, init, shape, jnp.float32, axes=axes)
            return routed_vector(leaf.astype(x.dtype), ctx)

        inner = param("inner", nn.initializers.constant(0.1), "rank", self.rank)
        outer = param("outer", nn.initializers.zeros, "adapter_embed", outputs)
        pair = frozen_pair(self.seed, self.rank, ctx.width, x.shape[-1], outputs)
        down, up = (matrix.astype(x.dtype) for matrix in pair)
        return ((x @ down) * inner) @ up * outer


@dataclasses.dataclass(frozen=True)
class VeRA(OnLinears):
    """VeRA on chosen linear layers.

    Attributes:
      rank: R, the columns of A.
      linears: shell patterns over "block/layer", as LoRA's.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
      seed: what A and B are made from. Only adapters of one seed can be joined.
    """

    rank: Size
    linears: tuple[str, ...] = ("*attention/query", "*attention/value")
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1
    seed: Seed = 0

    scope: ClassVar[str] = "vera"
    size_field: ClassVar[str] = "rank"

    def linear(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel,
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        if not self.adapts(site):
            return y
        module = _Scaled(self.rank, self.routes, self.seed, name=self.scope)
        return y + ctx.gate * module(x, y.shape[-1], ctx)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds A · diag(d) · B · diag(b) to each adapted kernel, in float32."""
        width = base["token_embedder"]["embedding"].shape[-1]
        kernels = {}
        for place, leaves in modules_of(adapter, self.scope):
            kernel = kernel_of(base, place)
            pair = frozen_pair(self.seed, self.rank, width, *kernel.shape)
            down, up = map(np.asarray, pair)
            product = (down * leaves["inner"][route]) @ up * leaves["outer"][route]
            kernels[place] = kernel + product
        return with_kernels(base, kernels)
