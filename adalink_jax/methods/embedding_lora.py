"""LoRA on the token table: a low-rank vector for each token of the vocabulary.

``x' = x + alpha/R · A[token] · B`` with A [V,R] zero at the start and B [R,D] normal, as the LoRA
authors' code has it for embeddings. Only the encoder's embedding changes; the decoder's and a tied
output keep the base's table.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.methods.base import TEXT, Array, Context, Method, Params
from adalink_jax.methods.embeddings import with_own_inputs
from adalink_jax.methods.low_rank import routed_low_rank, row_routes
from adalink_jax.values import Size


class _Rows(nn.Module):
    """The child scope with ``rows [K,V,R]`` and ``up [K,R,D]``."""

    rank: int
    routes: int

    @nn.compact
    def __call__(self, dtype: Any, ctx: Context) -> Float[Array, "B T D"]:
        rows = param_with_axes(
            "rows",
            nn.initializers.zeros,
            (self.routes, ctx.vocab_size, self.rank),
            jnp.float32,
            axes=("routes", "adapter_vocab", "rank"),
        ).astype(dtype)
        up = param_with_axes(
            "up",
            nn.initializers.normal(1.0),
            (self.routes, self.rank, ctx.width),
            jnp.float32,
            axes=("routes", "rank", "adapter_embed"),
        ).astype(dtype)
        assert ctx.tokens is not None
        if self.routes == 1:
            return rows[0][ctx.tokens] @ up[0]
        ids, slot = row_routes(ctx.routes, self.routes, ctx.route_slots)
        own = rows[jnp.take_along_axis(ids, slot, axis=1), ctx.tokens]
        same = jnp.broadcast_to(jnp.eye(self.rank, dtype=dtype), (self.routes, *[self.rank] * 2))
        return routed_low_rank(own, same, up, ctx.routes, ctx.route_slots)


@dataclasses.dataclass(frozen=True)
class EmbeddingLoRA(Method):
    """LoRA on the encoder's token embedding.

    Attributes:
      rank: R, the numbers of each token.
      alpha: the update is scaled by alpha / rank.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    alpha: float = 16.0
    routes: Size = 1

    scope: ClassVar[str] = "embedding_lora"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True

    def resized(self, size: int) -> "EmbeddingLoRA":
        """Returns the method with another rank and the same scale, alpha / rank."""
        return dataclasses.replace(self, rank=size, alpha=self.alpha * size / self.rank)

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack != "encoder":
            return x, ctx
        delta = _Rows(self.rank, self.routes, name=self.scope)(x.dtype, ctx)
        if ctx.modalities is not None:  # Images have no row in the table.
            delta = jnp.where((ctx.modalities == TEXT)[..., None], delta, 0)
        return x + (self.alpha / self.rank) * delta, ctx

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        leaves = adapter["encoder"][self.scope]
        scaled = {**leaves, "up": leaves["up"] * np.float32(self.alpha / self.rank)}
        plain = dataclasses.replace(self, alpha=float(self.rank))
        return plain, {"encoder": {self.scope: scaled}}

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds the product to the encoder's token table."""

        def change(rows: Array, which: slice) -> Array:
            leaves = adapter["encoder"][self.scope]
            own, up = (np.asarray(leaves[name][route], np.float32) for name in ("rows", "up"))
            return np.float32(self.alpha / self.rank) * (own[which] @ up)

        return with_own_inputs(base, ("encoder",), change, lambda *projection: projection)
