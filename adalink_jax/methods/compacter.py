"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products.

Mahabadi et al. 2021 (arXiv 2106.04647): with ``A(z) = f(z·D + d)·U + u``,

    D = Σ_i S_i ⊗ (a_i · b_i),  U = Σ_i S_i ⊗ (c_i · e_i),  i = 1 … n

with a rule S [n,n,n] that all adapters share, columns a_i [D/n] and e_i [D/n], and rows b_i [R/n]
and c_i [R/n]. The places are Houlsby's: after self-attention and the MLP, ``y' = y + A(y)``. The
authors share S between encoder and decoder too; here each stack has its own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Layers, Site, Stacks
from adalink_jax.methods.blocks import BLOCKS, SOURCES, OnBlocks
from adalink_jax.methods.low_rank import ACTIVATIONS, routed_low_rank, routed_vector, used_modules
from adalink_jax.values import OneOf, Size


def kronecker_sum(
    rule: Float[Array, "K N A B"], left: Float[Array, "K N P"], right: Float[Array, "K N Q"]
) -> Float[Array, "K A·P B·Q"]:
    """Returns Σ_i rule_i ⊗ (left_i · right_i) for each of K modules."""
    product = jnp.einsum("kiab,kip,kiq->kapbq", rule, left, right)
    modules, a, p, b, q = product.shape
    return product.reshape(modules, a * p, b * q)


def _glorot(size: int) -> Callable[..., Array]:
    """Uniform as Glorot's for [size, 1], times √2."""
    limit = math.sqrt(12 / (size + 1))

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class _Rule(nn.Module):
    """The stack's child scope with ``rule [K,N,N,N]``, which is S."""

    terms: int
    routes: int

    @nn.compact
    def __call__(self) -> Float[Array, "K N N N"]:
        shape = (self.routes, *3 * (self.terms,))
        axes = ("routes", "terms", "adapter_embed", "rank")
        return param_with_axes("rule", nn.initializers.normal(1e-4), shape, jnp.float32, axes=axes)


class _Adapter(nn.Module):
    """A block's child scope: ``down_left [K,N,D/N]``, ``up_left [K,N,R/N]``, … and the biases."""

    rank: int
    terms: int
    routes: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(
        self, z: Float[Array, "B T D"], rule: Float[Array, "K N N N"], ctx: Context
    ) -> Float[Array, "B T D"]:
        sizes = {"adapter_embed": z.shape[-1], "rank": self.rank}

        def factor(name: str, axis: str) -> Array:
            part = sizes[axis] // self.terms
            shape = (self.routes, self.terms, part)
            axes = ("routes", "terms", axis)
            return param_with_axes(name, _glorot(part), shape, jnp.float32, axes=axes)

        def bias(name: str, axis: str) -> Array:
            shape, zeros = (self.routes, sizes[axis]), nn.initializers.zeros
            return param_with_axes(name, zeros, shape, jnp.float32, axes=("routes", axis))

        leaves = {
            "rule": rule,
            "down_left": factor("down_left", "adapter_embed"),
            "down_right": factor("down_right", "rank"),
            "up_left": factor("up_left", "rank"),
            "up_right": factor("up_right", "adapter_embed"),
            "down_bias": bias("down_bias", "rank"),
        }

        up_bias = routed_vector(bias("up_bias", "adapter_embed").astype(z.dtype), ctx)
        own, routes = used_modules(leaves, ctx)
        down = kronecker_sum(own["rule"], own["down_left"], own["down_right"]).astype(z.dtype)
        up = kronecker_sum(own["rule"], own["up_left"], own["up_right"]).astype(z.dtype)
        inner = own["down_bias"].astype(z.dtype)
        y = routed_low_rank(z, down, up, routes, ctx.route_slots, self.activation, inner)
        return y + up_bias


@dataclasses.dataclass(frozen=True)
class Compacter(OnBlocks):
    """Compacter's adapters at chosen blocks.

    Attributes:
      rank: R, the width of the bottleneck; a multiple of `terms`. The authors take D/32.
      terms: n, the Kronecker products of a matrix; it divides the model's width.
      blocks: of "attention" (to the same sequence), "cross_attention" and "mlp"; "mlp" alone is
        Compacter++.
      source: what the adapter reads: the block's "output", its normed "input", the "residual"
        stream before the block, or the "sum" of output and residual.
      activation: f.
      stacks: the stacks whose layers are adapted.
      layers: numbers of the adapted layers in each stack; None for all.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size = 24
    terms: Size = 4
    blocks: tuple[Annotated[str, OneOf(BLOCKS)], ...] = ("attention", "mlp")
    source: Annotated[str, OneOf(SOURCES)] = "output"
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "gelu"
    stacks: Stacks = ("encoder", "decoder")
    layers: Layers = None
    routes: Size = 1

    scope: ClassVar[str] = "compacter"
    size_field: ClassVar[str] = "rank"

    def __post_init__(self):
        super().__post_init__()
        if self.rank % self.terms:
            raise UserError(f"Compacter.rank is {self.rank}, no multiple of terms, {self.terms}")

    @property
    def start(self) -> str:
        return "near"

    @property
    def size(self) -> int:
        """R / n: a rank is a multiple of n."""
        return self.rank // self.terms

    def resized(self, size: int) -> "Compacter":
        return dataclasses.replace(self, rank=size * self.terms)

    def prepare(self, ctx: Context) -> Any:
        if ctx.stack not in self.stacks:
            return None
        if ctx.width % self.terms:
            raise UserError(
                f"Compacter.terms is {self.terms}, which does not divide the model's width, "
                f"{ctx.width}"
            )
        return _Rule(self.terms, self.routes, name=self.scope)()

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
        adapter = _Adapter(
            self.rank, self.terms, self.routes, ACTIVATIONS[self.activation], name=self.scope
        )
        return y + ctx.gate * adapter(self.read(y, x, residual), ctx.shared, ctx)
