"""A frozen image encoder with its parameters."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.vision.efficientnet import EfficientNetLite0
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.qformer import Blip2Vision
from adalink_jax.models.vision.vit import ViT

Array = jax.Array
Network = ViT | Blip2Vision | EfficientNetLite0


def parameter_shapes(network: Network) -> Mapping[str, tuple[int, ...]]:
    """Returns the shape of each of a network's parameters by its ``"/"``-joined name."""
    return _parameter_shapes(cast(Any, network))


@functools.cache
def _parameter_shapes(network: Network) -> Mapping[str, tuple[int, ...]]:
    size = network.image_size
    pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    tree = jax.eval_shape(network.init, jax.random.key(0), pixels)["params"]
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return types.MappingProxyType({name: tuple(leaf.shape) for name, leaf in flat.items()})


def check_pictures(network: Network, preprocessing: Preprocessing, where: str) -> None:
    """Raises `UserError` if pictures are not prepared in the size that a network takes.

    Args:
      network: the architecture.
      preprocessing: how pictures are prepared.
      where: the encoder's path.
    """
    made, size = (preprocessing.height, preprocessing.width), network.image_size
    if made != (size, size):
        raise UserError(
            f"image encoder {where}: pictures are prepared in {made[0]} x {made[1]} pixels, and"
            f" the network takes {size} x {size}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder:
    """Pictures in, image tokens out; `checkpoints.load_image_encoder` reads one.

    Attributes:
      network: its architecture.
      params: its parameters, nested dicts of float32 arrays.
      preprocessing: how a picture becomes its input.
      fingerprint: SHA-256 of the architecture and the parameters, 64 hexadecimal digits.
    """

    network: Network
    params: dict[str, Any]
    preprocessing: Preprocessing
    fingerprint: str

    @functools.cached_property
    def _output(self) -> tuple[int, int]:
        size = self.network.image_size
        pixels = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        return jax.eval_shape(self.network.apply, {"params": self.params}, pixels).shape[1:]

    @property
    def tokens(self) -> int:
        """M, the number of a picture's tokens."""
        return self._output[0]

    @property
    def width(self) -> int:
        """Dv, the width of a token."""
        return self._output[1]

    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B M Dv"]:
        """Encodes pictures; each size B of a batch is compiled once.

        Args:
          pixels: float32 pictures as ``preprocessing.prepare`` makes them.

        Returns:
          float32 tokens.
        """
        # A picture is encoded once for many runs, so it is not worth TensorFloat-32's error.
        with jax.default_matmul_precision("highest"):
            return _encoded(self.network, self.params, pixels)


@functools.partial(jax.jit, static_argnums=0)
def _encoded(network: Network, params: dict[str, Any], pixels: Array) -> Any:
    return network.apply({"params": params}, pixels)
