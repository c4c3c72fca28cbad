"""BLIP-2's image encoder: a ViT, and a Q-Former whose few queries read the ViT's tokens.

Source: Li et al. 2023 (arXiv 2301.12597). A query stays a token of its own from layer to layer, so
a picture becomes as many tokens as there are queries, 32 in the published models.
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.activations import FUNCTIONS
from adalink_jax.models.vision.vit import Attention, Mlp, ViT, ViTConfig, layer_norm
from adalink_jax.values import Checked, Depth, OneOf, Positive, Size

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class QFormerConfig(Checked):
    """The architecture of a Q-Former; that of the published models by default.

    Attributes:
      width: width of the queries.
      depth: number of blocks.
      num_heads: heads of an attention; they divide the width.
      mlp_dim: width inside the MLP.
      queries: M, number of queries.
      cross_every: the first of so many blocks attends to the picture.
      activation: the MLP's function.
      epsilon: added to the variance in layer norms.
    """

    width: Size = 768
    depth: Depth = 12
    num_heads: Size = 12
    mlp_dim: Size = 3072
    queries: Size = 32
    cross_every: Depth = 2
    activation: Annotated[str, OneOf(tuple(FUNCTIONS))] = "gelu_exact"
    epsilon: Positive = 1e-12

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(
                f"QFormerConfig: {self.num_heads} heads do not divide width {self.width}"
            )


class QFormerBlock(nn.Module):
    """Attention among queries, to the picture where `crosses`, and MLP; a norm after each."""

    config: QFormerConfig
    crosses: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B M D"], picture: Float[Array, "B T Dv"]
    ) -> Float[Array, "B M D"]:
        cfg = self.config
        y = Attention(cfg.num_heads, cfg.width, name="attention")(x, x)
        x = layer_norm("attention_norm", cfg.epsilon)(x + y)
        if self.crosses:
            y = Attention(cfg.num_heads, cfg.width, name="cross_attention")(x, picture)
            x = layer_norm("cross_attention_norm", cfg.epsilon)(x + y)
        y = Mlp(cfg.mlp_dim, cfg.activation, name="mlp")(x)
        return layer_norm("mlp_norm", cfg.epsilon)(x + y)


class QFormer(nn.Module):
    """Learned queries that read a picture's tokens."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "B T Dv"]) -> Float[Array, "B M D"]:
        cfg = self.config
        shape = (cfg.queries, cfg.width)
        queries = self.param("query_tokens", nn.initializers.normal(0.02), shape)
        x = layer_norm("norm", cfg.epsilon)(queries)
        x = jnp.broadcast_to(x, (len(picture), *shape))
        for i in range(cfg.depth):
            x = QFormerBlock(cfg, i % cfg.cross_every == 0, name=f"layers_{i}")(x, picture)
        return x


class Blip2Vision(nn.Module):
    """BLIP-2's ViT and Q-Former: what stands in front of its projection to T5."""

    vision: ViTConfig
    queries: QFormerConfig

    @property
    def image_size(self) -> int:
        """S, pixels along the side of the pictures."""
        return self.vision.image_size

    @nn.compact
    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B M D"]:
        """Returns the queries' tokens of some pictures.

        Args:
          pixels: pictures as `Preprocessing.prepare` makes them.
        """
        picture = ViT(self.vision, name="vision")(pixels)
        return QFormer(self.queries, name="qformer")(picture)
