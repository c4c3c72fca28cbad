"""The pictures of a run: opens its image encoder, and checks that the base takes what it gives."""

import os
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints import load_image_encoder
from adalink_jax.data.images import Pictures
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs.options import Images
from adalink_jax.runs.setup import say


def pictures_of(
    images: Images,
    config: T5Config,
    cache_dir: str | None = None,
    trained: Mapping[str, Any] | None = None,
) -> Pictures | None:
    """Opens the image encoder of a run.

    Args:
      images: the settings of its images.
      config: the base's architecture.
      cache_dir: the cache, as for `adalink_jax.runs.options.Data`.
      trained: what an adapter that is used records of the data that it was trained on.

    Returns:
      What sees the pictures of the run's tasks; None if no encoder is set.

    Raises:
      UserError: the encoder cannot be read, is not one of the base, or is another one than the
        adapter was trained with.
    """
    encoder = images.encoder
    if encoder is None:
        return None
    if isinstance(encoder, str):
        encoder = load_image_encoder(encoder)
    if config.image_width is None:
        raise UserError(
            "Images.encoder is set, but the base reads text alone: it has no projection of images "
            "(image_width)"
        )
    if config.image_width != encoder.width:
        raise UserError(
            f"the image encoder's tokens have {encoder.width} numbers, but the base takes "
            f"{config.image_width} (image_width); give the encoder that it was trained with"
        )
    pictures = Pictures(
        encoder,
        images.folder or os.path.expanduser(os.environ.get("IMAGE_DIR", "")) or None,
        dtype=images.dtype,
        stored=images.stored,
        cache_dir=cache_dir,
        batch_size=images.batch_size,
        say=say,
    )
    recorded = (trained or {}).get("image_encoder")
    before = recorded if isinstance(recorded, Mapping) else pictures.identity
    for name in ("fingerprint", "preprocessing"):
        if before.get(name) != pictures.identity[name]:
            raise UserError(
                f"the adapter was trained with another image encoder: its {name} was "
                f"{before.get(name)!r:.200} and is {pictures.identity[name]!r:.200}"
            )
    return pictures
