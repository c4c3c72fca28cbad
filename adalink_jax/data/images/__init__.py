"""Pictures of tasks: read with Pillow, encoded once by a frozen encoder, kept as features.

Importing this package only imports NumPy and Pillow. Pixels never enter TensorFlow: an example has
the key of its picture, and a batch the picture's features.
"""

from adalink_jax.data.images.features import (
    Encoder,
    Features,
    Pictures,
    check_trained_with,
    check_width,
    identity_of,
)
from adalink_jax.data.images.reading import read

__all__ = [
    "Encoder",
    "Features",
    "Pictures",
    "check_trained_with",
    "check_width",
    "identity_of",
    "read",
]
