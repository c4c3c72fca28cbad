"""The pictures of a run: opens its image encoder, and checks that the base takes what it gives."""

import os
from collections.abc import Mapping
from typing import Any

from adalink_jax.checkpoints import load_image_encoder
from adalink_jax.data.images import Pictures
from adalink_jax.data.images.features import check_trained_with, check_width
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
    check_width(encoder, config.image_width, "Images.encoder")
    pictures = Pictures(
        encoder,
        images.folder or os.path.expanduser(os.environ.get("IMAGE_DIR", "")) or None,
        dtype=images.dtype,
        stored=images.stored,
        cache_dir=cache_dir,
        batch_size=images.batch_size,
        say=say,
    )
    check_trained_with(pictures.identity, (trained or {}).get("image_encoder"))
    return pictures
