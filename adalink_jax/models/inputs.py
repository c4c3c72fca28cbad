"""What the network takes of a batch, in one place.

Training, evaluation, decoding, costs, plans, exported programs, serving and T5X's features take the
names, shapes and dtypes from here. Names are T5X's, and those of `Transformer`'s arguments.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from adalink_jax.methods.base import Array
from adalink_jax.models.config import T5Config

# One route per row; or one per input token, where a row has several.
Routes = Int[Array, " B"] | Int[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One of the network's inputs.

    Attributes:
      axes: what its axes count: "rows", "inputs" (T), "targets" (L), "images" (M) or
        "image_width" (Dv).
      dtype: its dtype; images may have any floating one.
      packed: whether only rows of several examples have it.
    """

    axes: tuple[str, ...]
    dtype: Any = jnp.int32
    packed: bool = False


FEATURES: Mapping[str, Feature] = {
    "encoder_input_tokens": Feature(("rows", "inputs")),
    "decoder_input_tokens": Feature(("rows", "targets")),
    "decoder_target_tokens": Feature(("rows", "targets")),
    "encoder_segment_ids": Feature(("rows", "inputs"), packed=True),
    "decoder_segment_ids": Feature(("rows", "targets"), packed=True),
    "encoder_positions": Feature(("rows", "inputs"), packed=True),
    "decoder_positions": Feature(("rows", "targets"), packed=True),
    "encoder_routes": Feature(("rows", "inputs")),
    "decoder_routes": Feature(("rows", "targets")),
    "encoder_images": Feature(("rows", "images", "image_width"), jnp.float32),
    "encoder_image_mask": Feature(("rows", "images")),
}
# Those that come from pictures; a batch of text has none of them.
IMAGES = tuple(name for name, feature in FEATURES.items() if "images" in feature.axes)


def features_of(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what the network takes of a batch, by the names of its arguments."""
    return {name: batch[name] for name in FEATURES if name in batch}


def shapes_of_batch(
    config: T5Config, rows: int, inputs: int, targets: int, images: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch's features, with one example in a row.

    Args:
      config: the architecture.
      rows: B.
      inputs: T.
      targets: L.
      images: M, vectors of images in a row; 0 for text alone.
    """
    sizes = {"rows": rows, "inputs": inputs, "targets": targets, "images": images}
    sizes["image_width"] = config.image_width or 0
    found = {}
    for name, feature in FEATURES.items():
        shape = tuple(sizes[axis] for axis in feature.axes)
        if not feature.packed and (name not in IMAGES or math.prod(shape)):
            found[name] = jax.ShapeDtypeStruct(shape, feature.dtype)
    return found


def to_decode(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what the functions of `models.decoding` take of a batch, by their arguments' names.

    Args:
      batch: features of the encoder, named as in `FEATURES`.
    """
    given = {name: batch[name] for name in ("encoder_input_tokens", *IMAGES) if name in batch}
    return given | ({"routes": batch["encoder_routes"]} if "encoder_routes" in batch else {})


@flax.struct.dataclass
class EncoderInputs:
    """What the encoder reads of a batch; without `images`, what its mask is made of.

    Attributes:
      tokens: token ids, 0 on padding.
      routes: for methods with several routes.
      images: vectors of images; None for text alone, or where they were read before.
      image_mask: 1 where a vector is real, 0 on padding; None for text alone.
    """

    tokens: Int[Array, "B T"]
    routes: Routes | None = None
    images: Float[Array, "B M Dv"] | None = None
    image_mask: Int[Array, "B M"] | None = None

    @classmethod
    def of(
        cls,
        tokens: Int[Array, "B T"],
        routes: Routes | None = None,
        images: Float[Array, "B M Dv"] | None = None,
        image_mask: Int[Array, "B M"] | None = None,
    ) -> Self:
        """Makes them, with a mask of all images if there are images without one."""
        if images is not None and image_mask is None:
            image_mask = jnp.ones(images.shape[:2], jnp.int32)
        return cls(tokens, routes, images, image_mask)

    @property
    def empty(self) -> Bool[Array, " B"]:
        """Whether a row has neither text nor images, and only fills up the batch."""
        empty = ~jnp.any(self.tokens > 0, axis=-1)
        return empty if self.image_mask is None else empty & ~jnp.any(self.image_mask > 0, axis=-1)

    def to_encode(self) -> dict[str, Any]:
        """Returns the arguments of `Transformer.encode`."""
        given = {
            "encoder_input_tokens": self.tokens,
            "encoder_routes": self._token_routes(),
            "encoder_images": self.images,
            "encoder_image_mask": self.image_mask,
        }
        return {name: value for name, value in given.items() if value is not None}

    def to_decode(self, length: int) -> dict[str, Any]:
        """Returns the arguments of `Transformer.decode` for a decoder of `length` tokens.

        The decoder uses the first input token's route.
        """
        given = self.to_encode()
        given.pop("encoder_images", None)
        if (routes := self._token_routes()) is not None:
            shape = (self.tokens.shape[0], length)
            given["decoder_routes"] = jnp.broadcast_to(routes[:, :1], shape)
        return given

    def _token_routes(self) -> Int[Array, "B T"] | None:
        if self.routes is None:
            return None
        routes = self.routes if self.routes.ndim == 2 else self.routes[:, None]
        return jnp.broadcast_to(routes, self.tokens.shape)
