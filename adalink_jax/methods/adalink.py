"""AdaLink: a low-rank residual module between the embedding and the frozen blocks.

arXiv 2310.12100, section 3: ``x' = x + f(x · W_down) · W_up`` for every token, with W_down
[D,R], W_up [R,D], no biases, and W_up zero at the start. Leaving out f costs almost no quality,
so the identity is the default. A route has 2·D·R parameters at any depth of the network.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Method, Params, Stacks
from adalink_jax.methods.low_rank import ACTIVATIONS, LowRank, routed_low_rank
from adalink_jax.values import OneOf, Size

# Rows of the token table folded at a time: 32 MiB of float32 at D = 1024.
_FOLDED_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class AdaLink(Method):
    """AdaLink at the input of the encoder, the decoder, or both.

    Attributes:
      rank: R, the columns of W_down.
      activation: f, one of "identity", "relu", "gelu".
      routes: K, the number of modules; each token's route chooses one.
      stacks: the stacks whose inputs are adapted.
    """

    rank: Size
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "identity"
    routes: Size = 1
    stacks: Stacks = ("encoder",)

    scope: ClassVar[str] = "adalink"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True  # Every activation maps zero to zero.

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack not in self.stacks:
            return x, ctx
        delta = LowRank(
            features=x.shape[-1],
            rank=self.rank,
            routes=self.routes,
            # The paper does not give W_down's initialization; this has unit variance after W_down.
            down_init=nn.initializers.variance_scaling(
                1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
            ),
            activation=ACTIVATIONS[self.activation],
            name=self.scope,
        )(x, ctx)
        return x + delta, ctx

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Folds the module into the encoder's token table: E' = E + f(E · W_down) · W_up.

        The decoder and T5 1.0's tied output keep the base's table.
        """
        if "decoder" in self.stacks:
            raise UserError(
                "AdaLink at the decoder's input cannot be folded: the decoder's token table is "
                "the base's shared one, which T5 1.0 uses as output layer too; only the encoder "
                "can have a table of its own"
            )
        scope = adapter["encoder"][self.scope]
        down, up = (np.asarray(scope[name][route : route + 1]) for name in ("down", "up"))
        encoder = base["encoder"]
        table = encoder.get("token_embedder", base["token_embedder"])["embedding"]
        folded = np.array(table, np.float32)
        # The same precision as `routed_low_rank`; the default of accelerators may be lower.
        with jax.default_matmul_precision("float32"):
            for start in range(0, len(folded), _FOLDED_ROWS):
                rows = folded[start : start + _FOLDED_ROWS]
                delta = routed_low_rank(
                    rows[None], down, up, None, activation=ACTIVATIONS[self.activation]
                )
                rows += np.asarray(delta[0])
        return {**base, "encoder": {**encoder, "token_embedder": {"embedding": folded}}}
