"""Invertible adapters: coupling layers between the embedding and the encoder.

MAD-X (Pfeiffer et al. 2020, arXiv 2005.00052) with NICE's coupling (Dinh et al. 2014): the halves
of an embedding are ``x1' = x1 + F(x2)`` and ``x2' = x2 + G(x1')``, F and G small MLPs with relu.
The library adapters puts them at T5's encoder only, as here.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Context, Method, Params
from adalink_jax.methods.embeddings import with_own_inputs
from adalink_jax.methods.lora import DOWN_INIT
from adalink_jax.methods.low_rank import ACTIVATIONS, LowRank
from adalink_jax.values import Size


class _Coupling(nn.Module):
    """The child scope with the MLPs ``first`` (F) and ``second`` (G)."""

    reduction: int
    routes: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], ctx: Context) -> Float[Array, "B T D"]:
        half = x.shape[-1] // 2
        if x.shape[-1] != 2 * half or half % self.reduction:
            raise UserError(
                f"Invertible.reduction is {self.reduction}, which does not divide half of the "
                f"model's width, {x.shape[-1] / 2:g}"
            )

        def mlp(name: str) -> LowRank:
            return LowRank(
                features=half,
                rank=half // self.reduction,
                routes=self.routes,
                down_init=DOWN_INIT,
                up_init=DOWN_INIT,
                activation=ACTIVATIONS["relu"],
                bias=True,
                name=name,
            )

        first, second = x[..., :half], x[..., half:]
        first += mlp("first")(second, ctx)
        second += mlp("second")(first, ctx)
        return jnp.concatenate([first, second], axis=-1)


@dataclasses.dataclass(frozen=True)
class Invertible(Method):
    """Invertible adapters at the encoder's input.

    Attributes:
      reduction: the MLPs' inner width is D / 2 / reduction.
      routes: K, the number of modules; each token's route chooses one.
    """

    reduction: Size = 2
    routes: Size = 1

    scope: ClassVar[str] = "invertible"

    @property
    def start(self) -> str:
        return "elsewhere"

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack != "encoder":
            return x, ctx
        return _Coupling(self.reduction, self.routes, name=self.scope)(x, ctx), ctx

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Puts every row of the encoder's token table through the coupling."""
        scope = adapter["encoder"][self.scope]

        def mlp(name: str, x: Array) -> Array:
            leaves = {key: np.asarray(leaf[route], np.float32) for key, leaf in scope[name].items()}
            hidden = np.maximum(x @ leaves["down"] + leaves["down_bias"], 0)
            return hidden @ leaves["up"] + leaves["up_bias"]

        def change(rows: Array, which: slice) -> Array:
            half = rows.shape[-1] // 2
            first = mlp("first", rows[:, half:])
            return np.concatenate([first, mlp("second", rows[:, :half] + first)], axis=-1)

        def project(kernel: Array, bias: Array) -> Any:
            raise UserError(
                "an invertible adapter's MLPs cannot be folded into the projection of images, "
                "which is linear"
            )

        return with_own_inputs(base, ("encoder",), change, project)
