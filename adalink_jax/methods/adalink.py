"""AdaLink: a low-rank residual module between the embedding and the frozen blocks.

arXiv 2310.12100, section 3: ``x' = x + f(x · W_down) · W_up`` for every token, with W_down
[D,R], W_up [R,D], no biases, and W_up zero at the start. Leaving out f costs almost no quality,
so the identity is the default. A route has 2·D·R parameters at any depth of the network. The
biases are those of ADePT (arXiv 2501.03291), which is AdaLink with relu beside a short prompt.

Where images stand in front of the text, one module is for both, or each modality has its own
(`AdaLink.by_modality`, the paper's choice): ``2 · 2·D·R`` parameters, as many as one of rank 2·R.
With a rank of its own for images (`AdaLink.image_rank`) it is ``2·D·(R + R_image)``.
"""

import dataclasses
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.methods.base import IMAGE, TEXT, Array, Context, Method, Params, Stacks
from adalink_jax.methods.embeddings import with_own_inputs
from adalink_jax.methods.low_rank import ACTIVATIONS, routed_low_rank
from adalink_jax.methods.modalities import ByModality
from adalink_jax.values import OneOf, Rate, Size


@dataclasses.dataclass(frozen=True)
class AdaLink(ByModality):
    """AdaLink at the input of the encoder, the decoder, or both.

    Attributes:
      rank: R, the columns of W_down.
      activation: f, one of "identity", "relu", "gelu".
      routes: K, the number of modules; each token's route chooses one.
      stacks: the stacks whose inputs are adapted.
      bias: whether both projections have a bias, which starts at zero.
      dropout_rate: dropout on the R numbers before f, as ADePT has it.
      by_modality: whether images and text have a module each, on a base that takes images.
      image_rank: the rank of the module for images, where `rank` is that of text alone; None for
        the same one.
    """

    rank: Size
    activation: Annotated[str, OneOf(tuple(ACTIVATIONS))] = "identity"
    routes: Size = 1
    stacks: Stacks = ("encoder",)
    bias: bool = False
    dropout_rate: Rate = 0.0
    by_modality: bool = False
    image_rank: Size | None = None

    scope: ClassVar[str] = "adalink"
    size_field: ClassVar[str] = "rank"
    widens: ClassVar[bool] = True  # Every activation maps zero to zero.
    training_only: ClassVar[tuple[str, ...]] = ("dropout_rate",)

    def inputs(
        self, x: Float[Array, "B T D"], ctx: Context
    ) -> tuple[Float[Array, "B T D"], Context]:
        if ctx.stack not in self.stacks:
            return x, ctx
        delta = self.low_rank(
            x,
            ctx,
            features=x.shape[-1],
            # The paper does not give W_down's initialization; this has unit variance after W_down.
            down_init=nn.initializers.variance_scaling(
                1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0
            ),
            activation=ACTIVATIONS[self.activation],
            bias=self.bias,
            hidden_dropout_rate=self.dropout_rate,
        )
        return x + delta, ctx

    def for_inference(self, adapter: Params) -> tuple[Method, Params]:
        return dataclasses.replace(self, dropout_rate=0.0), adapter

    def fold(self, base: Params, adapter: Params, route: int) -> dict[str, Any]:
        """Folds the module into the encoder's token table: E' = E + f(E · W_down) · W_up.

        That of images goes into their projection, ``W' = W + W · W_down · W_up``, where f is the
        identity: no projection has another f behind it.
        """

        def of(modality: int) -> dict[str, np.ndarray]:
            leaves = self.leaves_of(adapter["encoder"], route, modality)
            return {name: np.asarray(leaf) for name, leaf in leaves.items()}

        def change(rows: Array, which: slice) -> Array:
            leaves = of(TEXT)
            # The same precision as `routed_low_rank`; the default of accelerators may be lower.
            with jax.default_matmul_precision("float32"):
                delta = routed_low_rank(
                    rows[None],
                    leaves["down"],
                    leaves["up"],
                    None,
                    activation=ACTIVATIONS[self.activation],
                    bias=leaves.get("down_bias"),
                )
            return np.asarray(delta[0]) + leaves.get("up_bias", np.float32(0))

        def project(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if self.activation != "identity":
                raise UserError(
                    f"AdaLink.activation is '{self.activation}': what it does to images cannot be "
                    "folded into their projection, which is linear"
                )
            leaves = {name: leaf[0] for name, leaf in of(IMAGE).items()}
            down, up = leaves["down"], leaves["up"]
            inner = bias @ down + leaves.get("down_bias", np.float32(0))
            added = inner @ up + leaves.get("up_bias", np.float32(0))
            return kernel + kernel @ down @ up, bias + added

        return with_own_inputs(base, self.stacks, change, project)
