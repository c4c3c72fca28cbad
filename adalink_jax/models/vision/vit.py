"""One pre-norm vision transformer for ViT, SigLIP, CLIP, DINOv2 and BLIP-2's ViT.

The families differ in what `ViTConfig` says, and in the names of their arrays
(`adalink_jax.checkpoints.formats.vision`). All of it computes in float32.
"""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.activations import FUNCTIONS
from adalink_jax.values import Checked, Depth, OneOf, Positive, Size

Array = jax.Array

_KERNEL = nn.initializers.xavier_uniform()
_POSITIONS = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTConfig(Checked):
    """The architecture of a vision transformer.

    Attributes:
      width: Dv, width of the tokens.
      depth: number of blocks.
      num_heads: heads of an attention; they divide the width.
      mlp_dim: width inside the MLP.
      patch_size: pixels along a patch's side.
      image_size: S, pixels along the side of the pictures. Pixels right of and below the last
        whole patch are not seen.
      class_token: "none"; "kept", the first of the tokens that leave; or "dropped", seen by the
        patches but not among the tokens that leave.
      patch_bias: whether the linear layer of the patches has a bias; CLIP's has none.
      qkv_bias: whether queries, keys and values have biases.
      pre_norm: whether a layer norm stands before the first block, as in CLIP.
      final_norm: whether one stands after the last block.
      layer_scale: whether each block's results are scaled by learned vectors, as in DINOv2.
      gated_mlp: whether the MLP is gated, as in DINOv2's largest.
      activation: the MLP's function.
      epsilon: added to the variance in layer norms.
    """

    width: Size
    depth: Depth
    num_heads: Size
    mlp_dim: Size
    patch_size: Size
    image_size: Size
    class_token: Annotated[str, OneOf(("none", "kept", "dropped"))] = "none"
    patch_bias: bool = True
    qkv_bias: bool = True
    pre_norm: bool = False
    final_norm: bool = True
    layer_scale: bool = False
    gated_mlp: bool = False
    activation: Annotated[str, OneOf(tuple(FUNCTIONS))] = "gelu_exact"
    epsilon: Positive = 1e-6

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(f"ViTConfig: {self.num_heads} heads do not divide width {self.width}")
        if self.image_size < self.patch_size:
            raise UserError(
                f"ViTConfig: pictures of {self.image_size} pixels hold no patch of "
                f"{self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size


class Attention(nn.Module):
    """Multi-head attention with biases, from x to itself or to another sequence."""

    num_heads: int
    width: int
    qkv_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Tq D"], source: Float[Array, "B Tk Ds"]
    ) -> Float[Array, "B Tq D"]:
        def project(name: str, of: Array) -> Float[Array, "B T N C"]:
            dense = nn.Dense(self.width, self.qkv_bias, kernel_init=_KERNEL, name=name)
            return dense(of).reshape(*of.shape[:2], self.num_heads, -1)

        q, k, v = project("query", x), project("key", source), project("value", source)
        logits = jnp.einsum("bqnc,bknc->bnqk", q, k) * q.shape[-1] ** -0.5
        y = jnp.einsum("bnqk,bknc->bqnc", jax.nn.softmax(logits), v)
        y = y.reshape(*x.shape[:2], self.width)
        return nn.Dense(self.width, kernel_init=_KERNEL, name="out")(y)


class Mlp(nn.Module):
    """Two linear layers around a function; a gated one multiplies by a second first layer."""

    mlp_dim: int
    activation: str
    gated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden = nn.Dense(self.mlp_dim, kernel_init=_KERNEL, name="wi")(x)
        if self.gated:
            gate = nn.Dense(self.mlp_dim, kernel_init=_KERNEL, name="gate")(x)
            hidden = FUNCTIONS[self.activation](gate) * hidden
        else:
            hidden = FUNCTIONS[self.activation](hidden)
        return nn.Dense(x.shape[-1], kernel_init=_KERNEL, name="wo")(hidden)


def layer_norm(name: str, epsilon: float) -> nn.LayerNorm:
    """Returns a layer norm whose variance is that of the differences from the mean."""
    return nn.LayerNorm(epsilon, use_fast_variance=False, name=name)


class Block(nn.Module):
    """Self-attention and MLP, each with a norm before and a residual connection around it."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg = self.config

        def scaled(y: Float[Array, "B T D"], name: str) -> Float[Array, "B T D"]:
            if not cfg.layer_scale:
                return y
            return y * self.param(name, nn.initializers.ones, (cfg.width,))

        y = layer_norm("norm_1", cfg.epsilon)(x)
        y = Attention(cfg.num_heads, cfg.width, cfg.qkv_bias, name="attention")(y, y)
        x = x + scaled(y, "scale_1")
        y = layer_norm("norm_2", cfg.epsilon)(x)
        y = Mlp(cfg.mlp_dim, cfg.activation, cfg.gated_mlp, name="mlp")(y)
        return x + scaled(y, "scale_2")


class ViT(nn.Module):
    """A vision transformer.

    Examples:
      >>> vit = ViT(ViTConfig(128, 3, 4, 512, patch_size=8, image_size=32))
      >>> params = vit.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
      >>> vit.apply({"params": params}, np.zeros((2, 32, 32, 3))).shape
      (2, 16, 128)
    """

    config: ViTConfig

    @property
    def image_size(self) -> int:
        """S, pixels along the side of the pictures."""
        return self.config.image_size

    @nn.compact
    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B M Dv"]:
        """Returns the tokens of some pictures: patches row by row, a class token first.

        Args:
          pixels: pictures as `Preprocessing.prepare` makes them.
        """
        cfg = self.config
        patch: Any = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(
            cfg.width, patch, patch, "VALID", use_bias=cfg.patch_bias, name="patch_embedding"
        )(pixels)
        x = x.reshape(len(x), cfg.grid**2, cfg.width)
        first = cfg.class_token != "none"
        if first:
            token = self.param("class_token", _POSITIONS, (cfg.width,))
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, cfg.width)), x], axis=1)
        x = x + self.param("position_embedding", _POSITIONS, x.shape[1:])
        if cfg.pre_norm:
            x = layer_norm("pre_norm", cfg.epsilon)(x)
        for i in range(cfg.depth):
            x = Block(cfg, name=f"layers_{i}")(x)
        if cfg.final_norm:
            x = layer_norm("final_norm", cfg.epsilon)(x)
        return x[:, 1:] if cfg.class_token == "dropped" else x
