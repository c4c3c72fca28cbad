"""The training loss: summed cross-entropy with z-loss and label smoothing, as T5X's."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from adalink_jax.methods.base import Array


def cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the cross-entropy summed over target tokens.

    Source: T5X ``losses.compute_weighted_cross_entropy``. The z-loss, ``z_loss · log(Z)²``, keeps
    the logits from drifting. With label smoothing the target gets probability
    ``1 - label_smoothing``, and the rest is spread over the other tokens. A constant is subtracted
    so that a perfect prediction has zero loss.

    Args:
      logits: float32.
      targets: token ids.
      weights: 1 on target tokens, 0 on padding.
      z_loss: coefficient of the z-loss.
      label_smoothing: probability taken from the target.

    Returns:
      The loss including the z-loss, and the z-loss, both summed.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - target_logits
    if label_smoothing:
        others = logits.shape[-1] - 1
        low = label_smoothing / others
        confidence = 1.0 - label_smoothing
        entropy = -(confidence * math.log(confidence) + others * low * math.log(low + 1e-20))
        all_tokens = logits.shape[-1] * log_z - logits.sum(axis=-1)
        loss = (confidence - low) * loss + low * all_tokens - entropy
    z = z_loss * jnp.square(log_z)
    return jnp.sum((loss + z) * weights), jnp.sum(z * weights)
