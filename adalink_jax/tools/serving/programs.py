"""Compiled programs by shape; the least recently used ones are freed.

A jitted function keeps every program that it has compiled for as long as it lives. A stream meets
new shapes for ever, so here the programs have an owner that holds only so many.
"""

from typing import Any

import jax

from adalink_jax.methods.base import Params
from adalink_jax.models.t5 import Transformer


class Programs:
    """Runs jitted functions of (model, params, …), each compiled for exact shapes.

    Attributes:
      compiled: how many were compiled so far.
    """

    def __init__(self, most: int):
        """Holds no program yet, and later at most `most`."""
        self._most, self.compiled = most, 0
        self._compiled: dict[tuple, Any] = {}  # Ordered by use, the most recent one last.

    def __len__(self) -> int:
        """Returns the number of programs in memory."""
        return len(self._compiled)

    def run(
        self,
        function: Any,
        model: Transformer,
        params: Params,
        *,
        static: dict[str, Any] | None = None,
        **arrays: Any,
    ) -> Any:
        """Calls a function, compiled now or before.

        Args:
          function: a function of `adalink_jax.models`, under `jax.jit`.
          model: the network with its method, from which the shapes of `params` follow.
          params: base and adapter, merged.
          static: arguments by which `function` is compiled.
          **arrays: its other arguments, arrays or trees of them.
        """
        static = static or {}
        shapes = tuple(jax.typeof(leaf).shape for leaf in jax.tree.leaves(arrays))
        key = (function, model, tuple(sorted(arrays)), shapes, tuple(sorted(static.items())))
        program = self._compiled.pop(key, None)
        if program is None:
            program = function.lower(model, params, **arrays, **static).compile()
            function.clear_cache()  # Forgets what it traced, which takes as much memory.
            self.compiled += 1
        self._compiled[key] = program
        if len(self._compiled) > self._most:
            del self._compiled[next(iter(self._compiled))]
        return program(params, **arrays)
