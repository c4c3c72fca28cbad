"""LoRA: a low-rank product beside linear layers (Hu et al. 2021, arXiv 2106.09685).

``y' = y + alpha/R · dropout(x) · W_down · W_up``. AdaLink's paper (section 4) puts it on every
linear layer of attention and MLP in the encoder's blocks, which is the default here.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import (
    LINEAR_SITES,
    Array,
    Context,
    Method,
    Params,
    Site,
    Stacks,
)
from adalink_jax.methods.low_rank import LowRank
from adalink_jax.values import Range, Rate, Size

# Linear layers that `LoRA.variants` keeps: all of them (AdaLink's paper), queries and values
# (LoRA's paper), down to a single one.
_FEWER = (
    ("*attention/*", "mlp/*"),
    ("*attention/*",),
    ("mlp/*",),
    ("*attention/query", "*attention/value"),
    ("*attention/query",),
)


@dataclasses.dataclass(frozen=True)
class LoRA(Method):
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
    """

    rank: Size
    alpha: float = 16.0
    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder",)
    layers: tuple[Annotated[int, Range(0)], ...] | None = None
    dropout_rate: Rate = 0.0
    routes: Size = 1

    scope: ClassVar[str] = "lora"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = ("dropout_rate",)

    def __post_init__(self):
        super().__post_init__()
        sites = [site for stack in self.stacks for site in LINEAR_SITES[stack]]
        for pattern in self.linears:
            if not fnmatch.filter(sites, pattern):
                raise UserError(
                    f"LoRA.linears has {pattern!r}, which matches no linear layer of the "
                    f"{' or '.join(self.stacks)}{nearest(pattern, sites)}"
                )

    def resized(self, size: int) -> "LoRA":
        """Returns LoRA with another rank and the same scale, alpha / rank."""
        return dataclasses.replace(self, rank=size, alpha=self.alpha * size / self.rank)

    def variants(self, depths: Mapping[str, int]) -> Iterator["LoRA"]:
        """Drops layers first, down to one; then kinds of linear layers."""
        depth = min(depths[stack] for stack in self.stacks)
        numbers = list(range(depth)) if self.layers is None else sorted(set(self.layers))
        for linears in dict.fromkeys((self.linears, *_FEWER)):
            if not self._sites(linears) <= self._sites(self.linears):
                continue
            for count in range(len(numbers), 0, -1):
                spread = np.linspace(0, len(numbers) - 1, count).round().astype(int)
                chosen = self.layers if count == len(numbers) else tuple(numbers[i] for i in spread)
                yield dataclasses.replace(self, linears=linears, layers=chosen)

    def _sites(self, linears: tuple[str, ...]) -> set[str]:
        sites = [site for stack in self.stacks for site in LINEAR_SITES[stack]]
        return {site for pattern in linears for site in fnmatch.filter(sites, pattern)}

    def gates(self, stack: str, num_layers: int) -> np.ndarray:
        chosen = self.layers if stack in self.stacks else None
        if chosen and not all(0 <= i < num_layers for i in chosen):
            raise UserError(
                f"LoRA.layers is {self.layers}; the {stack} has layers 0 to {num_layers - 1}"
            )
        return super().gates(stack, num_layers)

    def adapts(self, site: Site) -> bool:
        """Returns whether a linear layer is adapted, in the layers that `gates` selects."""
        chosen = any(fnmatch.fnmatchcase(site.linear, pattern) for pattern in self.linears)
        return chosen and site.stack in self.stacks

    def linear(
        self, x: Float[Array, "B T Din"], y: Float[Array, "B T Dout"], site: Site, ctx: Context
    ) -> Float[Array, "B T Dout"]:
        if not self.adapts(site):
            return y
        delta = LowRank(
            features=y.shape[-1],
            rank=self.rank,
            routes=self.routes,
            # Uniform within ±1/√Din, as in the LoRA authors' code.
            down_init=nn.initializers.variance_scaling(
                1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1, batch_axis=0
            ),
            dropout_rate=self.dropout_rate,
            name=self.scope,
        )(x, ctx)
        return y + (ctx.gate * (self.alpha / self.rank)) * delta

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        scale = np.float32(self.alpha / self.rank)
        flat = {name: leaf * scale if name.endswith("/up") else leaf for name, leaf in flat.items()}
        plain = dataclasses.replace(self, alpha=float(self.rank), dropout_rate=0.0)
        return plain, traverse_util.unflatten_dict(flat, sep="/")

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds alpha/R · W_down · W_up to each adapted kernel, in float32."""
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep="/")
        modules: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        for name in modules:
            if not name.endswith("/down"):
                continue
            layer = name.removesuffix(f"/{self.scope}/down")
            down, up = (
                np.asarray(modules[f"{layer}/{self.scope}/{part}"][route], np.float32)
                for part in ("down", "up")
            )
            kernel = np.asarray(flat[f"{layer}/kernel"], np.float32)
            flat[f"{layer}/kernel"] = kernel + np.float32(self.alpha / self.rank) * (down @ up)
        return traverse_util.unflatten_dict(flat, sep="/")
