"""DoRA: LoRA for a kernel's direction, and a trained length for each of its columns.

Liu et al. 2024 (arXiv 2402.09353): ``W' = m ∘ V / ‖V‖`` with ``V = W + alpha/R · A·U`` and m [Dout]
from ‖W‖, norms over the inputs. As in their section 4.3, the norm is a constant in gradients. With
``s = alpha/R`` no matrix of a kernel's size is made:
``‖V_j‖² = ‖W_j‖² + 2s·Σ_r (AᵀW ∘ U)_rj + s²·Σ_r ((AᵀA)U ∘ U)_rj``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Method, Params, Site, Stacks
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.lora import DOWN_INIT
from adalink_jax.methods.low_rank import routed_low_rank, row_routes
from adalink_jax.values import Rate, Size


def column_norms(
    kernel: Float[Array, "Din Dout"],
    down: Float[Array, "K Din R"],
    up: Float[Array, "K R Dout"],
    scale: float,
) -> Float[Array, "K Dout"]:
    """Returns the norms of the columns of ``kernel + scale · down · up``."""
    products = jnp.einsum("kdr,df->krf", down, kernel)
    grams = jnp.einsum("kdr,kds->krs", down, down)
    squares = (
        jnp.sum(kernel**2, axis=0)
        + 2 * scale * jnp.sum(products * up, axis=1)
        + scale**2 * jnp.sum(jnp.einsum("krs,ksf->krf", grams, up) * up, axis=1)
    )
    # Rounding may leave a column of zeros below zero.
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny))


class _Decomposed(nn.Module):
    """The child scope with ``down [K,Din,R]``, ``up [K,R,Dout]`` and ``magnitude [K,Dout]``."""

    rank: int
    routes: int
    scale: float
    dropout_rate: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel: Callable[[], Array],
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        sizes = {"routes": self.routes, "rank": self.rank}

        def param(name: str, init: Callable[..., Array], axes: tuple[str, ...], width: int):
            shape = tuple(sizes.get(axis, width) for axis in axes)
            return param_with_axes(name, init, shape, jnp.float32, axes=axes)

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        down = param("down", DOWN_INIT, ("routes", "adapter_embed", "rank"), x.shape[-1])
        up = param("up", zeros, ("routes", "rank", "adapter_embed"), y.shape[-1])
        magnitude = param("magnitude", ones, ("routes", "adapter_embed"), y.shape[-1])
        gains = self._gains(down, up, magnitude, kernel(), ctx)
        if self.dropout_rate:
            x = nn.Dropout(self.dropout_rate, name="dropout")(x, deterministic=ctx.deterministic)
        down, up = down.astype(x.dtype), up.astype(x.dtype)
        delta = routed_low_rank(x, down, up, ctx.routes, ctx.route_slots)
        return gains.astype(y.dtype) * (y + self.scale * delta)

    def _gains(
        self, down: Array, up: Array, magnitude: Array, kernel: Array, ctx: Context
    ) -> Float[Array, "#B #T Dout"]:
        """Returns m / ‖V‖ for each token. Norms are computed for all K modules, or fewer rows."""

        def divided(modules: slice | Array) -> Array:
            # The default precision of accelerators may be lower.
            with jax.default_matmul_precision("float32"):
                norms = column_norms(kernel, down[modules], up[modules], self.scale)
            return magnitude[modules] / jax.lax.stop_gradient(norms)

        if self.routes == 1:
            return divided(slice(None))[None]
        ids, slot = row_routes(ctx.routes, self.routes, ctx.route_slots)
        if self.routes <= ids.size:
            of_rows = divided(slice(None))[ids]
        else:
            of_rows = divided(ids.reshape(-1)).reshape(*ids.shape, -1)
        return jnp.take_along_axis(of_rows, slot[..., None], axis=1)


@dataclasses.dataclass(frozen=True)
class DoRA(OnLinears):
    """DoRA on chosen linear layers.

    Attributes:
      rank: R, the columns of the down-projection A.
      alpha: the low-rank product is scaled by alpha / rank.
      linears: shell patterns over "block/layer", as LoRA's.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      dropout_rate: dropout on the input of the low-rank product.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    alpha: float = 16.0
    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder",)
    layers: Layers = None
    dropout_rate: Rate = 0.0
    routes: Size = 1

    scope: ClassVar[str] = "dora"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = ("dropout_rate",)

    @property
    def start(self) -> str:
        """A column's length divided by its norm is 1 up to rounding."""
        return "near"

    def resized(self, size: int) -> "DoRA":
        """Returns DoRA with another rank and the same scale, alpha / rank."""
        return dataclasses.replace(self, rank=size, alpha=self.alpha * size / self.rank)

    def linear(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel: Callable[[], Float[Array, "Din Dout"]],
        site: Site,
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        if not self.adapts(site):
            return y
        module = _Decomposed(
            self.rank, self.routes, self.alpha / self.rank, self.dropout_rate, name=self.scope
        )
        return y + ctx.gate * (module(x, y, kernel, ctx) - y)

    def initialise(
        self, adapter: Params, base: Params, token_ids: Sequence[Sequence[int]], key: Array
    ) -> Params:
        """Takes the magnitudes from the base's kernels."""
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        for name, leaf in flat.items():
            if name.endswith(f"/{self.scope}/magnitude"):
                kernel = kernel_of(base, name.removesuffix(f"/{self.scope}/magnitude"))
                norms = np.sqrt(np.sum(kernel**2, axis=0))
                flat[name] = jnp.asarray(np.broadcast_to(norms, leaf.shape))
        return traverse_util.unflatten_dict(flat, sep="/")

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
        scale = np.float32(self.alpha / self.rank)
        flat = {name: leaf * scale if name.endswith("/up") else leaf for name, leaf in flat.items()}
        plain = dataclasses.replace(self, alpha=float(self.rank), dropout_rate=0.0)
        return plain, traverse_util.unflatten_dict(flat, sep="/")

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Replaces each adapted kernel by m ∘ V / ‖V‖, in float32."""
        kernels = {}
        for place, leaves in modules_of(adapter, self.scope):
            product = leaves["down"][route] @ leaves["up"][route]
            direction = kernel_of(base, place) + np.float32(self.alpha / self.rank) * product
            norms = np.sqrt(np.sum(direction**2, axis=0))
            kernels[place] = leaves["magnitude"][route] * direction / norms
        return with_kernels(base, kernels)
