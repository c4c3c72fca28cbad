"""The routed low-rank product that AdaLink and LoRA use.

A task, a modality and a tenant are all given as a route per token, which chooses one of K
low-rank modules. Cost does not grow with K: only the few modules that a row uses are gathered.
Two batched products then run over all tokens of the row, with the columns of other modules
masked.
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
    """Computes f(x · down[route]) · up[route], with each token's own route.

    Args:
      x: the tokens.
      down: the K down-projections.
      up: the K up-projections.
      routes: each token's module, in [0, K). May be None if K is 1. Padding must repeat a route
        of its row.
      slots: S, the maximum number of distinct routes in a row. `jnp.unique` silently drops
        routes beyond S, so the code that makes the rows must keep to it.
      activation: f; maps zero to zero.

    Raises:
      ValueError: K > 1 and no routes.
    """
    num_routes, width, rank = down.shape
    if num_routes == 1:
        # Tokens are flattened, because a contraction over two axes in the gradients of the
        # matrices makes XLA transpose whole activations and recompute what is fused into them.
        y = activation(x.reshape(-1, width) @ down[0]) @ up[0]
        return y.reshape(*x.shape[:-1], up.shape[-1])
    if routes is None:
        raise ValueError(f"the adapter has {num_routes} routes, but the batch has none")
    slots = min(slots, num_routes)
    if slots == 1:
        ids = routes[:, 0]
        return activation(jnp.einsum("btd,bdr->btr", x, down[ids])) @ up[ids]
    batch = x.shape[0]
    # ids [B,S]: the routes of each row; slot [B,T]: the index of a token's route in ids.
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
    """K low-rank modules, in a child scope with ``down [K,D,R]`` and ``up [K,R,F]``.

    `up` starts at zero, so training starts exactly at the base model. Parameters are float32 and
    are cast to the tokens' dtype. Their logical axes are the method's own, so that the base's
    sharding rules do not apply to an adapter.
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
