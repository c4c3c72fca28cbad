"""Frozen random matrices that are made from a seed where they are used, and stored nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random
from jaxtyping import Float

from adalink_jax.methods.base import Array


def seeded_uniform(seed: int, rows: int, columns: int) -> Float[Array, "2 rows columns"]:
    """Returns two independent matrices of numbers that are uniform within ±1.

    A number depends on the seed, its row and its column alone, so that smaller matrices are parts
    of larger ones. It is the same on all devices and whatever JAX's settings say of random numbers,
    since what an adapter computes depends on it.
    """
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, (rows, columns), axis).reshape(-1) for axis in (0, 1)
    ]
    # The first half of the counters is hashed together with the second: (row, column).
    key = jnp.asarray(np.array([0, seed], np.uint32))
    words = random.threefry_2x32(key, jnp.concatenate(places)).reshape(2, rows, columns)
    # 24 bits, which float32 holds exactly.
    return (words >> 8).astype(jnp.float32) * 2.0**-23 - 1
