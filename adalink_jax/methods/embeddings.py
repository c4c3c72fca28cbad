"""Folding into the token table of the encoder what a method does to each token by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Params

# Rows folded at a time: 32 MiB of float32 at D = 1024.
_ROWS = 8192


def with_own_table(
    base: Params,
    stacks: tuple[str, ...],
    change: Callable[[Array, slice], Array],
) -> dict[str, Any]:
    """Returns the base with a token table of the encoder's own: E' = E + change(E).

    The decoder and T5 1.0's tied output keep the base's table.

    Args:
      base: the base's tree, of arrays on the host.
      stacks: the stacks that the method adapts.
      change: takes some rows of the table [M,D], and which they are; returns what is added to them.

    Raises:
      UserError: the method adapts the decoder's input.
    """
    if "decoder" in stacks:
        raise UserError(
            "what is added at the decoder's input cannot be folded: the decoder's token table is "
            "the base's shared one, which T5 1.0 uses as output layer too; only the encoder "
            "can have a table of its own"
        )
    encoder = base["encoder"]
    table = encoder.get("token_embedder", base["token_embedder"])["embedding"]
    folded = np.array(table, np.float32)
    for start in range(0, len(folded), _ROWS):
        which = slice(start, start + _ROWS)
        folded[which] += np.asarray(change(folded[which], which))
    return {**base, "encoder": {**encoder, "token_embedder": {"embedding": folded}}}
