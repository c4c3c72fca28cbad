"""Folding what a method does to each input of the encoder by itself: into table and projection."""

from collections.abc import Callable
from typing import Any

import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Params

# Rows folded at a time: 32 MiB of float32 at D = 1024.
_ROWS = 8192


def with_own_inputs(
    base: Params,
    stacks: tuple[str, ...],
    change: Callable[[Array, slice], Array],
    project: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Returns the base with a token table of the encoder's own: E' = E + change(E).

    The decoder and T5 1.0's tied output keep the base's table. The projection of images, if the
    base has one, becomes ``project(kernel, bias)``.

    Args:
      base: the base's tree, of arrays on the host.
      stacks: the stacks that the method adapts.
      change: takes some rows of the table [M,D], and which they are; returns what is added to them.
      project: takes the projection's kernel [Dv,D] and bias [D]; returns the new ones.

    Raises:
      UserError: the method adapts the decoder's input; or what `project` raises.
    """
    if "decoder" in stacks:
        raise UserError(
            "what is added at the decoder's input cannot be folded: the decoder's token table is "
            "the base's shared one, which T5 1.0 uses as output layer too; only the encoder "
            "can have a table of its own"
        )
    encoder = dict(base["encoder"])
    if projection := encoder.get("image_projection"):
        old = (np.asarray(projection[name], np.float32) for name in ("kernel", "bias"))
        encoder["image_projection"] = dict(zip(("kernel", "bias"), project(*old), strict=True))
    table = encoder.get("token_embedder", base["token_embedder"])["embedding"]
    folded = np.array(table, np.float32)
    for start in range(0, len(folded), _ROWS):
        which = slice(start, start + _ROWS)
        folded[which] += np.asarray(change(folded[which], which))
    return {**base, "encoder": {**encoder, "token_embedder": {"embedding": folded}}}
