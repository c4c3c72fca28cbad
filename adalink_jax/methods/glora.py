"""GLoRA: a scale and a shift of each kernel, and a bias that is made of the kernel.

Chavan et al. 2023 (arXiv 2306.07967): ``y' = x·(W + W∘A + B) + c·W + e``, where each of A, B, c and
e is low rank, a vector, one number, or nothing; their D scales a bias, and T5 has none. All start
at zero. The authors train every choice at once and search for the best one in each layer; here a
choice is a setting, the same in all layers.

With a low-rank A, each layer has a second product with a kernel, and training needs the product of
that kernel's gradient, which other methods of linear layers do without: on T5 1.1 base a step has
1.4 times the operations of full fine-tuning's (`adalink cost`).
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Layers, Params, Site, Stacks
from adalink_jax.methods.linears import OnLinears, kernel_of, modules_of, with_kernels
from adalink_jax.methods.lora import DOWN_INIT
from adalink_jax.methods.low_rank import routed_low_rank, routed_vector, used_modules
from adalink_jax.values import OneOf, Size

Form = Annotated[str, OneOf(("low_rank", "vector", "scalar", "none"))]
BiasOfKernel = Annotated[str, OneOf(("low_rank", "vector", "none"))]
Bias = Annotated[str, OneOf(("vector", "scalar", "none"))]
_OUTPUTS = {"vector": "adapter_embed", "scalar": "rank"}


class _Terms(nn.Module):
    """The child scope: ``a_down [K,Din,R]``, ``a_up [K,R,Dout]``, ``b [K,Dout]`` … as chosen."""

    rank: int
    routes: int
    a: str
    b: str
    c: str
    e: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T Din"],
        y: Float[Array, "B T Dout"],
        kernel: Callable[[], Float[Array, "Din Dout"]],
        ctx: Context,
    ) -> Float[Array, "B T Dout"]:
        """Returns what is added to y = x·W."""
        inputs, outputs = x.shape[-1], y.shape[-1]

        def param(name: str, init: Any, axes: tuple[str, ...], *shape: int) -> Array:
            shape, axes = (self.routes, *shape), ("routes", *axes)
            return param_with_axes(name, init, shape, jnp.float32, axes=axes)

        def pair(name: str) -> tuple[Array, Array]:
            down = ("adapter_embed", "rank")
            return (
                param(f"{name}_down", DOWN_INIT, down, inputs, self.rank),
                param(f"{name}_up", zeros, down[::-1], self.rank, outputs),
            )

        def vector(name: str, form: str) -> Float[Array, "#B #T F"]:
            size = outputs if form == "vector" else 1
            leaf = param(name, zeros, (_OUTPUTS[form],), size)
            return routed_vector(leaf.astype(y.dtype), ctx)

        zeros = nn.initializers.zeros
        added = jnp.zeros_like(y)
        if self.a == "low_rank":
            added += _hadamard(x, *pair("a"), kernel, ctx)
        elif self.a != "none":
            added += y * vector("a", self.a)
        if self.b == "low_rank":
            down, up = (leaf.astype(x.dtype) for leaf in pair("b"))
            added += routed_low_rank(x, down, up, ctx.routes, ctx.route_slots)
        elif self.b != "none":
            added += x.sum(-1, keepdims=True) * vector("b", self.b)
        if self.c != "none":
            if self.c == "low_rank":
                down = param("c_down", zeros, ("adapter_embed", "rank"), inputs, self.rank)
                up = param("c_up", nn.initializers.uniform(1.0), ("rank",), self.rank)
                leaf = jnp.einsum("kdr,kr->kd", down, up)
            else:
                leaf = param("c", zeros, ("adapter_embed",), inputs)
            own, routes = used_modules({"c": leaf}, ctx)
            own_ctx = dataclasses.replace(ctx, routes=routes)
            added += routed_vector((own["c"] @ kernel()).astype(y.dtype), own_ctx)
        if self.e != "none":
            added += vector("e", self.e)
        return added


def _hadamard(
    x: Float[Array, "B T Din"],
    down: Float[Array, "K Din R"],
    up: Float[Array, "K R Dout"],
    kernel: Callable[[], Float[Array, "Din Dout"]],
    ctx: Context,
) -> Float[Array, "B T Dout"]:
    """Returns x·(W ∘ down·up) with each token's own down and up."""
    if len(down) == 1:

        @jax.checkpoint  # The scaled kernels of all layers would be a second base in memory.
        def scaled(x: Array, down: Array, up: Array) -> Array:
            return x @ (kernel() * (down @ up)).astype(x.dtype)

        flat = x.reshape(-1, x.shape[-1])
        return scaled(flat, down[0], up[0]).reshape(*x.shape[:-1], up.shape[-1])
    # Modules differ from token to token, and their kernels would not fit: one product per rank.
    weights = kernel().astype(x.dtype)
    total = jnp.zeros((), x.dtype)
    for r in range(down.shape[-1]):
        inner = routed_vector(down[..., r].astype(x.dtype), ctx)
        outer = routed_vector(up[:, r].astype(x.dtype), ctx)
        total = total + ((x * inner) @ weights) * outer
    return total


@dataclasses.dataclass(frozen=True)
class GLoRA(OnLinears):
    """GLoRA on chosen linear layers.

    Attributes:
      rank: R, of the terms that are "low_rank".
      a: what scales the kernel W: "low_rank", a "vector" [Dout], a "scalar" or "none".
      b: what is added to the kernel: "low_rank", a "vector" [Dout] for all rows, a "scalar" or
        "none".
      c: what makes a bias of the kernel: "low_rank", a "vector" [Din] or "none".
      e: the bias: a "vector" [Dout], a "scalar" or "none".
      linears: shell patterns over "block/layer", as LoRA's.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    a: Form = "low_rank"
    b: Form = "low_rank"
    c: BiasOfKernel = "low_rank"
    e: Bias = "scalar"
    linears: tuple[str, ...] = ("*attention/*", "mlp/*")
    stacks: Stacks = ("encoder",)
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "glora"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if {self.a, self.b, self.c, self.e} == {"none"}:
            raise UserError("GLoRA.a, b, c and e are all 'none', so nothing would train")

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
        module = _Terms(self.rank, self.routes, self.a, self.b, self.c, self.e, name=self.scope)
        return y + ctx.gate * module(x, y, kernel, ctx)

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Replaces each adapted kernel by W + W∘A + B, in float32.

        Raises:
          UserError: there is a bias, which no T5 has.
        """
        if self.c != "none" or self.e != "none":
            raise UserError(
                "GLoRA with a bias (c or e) cannot be folded: no linear layer of T5 has one"
            )
        kernels = {}
        for place, leaves in modules_of(adapter, self.scope):
            kernel = kernel_of(base, place)
            kernels[place] = kernel * (1 + _term("a", leaves, route)) + _term("b", leaves, route)
        return with_kernels(base, kernels)


def _term(name: str, leaves: dict[str, np.ndarray], route: int) -> np.ndarray | float:
    """Returns A or B, [Din,Dout] or broadcast to it."""
    if f"{name}_down" in leaves:
        return leaves[f"{name}_down"][route] @ leaves[f"{name}_up"][route]
    return leaves[name][route] if name in leaves else 0.0
