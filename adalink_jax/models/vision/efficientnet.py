"""EfficientNet-Lite0: a small convolutional network, here as an encoder of 49 image tokens.

Batch norms are folded into the convolutions before them. The classifier and the 1x1 convolution
before it are left out, so a picture of 224 x 224 pixels becomes 7 x 7 tokens of width 320.

Source: Tan and Le 2019 (arXiv 1905.11946), and tensorflow/tpu, models/official/efficientnet/lite.
"""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Float

Array = jax.Array

# Groups of blocks: (blocks, size of the depthwise kernel, stride of the first block, factor by
# which a block widens inside, width of its output).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32


class EfficientNetLite0(nn.Module):
    """The network, with TensorFlow's padding and ReLU6."""

    @property
    def image_size(self) -> int:
        """S, pixels along the side of the pictures."""
        return 224

    @nn.compact
    def __call__(self, pixels: Float[Array, "B 224 224 3"]) -> Float[Array, "B 49 320"]:
        """Returns the last block's grid, row by row.

        Args:
          pixels: pictures as `Preprocessing.prepare` makes them.
        """

        def conv(x: Array, name: str, width: int, size: int, stride: int = 1, groups: int = 1):
            kernel: Any = (size, size)
            layer = nn.Conv(width, kernel, stride, "SAME", feature_group_count=groups, name=name)
            return layer(x)

        x = nn.relu6(conv(pixels, "stem", _STEM, 3, 2))
        number = 0
        for blocks, size, first_stride, factor, width in STAGES:
            for i in range(blocks):
                stride, inside = (first_stride if i == 0 else 1), x.shape[-1] * factor
                y, name = x, f"blocks_{number}"
                if factor > 1:
                    y = nn.relu6(conv(y, f"{name}_expand", inside, 1))
                y = nn.relu6(conv(y, f"{name}_depthwise", inside, size, stride, inside))
                y = conv(y, f"{name}_project", width, 1)
                x = x + y if x.shape == y.shape else y
                number += 1
        return x.reshape(len(x), -1, x.shape[-1])
