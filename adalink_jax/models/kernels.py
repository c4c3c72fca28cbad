"""Stored kernels of linear layers, and products with them.

A frozen kernel may be stored in another dtype than it is multiplied in: bfloat16, or int8 with one
float32 scale per output (qwix's QArray: values · scale).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from adalink_jax.methods.base import Array

# The dtypes a frozen base may be stored in. float16 overflows in T5 (see T5Config.dtype).
FROZEN_DTYPES = ("float32", "bfloat16", "int8")


def product(x: Float[Array, "M Din"], kernel: Any, dtype: Any) -> Float[Array, "M Dout"]:
    """Multiplies x by a kernel in `dtype`.

    The backward pass casts the kernel again. Keeping the casts of all scanned layers would need
    as much memory as a second base.

    Args:
      x: the input, in `dtype`.
      kernel: [Din, Dout], as stored.
      dtype: dtype of the product.
    """
    if isinstance(kernel, jax.Array | np.ndarray) and kernel.dtype == dtype:
        return x @ kernel
    cast = jax.checkpoint(lambda x, kernel: x @ values(kernel).astype(dtype), prevent_cse=False)
    return cast(x, kernel)


def values(kernel: Any) -> Float[Array, "Din Dout"]:
    """Returns a stored kernel's values; those of int8 in float32."""
    if isinstance(kernel, jax.Array | np.ndarray):
        return kernel
    import qwix

    return qwix.dequantize(kernel)


def quantised(kernel: Float[Array, "*layers Din Dout"]) -> Any:
    """Quantizes a kernel to int8 with one scale per output, rounding to nearest.

    Returns:
      qwix's QArray of int8 values [*layers, Din, Dout] and float32 scales [*layers, 1, Dout].
    """
    import qwix

    outputs = [axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2]
    return qwix.quantize(jnp.asarray(kernel), jnp.int8, channelwise_axes=outputs)


def quantised_shardings(kernel: Any, sharding: NamedSharding) -> Any:
    """Returns the shardings of a quantized kernel. Scales are not split along the inputs.

    Args:
      kernel: a result of `quantised`, or its shapes.
      sharding: sharding of the original kernel.
    """
    spec = [*sharding.spec, *[None] * (len(kernel.shape) - len(sharding.spec))]
    spec[-2] = None
    scale = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return kernel.replace(qvalue=sharding, scale=scale)
