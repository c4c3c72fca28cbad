"""Bottleneck adapters: small MLPs after, or beside, the blocks of the network.

``A(z) = f(z · D + d) · U + u``. Four places are known by their authors' names, and are gin files:

* Houlsby et al. 2019 (arXiv 1902.00751): after self-attention and the MLP, ``y' = y + A(y)``;
* Pfeiffer et al. 2020 (arXiv 2005.00247): after the MLP and its residual add,
  ``y' = y + A(y + residual)``;
* He et al. 2021 (arXiv 2110.04366), parallel: beside the MLP, ``y' = y + s · A(residual)``, as the
  library adapters has it. The authors' own code takes the block's normed input for `residual`.

The adapter comes before the block's dropout, as in Compacter's code for T5.
"""

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Site, Stacks
from adalink_jax.methods.blocks import BLOCKS, SOURCES, OnBlocks
from adalink_jax.methods.low_rank import ACTIVATIONS, LowRank
from adalink_jax.values import OneOf, Rate, Size

NEAR_ZERO = nn.initializers.truncated_normal(0.01)
KAIMING = nn.initializers.variance_scaling(
    2.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
)


@dataclasses.dataclass(frozen=True)
class Bottleneck(OnBlocks):
    """Bottleneck adapters at chosen blocks.

    Attributes:
      rank: R, the width of the bottleneck.
      blocks: of "attention" (to the same sequence), "cross_attention" and "mlp".
      source: what the adapter reads: the block's "output", its normed "input", the "residual"
        stream before the block, or the "sum" of output and residual.
      activation: f.
      scale: s, a factor of what is added.
      zero_up: whether U starts at zero (and D at unit variance), so that training starts at the
        base; else both are normal with a standard deviation of 0.01, cut at two of these.
      dropout_rate: dropout on what the adapter reads.
      gated: whether what is added is multiplied by UniPELT's gate.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all (AdapterDrop: fewer).
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    blocks: tuple[Annotated[str, OneOf(BLOCKS)], ...] = ("mlp",)
    source: Annotated[str, OneOf(SOURCES)] = "sum"
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "relu"
    scale: float = 1.0
    zero_up: bool = False
    dropout_rate: Rate = 0.0
    gated: bool = False
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "bottleneck"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = ("dropout_rate", "zero_up")

    @property
    def start(self) -> str:
        """With random U, new adapters are near the base."""
        return "base" if self.zero_up else "near"

    def sublayer(
        self,
        y: Float[Array, "B T D"],
        x: Float[Array, "B T D"],
        residual: Float[Array, "B T D"],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T D"]:
        if not self.adapts(site):
            return y
        adapter = LowRank(
            features=y.shape[-1],
            rank=self.rank,
            routes=self.routes,
            down_init=KAIMING if self.zero_up else NEAR_ZERO,
            up_init=nn.initializers.zeros if self.zero_up else NEAR_ZERO,
            activation=ACTIVATIONS[self.activation],
            bias=True,
            dropout_rate=self.dropout_rate,
            gate="example" if self.gated else None,
            name=self.scope,
        )
        return y + ctx.gate * self.scale * adapter(self.read(y, x, residual), ctx)

    def for_inference(self, adapter):
        return dataclasses.replace(self, dropout_rate=0.0, zero_up=False), adapter
