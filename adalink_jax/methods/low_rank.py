"""What methods are made of: routed low-rank products and routed vectors.

A task, a modality and a tenant are all given as a route per token, which chooses one of K
low-rank modules. Cost does not grow with K: only the few modules that a row uses are gathered.
Two batched products then run over all tokens of the row, with the columns of other modules
masked.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float, Int

from adalink_jax.methods.base import Array, Context

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


def row_routes(
    routes: Int[Array, "B T"] | None, num_routes: int, slots: int
) -> tuple[Int[Array, "B S"], Int[Array, "B T"]]:
    """Returns the S routes of each row, and which of them each token has.

    Args:
      routes: each token's module, in [0, K). Padding must repeat a route of its row.
      num_routes: K.
      slots: the maximum number of distinct routes in a row. `jnp.unique` silently drops routes
        beyond it, so the code that makes the rows must keep to it.

    Raises:
      ValueError: no routes.
    """
    if routes is None:
        raise ValueError(f"the adapter has {num_routes} routes, but the batch has none")
    slots = min(slots, num_routes)
    if slots == 1:
        return routes[:, :1], jnp.zeros_like(routes)
    return jax.vmap(lambda row: jnp.unique(row, return_inverse=True, size=slots, fill_value=0))(
        routes
    )


def routed_vector(vectors: Float[Array, "K F"], ctx: Context) -> Float[Array, "#B #T F"]:
    """Returns each token's own vector; axes along which all tokens have the same are 1."""
    if len(vectors) == 1:
        return vectors[None]
    ids, slot = row_routes(ctx.routes, len(vectors), ctx.route_slots)
    if ids.shape[1] == 1:
        return vectors[ids]
    return jnp.take_along_axis(vectors[ids], slot[..., None], axis=1)


def used_modules(
    leaves: Mapping[str, Array], ctx: Context
) -> tuple[dict[str, Array], Int[Array, "B T"] | None]:
    """Returns what is needed of K modules whose matrices have to be made before they are used.

    Args:
      leaves: by name, [K, …].
      ctx: the tokens' context.

    Returns:
      The leaves [U, …] of the modules that the rows use, each row with its own copies, or all K if
      these are fewer; and each token's place among them.
    """
    modules = len(next(iter(leaves.values())))
    if modules == 1:
        return dict(leaves), ctx.routes
    ids, slot = row_routes(ctx.routes, modules, ctx.route_slots)
    if ids.size >= modules:
        return dict(leaves), ctx.routes
    used = {name: leaf[ids.reshape(-1)] for name, leaf in leaves.items()}
    return used, ids.shape[1] * jnp.arange(len(ids))[:, None] + slot


def routed_low_rank(
    x: Float[Array, "B T D"],
    down: Float[Array, "K D R"],
    up: Float[Array, "K R F"],
    routes: Int[Array, "B T"] | None,
    slots: int = 1,
    activation: Callable[[Array], Array] = ACTIVATIONS["identity"],
    bias: Float[Array, "K R"] | None = None,
) -> Float[Array, "B T F"]:
    """Computes f(x · down[route] + bias[route]) · up[route], with each token's own route.

    Args:
      x: the tokens.
      down: the K down-projections.
      up: the K up-projections.
      routes: as in `row_routes`. May be None if K is 1.
      slots: as in `row_routes`.
      activation: f; maps zero to zero.
      bias: added before f; None for none.

    Raises:
      ValueError: K > 1 and no routes.
    """
    num_routes, width, rank = down.shape
    if num_routes == 1:
        # Tokens are flattened, because a contraction over two axes in the gradients of the
        # matrices makes XLA transpose whole activations and recompute what is fused into them.
        hidden = x.reshape(-1, width) @ down[0]
        y = activation(hidden if bias is None else hidden + bias) @ up[0]
        return y.reshape(*x.shape[:-1], up.shape[-1])
    ids, slot = row_routes(routes, num_routes, slots)
    slots = ids.shape[1]
    if slots == 1:
        ids = ids[:, 0]
        hidden = jnp.einsum("btd,bdr->btr", x, down[ids])
        return activation(hidden if bias is None else hidden + bias[ids][:, None]) @ up[ids]
    batch = x.shape[0]
    # [B,S,D,R] -> [B,D,S·R]
    gathered_down = down[ids].transpose(0, 2, 1, 3).reshape(batch, width, slots * rank)
    gathered_up = up[ids].reshape(batch, slots * rank, up.shape[-1])
    hidden = jnp.einsum("btd,bdc->btc", x, gathered_down)
    if bias is not None:
        hidden += bias[ids].reshape(batch, 1, slots * rank)
    own = slot[..., None] == jnp.repeat(jnp.arange(slots), rank)  # [B,T,S·R]
    return jnp.einsum("btc,bcf->btf", activation(hidden) * own, gathered_up)


def example_mean(x: Float[Array, "B T 1"], ctx: Context) -> Float[Array, "B T 1"]:
    """Returns each token's mean over the real tokens of its own example."""
    ids = ctx.mask.astype(jnp.int32) if ctx.segment_ids is None else ctx.segment_ids
    same = ((ids[:, :, None] == ids[:, None]) & ctx.mask[:, None]).astype(x.dtype)  # [B,T,T]
    return (same @ x) / jnp.maximum(same.sum(-1, keepdims=True), 1)


class Gate(nn.Module):
    """UniPELT's gate ``σ(x·w + b)``, in a child scope with ``weights [K,D]`` and ``bias [K,1]``.

    Mao et al. 2022 (arXiv 2110.07577): one number a token says how much of a method it needs. For a
    whole example it is the mean over its tokens. In the decoder each token keeps its own, since it
    must not depend on later ones.

    Attributes:
      routes: K.
      of_example: whether a token of the encoder gets the mean of its example.
    """

    routes: int
    of_example: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T 1"]:
        shape, axes = (self.routes, x.shape[-1]), ("routes", "adapter_embed")
        init = nn.initializers.normal(0.02)
        weights = param_with_axes("weights", init, shape, jnp.float32, axes=axes)
        zeros = nn.initializers.zeros
        bias = param_with_axes("bias", zeros, (self.routes, 1), jnp.float32, axes=axes)
        product = jnp.sum(x.astype(jnp.float32) * routed_vector(weights, ctx), -1, keepdims=True)
        gate = jax.nn.sigmoid(product + routed_vector(bias, ctx))
        if self.of_example and ctx.stack == "encoder":
            gate = example_mean(gate, ctx)
        return gate.astype(x.dtype)


class LowRank(nn.Module):
    """K low-rank modules, in a child scope with ``down [K,D,R]`` and ``up [K,R,F]``.

    With `bias` there are ``down_bias [K,R]`` and ``up_bias [K,F]`` too. `up` and the biases start
    at zero as a rule, so training starts exactly at the base model. Dropout acts on the input, or
    on the R numbers before the activation. With `gate` the result is multiplied by UniPELT's gate
    of each "token", or of each "example". Parameters are float32 and are cast to the tokens' dtype.
    Their logical axes are the method's own, so that the base's sharding rules do not apply to an
    adapter.
    """

    features: int
    rank: int
    routes: int
    down_init: Callable[..., Array]
    up_init: Callable[..., Array] = nn.initializers.zeros
    activation: Callable[[Array], Array] = ACTIVATIONS["identity"]
    bias: bool = False
    dropout_rate: float = 0.0
    hidden_dropout_rate: float = 0.0
    gate: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T F"]:
        sizes = {"routes": self.routes, "rank": self.rank, "adapter_embed": x.shape[-1]}
        gate = None
        if self.gate is not None:
            gate = Gate(self.routes, self.gate == "example", name="gate")(x, ctx)

        def param(name: str, init: Callable[..., Array], axes: tuple[str, ...], **other: int):
            shape = tuple({**sizes, **other}[axis] for axis in axes)
            return param_with_axes(name, init, shape, jnp.float32, axes=axes).astype(x.dtype)

        out = {"adapter_embed": self.features}
        down = param("down", self.down_init, ("routes", "adapter_embed", "rank"))
        up = param("up", self.up_init, ("routes", "rank", "adapter_embed"), **out)
        down_bias = None
        if self.bias:
            down_bias = param("down_bias", nn.initializers.zeros, ("routes", "rank"))
        if self.dropout_rate:
            x = nn.Dropout(self.dropout_rate, name="dropout")(x, deterministic=ctx.deterministic)
        dropout = nn.Dropout(self.hidden_dropout_rate, name="hidden_dropout")

        def activation(hidden: Array) -> Array:
            return self.activation(dropout(hidden, deterministic=ctx.deterministic))

        y = routed_low_rank(x, down, up, ctx.routes, ctx.route_slots, activation, down_bias)
        if self.bias:
            up_bias = param("up_bias", nn.initializers.zeros, ("routes", "adapter_embed"), **out)
            y += routed_vector(up_bias, ctx)
        return y if gate is None else gate * y


class Vector(nn.Module):
    """K vectors, in a child scope with one leaf ``[K,F]``.

    Attributes:
      leaf: the leaf's name.
      routes: K.
      init: initializer of the float32 leaf.
    """

    leaf: str
    routes: int
    init: Callable[..., Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, features: int, dtype: Any, ctx: Context) -> Float[Array, "#B #T F"]:
        shape, axes = (self.routes, features), ("routes", "adapter_embed")
        vectors = param_with_axes(self.leaf, self.init, shape, jnp.float32, axes=axes)
        return routed_vector(vectors.astype(dtype), ctx)
