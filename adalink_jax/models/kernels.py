"""Kernels of linear layers: as they are stored, and the product with them.

A frozen kernel may be stored in other numbers than it is multiplied in: bfloat16, or int8 with one
float32 scale for each output (qwix's QArray: values · scale).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from adalink_jax.methods.base import Array

# In which a frozen base may be stored. float16 overflows in T5 (see T5Config.dtype).
FROZEN_DTYPES = ("float32", "bfloat16", "int8")


def product(x: Float[Array, "M Din"], kernel: Any, dtype: Any) -> Float[Array, "M Dout"]:
    """Multiplies x with a kernel, computed in `dtype`.

    The backward pass casts the kernel again. If it were kept, the casts of all scanned layers would
    be a second base in memory.

    Args:
      x: in `dtype`.
      kernel: [Din, Dout], as it is stored.
      dtype: of the product.
    """
    if isinstance(kernel, jax.Array | np.ndarray) and kernel.dtype == dtype:
        return x @ kernel
    cast = jax.checkpoint(lambda x, kernel: x @ _values(kernel).astype(dtype), prevent_cse=False)
    return cast(x, kernel)


def _values(kernel: Any) -> Array:
    if isinstance(kernel, jax.Array | np.ndarray):
        return kernel
    import qwix

    return qwix.dequantize(kernel)


def quantised(kernel: Float[Array, "*layers Din Dout"]) -> Any:
    """A kernel as int8, each output on a scale of its own, rounded to nearest.

    Returns:
      qwix's QArray of int8 values [*layers, Din, Dout] and float32 scales [*layers, 1, Dout].
    """
    import qwix

    outputs = [axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2]
    return qwix.quantize(kernel, jnp.int8, channelwise_axes=outputs)


def quantised_shardings(kernel: Any, sharding: NamedSharding) -> Any:
    """Where the parts of a quantised kernel lie: scales have no inputs to be split along.

    Args:
      kernel: as `quantised` returns it, or its shapes.
      sharding: of the kernel before.
    """
    spec = [*sharding.spec, *[None] * (len(kernel.shape) - len(sharding.spec))]
    spec[-2] = None
    scale = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return kernel.replace(qvalue=sharding, scale=scale)
