"""Compiled programs by shape; the least recently used ones are freed.

A jitted function keeps every program that it has compiled for as long as it lives. A stream meets
new shapes for ever, so here the programs have an owner that holds only so many.
"""

from typing import Any

import jax

from adalink_jax.methods.base import Array, Params
from adalink_jax.models.t5 import Transformer


class Programs:
    """Runs jitted functions of (model, params, tokens, …), each compiled for exact shapes."""

    def __init__(self, most: int):
        """Holds no program yet, and later at most `most`."""
        self._most = most
        self._compiled: dict[tuple, Any] = {}  # Ordered by use, the most recent one last.

    def __len__(self) -> int:
        """Returns the number of programs in memory."""
        return len(self._compiled)

    def run(
        self,
        function: Any,
        model: Transformer,
        params: Params,
        tokens: Array,
        *,
        static: dict[str, Any] | None = None,
        **arrays: Array,
    ) -> jax.Array:
        """Calls a function, compiled now or before.

        Args:
          function: a function of `adalink_jax.models.decoding`, under `jax.jit`.
          model: the network with its method, from which the shapes of `params` follow.
          params: base and adapter, merged.
          tokens: the inputs' token ids.
          static: arguments by which `function` is compiled.
          **arrays: its other arguments.
        """
        static = static or {}
        shapes = (tokens.shape, *((name, array.shape) for name, array in sorted(arrays.items())))
        key = (function, model, shapes, tuple(sorted(static.items())))
        program = self._compiled.pop(key, None)
        if program is None:
            program = function.lower(model, params, tokens, **arrays, **static).compile()
            function.clear_cache()  # Forgets what it traced, which takes as much memory.
        self._compiled[key] = program
        if len(self._compiled) > self._most:
            del self._compiled[next(iter(self._compiled))]
        return program(params, tokens, **arrays)
