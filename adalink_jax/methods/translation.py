"""Translation: one trained vector, added to every token's embedding.

``x' = x + b``. It is AdaLink without its product (rank 0), and so the lower end of a rank curve.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from adalink_jax.methods.base import Array, Context, Method, Params, Stacks
from adalink_jax.methods.embeddings import with_own_inputs
from adalink_jax.methods.low_rank import Vector
from adalink_jax.values import Size


@dataclasses.dataclass(frozen=True)
class Translation(Method):
    """A vector added at the input of the encoder, the decoder, or both.

    Attributes:
      routes: K, the number of vectors; each token's route chooses one.
      stacks: the stacks whose inputs are adapted.
    """

    routes: Size = 1
    stacks: Stacks = ("encoder",)

    scope: ClassVar[str] = "translation"

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack not in self.stacks:
            return x, ctx
        vector = Vector("bias", self.routes, name=self.scope)
        return x + vector(x.shape[-1], x.dtype, ctx), ctx

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Adds the vector to every row of the encoder's token table, and to images."""
        vector = np.asarray(adapter["encoder"][self.scope]["bias"][route])

        def change(rows: Array, which: slice) -> Array:
            return vector

        return with_own_inputs(base, self.stacks, change, lambda w, bias: (w, bias + vector))
