"""LoRA: a low-rank product beside linear layers (Hu et al. 2021, arXiv 2106.09685).

``y' = y + alpha/R · dropout(x) · W_down · W_up``. AdaLink's paper (section 4) puts it on every
linear layer of attention and MLP in the encoder's blocks, which is the default here.

rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) divides alpha by √R, so that a larger rank does not
learn more slowly. LoRA+ (Hayou et al. 2024, arXiv 2402.12354) gives W_up a larger learning rate:
``rate_factors = (("*/up", 16.0),)``.

Context-PEFT (Hadji-Kyriacou & Arandjelović 2023, arXiv 2312.08900) gives each modality a module of
its own: ``by_modality``, here also of unequal ranks.
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import (
    Array,
    Context,
    Layers,
    Method,
    Params,
    RateFactors,
    Site,
    Stacks,
)
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.modalities import ByModality
from adalink_jax.values import OneOf, Rate, Size

# The LoRA authors' code: uniform within ±1/√Din.
DOWN_INIT = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0
)


@dataclasses.dataclass(frozen=True)
class LoRA(OnLinears, ByModality):
    """LoRA on chosen linear layers.

    Attributes:
      rank: R, the columns of W_down.
      alpha: the update is scaled by alpha / rank.
      linears: shell patterns over "block/layer", e.g. "*attention/query" or "mlp/*". The blocks
        are "attention" (encoder), "self_attention", "encoder_decoder_attention" (decoder), "mlp".
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      dropout_rate: dropout on the input of the low-rank product.
      routes: K, the number of modules; each token's route chooses one.
      scaling: what alpha is divided by: "rank", or "sqrt_rank" as in rsLoRA.
      rate_factors: factors of the learning rate by shell pattern over the leaves' names.
      gated: whether each token's update is multiplied by UniPELT's gate. It then does not fold.
      by_modality: whether images and text have a module each, on a base that takes images. It then
        does not fold.
      image_rank: the rank of the module for images, where `rank` is that of text alone; None for
        the same one. Both are scaled by alpha / rank.
    """

    rank: Size
    alpha: float = 16.0
    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder",)
    layers: Layers = None
    dropout_rate: Rate = 0.0
    routes: Size = 1
    scaling: Annotated[str, OneOf(("rank", "sqrt_rank"))] = "rank"
    rate_factors: RateFactors = None
    gated: bool = False
    by_modality: bool = False
    image_rank: Size | None = None

    scope: ClassVar[str] = "lora"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = ("dropout_rate", "rate_factors")

    @property
    def scale(self) -> float:
        """The factor of the low-rank product."""
        return self.alpha / self._divisor(self.rank)

    def _divisor(self, rank: int) -> float:
        return rank if self.scaling == "rank" else math.sqrt(rank)

    def resized(self, size: int) -> "LoRA":
        """Returns LoRA with another rank and the same scale."""
        alpha = self.alpha * self._divisor(size) / self._divisor(self.rank)
        return dataclasses.replace(self, rank=size, alpha=alpha)

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
        delta = self.low_rank(
            x,
            ctx,
            features=y.shape[-1],
            down_init=DOWN_INIT,
            dropout_rate=self.dropout_rate,
            gate="token" if self.gated else None,
        )
        return y + (ctx.gate * self.scale) * delta

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        scale = np.float32(self.scale)
        flat = {name: leaf * scale if name.endswith("/up") else leaf for name, leaf in flat.items()}
        plain = dataclasses.replace(
            self, alpha=float(self.rank), scaling="rank", dropout_rate=0.0, rate_factors=None
        )
        return plain, traverse_util.unflatten_dict(flat, sep="/")

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds the scaled product of W_down and W_up to each adapted kernel, in float32."""
        if self.gated:
            raise UserError("LoRA with gates cannot be folded: a gate depends on the token")
        if self.by_modality:
            raise UserError("LoRA by modality cannot be folded: images and text share each kernel")
        kernels = {
            place: kernel_of(base, place)
            + np.float32(self.scale) * (leaves["down"][route] @ leaves["up"][route])
            for place, leaves in modules_of(adapter, self.scope)
        }
        return with_kernels(base, kernels)
