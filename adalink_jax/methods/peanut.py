"""PEANuT: a low-rank update of each kernel that a small network makes of the kernel itself.

Zhong et al. 2024 (arXiv 2410.01870), without hidden layers: ``W' = W + f(W·A)·B`` with A [Dout,R]
and B [R,Dout], B zero at the start. It is to a kernel what AdaLink is to a token's embedding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Layers, Params, Site, Stacks
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.lora import DOWN_INIT
from adalink_jax.methods.low_rank import ACTIVATIONS, routed_low_rank, used_modules
from adalink_jax.values import OneOf, Size


class _OfKernel(nn.Module):
    """The child scope with ``down [K,Dout,R]``, which is A, and ``up [K,R,Dout]``, which is B."""

    rank: int
    routes: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T Din"],
        outputs: int,
        kernel: Callable[[], Float[Array, "Din Dout"]],
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        sizes = {"routes": self.routes, "rank": self.rank, "adapter_embed": outputs}

        def param(name: str, init: Any, *axes: str) -> Array:
            shape = tuple(sizes[axis] for axis in axes)
            return param_with_axes(name, init, shape, jnp.float32, axes=axes)

        down = param("down", DOWN_INIT, "routes", "adapter_embed", "rank")
        up = param("up", nn.initializers.zeros, "routes", "rank", "adapter_embed")

        # The backward pass keeps the product, but makes the float32 kernel again, which may be
        # stored in fewer bits: those of all layers would need as much memory as a second base.
        @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.checkpoint_dots)
        def made(down: Float[Array, "K Dout R"]) -> Float[Array, "K Din R"]:
            return self.activation(jnp.einsum("df,kfr->kdr", kernel(), down))

        used, routes = used_modules({"down": down, "up": up}, ctx)
        down, up = made(used["down"]).astype(x.dtype), used["up"].astype(x.dtype)
        return routed_low_rank(x, down, up, routes, ctx.route_slots)


@dataclasses.dataclass(frozen=True)
class PEANuT(OnLinears):
    """PEANuT on chosen linear layers.

    Attributes:
      rank: R, the columns of A.
      activation: f.
      linears: shell patterns over "block/layer", as LoRA's.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "relu"
    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder",)
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "peanut"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True

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
        module = _OfKernel(self.rank, self.routes, ACTIVATIONS[self.activation], name=self.scope)
        return y + ctx.gate * module(x, y.shape[-1], kernel, ctx)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds f(W·A)·B to each adapted kernel, in float32."""
        kernels = {}
        for place, leaves in modules_of(adapter, self.scope):
            kernel = kernel_of(base, place)
            made = ACTIVATIONS[self.activation](kernel @ leaves["down"][route])
            kernels[place] = kernel + np.asarray(made) @ leaves["up"][route]
        return with_kernels(base, kernels)
