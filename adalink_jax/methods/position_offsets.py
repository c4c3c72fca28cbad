"""Position offsets: low-rank vectors, added to the embeddings by position alone.

DePT (Shi & Lipani 2024, arXiv 2309.05173) is these beside a short prompt:
``x'_t = x_t + alpha/√R · A_t · B`` for the t-th token, with A [S,R] and B [R,D]. Its authors' code
has alpha = 8, A uniform within ±1/√R and B zero at the start.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Method, Params
from adalink_jax.methods.low_rank import row_routes
from adalink_jax.values import Length, Size


class _Offsets(nn.Module):
    """The child scope with ``positions [K,S,R]`` and ``up [K,R,D]``; gives [K,S,D]."""

    rank: int
    length: int
    routes: int

    @nn.compact
    def __call__(self, width: int) -> Float[Array, "K S D"]:
        positions = param_with_axes(
            "positions",
            # Uniform within ±1/√R.
            nn.initializers.variance_scaling(
                1 / 3, "fan_out", "uniform", in_axis=-2, out_axis=-1, batch_axis=0
            ),
            (self.routes, self.length, self.rank),
            jnp.float32,
            axes=("routes", "prompt", "rank"),
        )
        up = param_with_axes(
            "up",
            nn.initializers.zeros,
            (self.routes, self.rank, width),
            jnp.float32,
            axes=("routes", "rank", "adapter_embed"),
        )
        return positions @ up


@dataclasses.dataclass(frozen=True)
class PositionOffsets(Method):
    """DePT's offsets at the encoder's input.

    Attributes:
      rank: R.
      max_length: S, the largest number of tokens of an input; longer inputs are refused.
      alpha: offsets are scaled by alpha / √rank.
      routes: K, the number of modules; each token's route chooses one.
    """

    rank: Size
    max_length: Length = 256
    alpha: float = 8.0
    routes: Size = 1

    scope: ClassVar[str] = "position_offsets"
    size_field: ClassVar[str] = "rank"

    @property
    def longest_input(self) -> int:
        """S."""
        return self.max_length

    def lengthened(self, adapter: Params, length: int) -> tuple[Method, Params]:
        """Returns the adapter with zeros as the vectors of further positions."""
        if length <= self.max_length:
            return self, adapter
        flat: dict[Any, Any] = traverse_util.flatten_dict(dict(adapter))
        longer = {
            name: np.pad(leaf, ((0, 0), (0, length - self.max_length), (0, 0)))
            for name, leaf in flat.items()
            if name[-2:] == (self.scope, "positions")
        }
        method = dataclasses.replace(self, max_length=length)
        return method, traverse_util.unflatten_dict(flat | longer)

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack != "encoder":
            return x, ctx
        length = x.shape[1]
        if isinstance(length, int) and length > self.max_length:
            raise UserError(
                f"PositionOffsets.max_length is {self.max_length}, but an input has {length} tokens"
            )
        offsets = _Offsets(self.rank, self.max_length, self.routes, name=self.scope)(ctx.width)
        offsets = (offsets * (self.alpha / math.sqrt(self.rank))).astype(x.dtype)
        positions = ctx.example_positions()
        if self.routes == 1:
            return x + offsets[0][positions], ctx
        ids, slot = row_routes(ctx.routes, self.routes, ctx.route_slots)
        routes = jnp.take_along_axis(ids, slot, axis=1)
        return x + offsets[routes, jnp.broadcast_to(positions, routes.shape)], ctx
