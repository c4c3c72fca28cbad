"""The pictures of a run: opens its image encoder, and checks that the base takes what it gives."""

import os

from adalink_jax.data.images import Pictures
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config
from adalink_jax.runs.options import Images
from adalink_jax.runs.setup import say


def pictures_of(images: Images, config: T5Config, cache_dir: str | None = None) -> Pictures | None:
    """Opens the image encoder of a run.

    Args:
      images: the settings of its images.
      config: the base's architecture.
      cache_dir: the cache, as for `adalink_jax.runs.options.Data`.

    Returns:
      What sees the pictures of the run's tasks; None if no encoder is set.

    Raises:
      UserError: the encoder cannot be read, or is not one of the base.
    """
    encoder = images.encoder
    if encoder is None:
        return None
    if isinstance(encoder, str):
        from adalink_jax.checkpoints import load_image_encoder

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
    return Pictures(
        encoder,
        images.folder or os.path.expanduser(os.environ.get("IMAGE_DIR", "")) or None,
        dtype=images.dtype,
        stored=images.stored,
        cache_dir=cache_dir,
        batch_size=images.batch_size,
        say=say,
    )
