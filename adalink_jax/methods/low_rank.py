"""The routed low-rank product that AdaLink and LoRA are made of.

A task's id, a modality's id and a tenant's id are the same thing: a route per token that chooses
one of K low-rank modules. Cost does not grow with K: only the few modules that a row uses are
gathered, then two batched products run over all of the row's tokens, with the columns of other
modules masked.
"""

from collections.abc import Callable

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
}


def routed_low_rank(
    x: Float[Array, "B T D"],
    down: Float[Array, "K D R"],
    up: Float[Array, "K R F"],
    routes: Int[Array, "B T"] | None,
    slots: int = 1,
    activation: Callable[[Array], Array] = ACTIVATIONS["identity"],
) -> Float[Array, "B T F"]:
    """f(x · down[route]) · up[route], with each token's own route.

    Args:
      x: the tokens.
      down: the K down-projections.
      up: the K up-projections.
      routes: each token's module, in [0, K). May be None where K is 1. Padding must repeat a
        route of its row.
      slots: S, how many distinct routes a row holds at most. `jnp.unique` drops surplus routes
        in silence, so whoever makes the rows keeps to it.
      activation: f; maps zero to zero.

    Raises:
      ValueError: K > 1 and no routes.
    """
    num_routes, width, rank = down.shape
    if num_routes == 1:
        # Over a flat list of tokens: contracting two axes for the gradients of the matrices, XLA
        # would transpose whole activations, and compute again what is fused into them.
        y = activation(x.reshape(-1, width) @ down[0]) @ up[0]
        return y.reshape(*x.shape[:-1], up.shape[-1])
    if routes is None:
        raise ValueError(f"the adapter has {num_routes} routes, but the batch says none")
    slots = min(slots, num_routes)
    if slots == 1:
        ids = routes[:, 0]
        return activation(jnp.einsum("btd,bdr->btr", x, down[ids])) @ up[ids]
    batch = x.shape[0]
    # ids [B,S]: the routes of each row; slot [B,T]: which of them a token takes.
    ids, slot = jax.vmap(
        lambda row: jnp.unique(row, return_inverse=True, size=slots, fill_value=0)
    )(routes)
    # [B,S,D,R] -> [B,D,S·R]
    gathered_down = down[ids].transpose(0, 2, 1, 3).reshape(batch, width, slots * rank)
    gathered_up = up[ids].reshape(batch, slots * rank, up.shape[-1])
    hidden = activation(jnp.einsum("btd,bdc->btc", x, gathered_down))
    own = slot[..., None] == jnp.repeat(jnp.arange(slots), rank)  # [B,T,S·R]
    return jnp.einsum("btc,bcf->btf", hidden * own, gathered_up)


class LowRank(nn.Module):
    """K low-rank modules; the child scope that holds ``down [K,D,R]`` and ``up [K,R,F]``.

    `up` starts at zero, so training starts exactly at the base model. Parameters are float32 and
    are used in the tokens' dtype. Their axes are the method's own, so that no rule of the base
    shards an adapter.
    """

    features: int
    rank: int
    routes: int
    down_init: Callable[..., Array]
    activation: Callable[[Array], Array] = ACTIVATIONS["identity"]
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T F"]:
        down = param_with_axes(
            "down",
            self.down_init,
            (self.routes, x.shape[-1], self.rank),
            jnp.float32,
            axes=("routes", "adapter_embed", "rank"),
        )
        up = param_with_axes(
            "up",
            nn.initializers.zeros,
            (self.routes, self.rank, self.features),
            jnp.float32,
            axes=("routes", "rank", "adapter_embed"),
        )
        if self.dropout_rate:
            x = nn.Dropout(self.dropout_rate, name="dropout")(x, deterministic=ctx.deterministic)
        return routed_low_rank(
            x,
            down.astype(x.dtype),
            up.astype(x.dtype),
            ctx.routes,
            ctx.route_slots,
            self.activation,
        )
