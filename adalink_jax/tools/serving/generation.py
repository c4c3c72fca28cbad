"""Rows of one kind of adapters that are being generated, side by side in slots."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from adalink_jax.methods.base import Method
from adalink_jax.models import slots
from adalink_jax.tools.serving.service import Row, Service, padded
from adalink_jax.tools.serving.shapes import rounded_rows

# Tokens that one call adds: what a call costs beside the network is shared by them, and a row that
# ends, or one that waits for a slot, loses at most as many less one.
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a text is generated.

    Attributes:
      max_tokens: the most tokens, including EOS.
      temperature: divides the logits; 0 takes the most likely token.
      top_p: only the most likely tokens are drawn whose probabilities add up to this.
      seed: equal seeds draw equal texts, whatever else is generated meanwhile.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Table:
    """The slots of one kind of adapters."""

    def __init__(self, service: Service, kind: Method):
        """Makes free slots.

        Args:
          service: whose engine runs them, and whose limits say how many they are.
          kind: the kind of the rows' adapters.
        """
        self._service, self._kind, self._size = service, kind, service.limits.slots
        self._rows: dict[int, Row] = {}
        self._slots: slots.Slots | None = None

    @property
    def free(self) -> int:
        """How many slots hold no row."""
        return self._size - len(self._rows)

    def begin(self, rows: Sequence[tuple[Row, Draw]]) -> list[int]:
        """Puts rows into free slots, and returns their places."""
        engine, limits = self._service.engine, self._service.limits
        pictures = self._service.pictures
        modules = [row.module for row, _ in rows]
        engine.load(self._kind, modules)
        if self._slots is None:
            shape = self._size, limits.inputs, limits.targets
            images = None if pictures is None else pictures.shape[0]
            with engine.placing():
                self._slots = slots.empty(*engine.network(self._kind), *shape, images)
        count = rounded_rows(len(rows), self._size)
        taken = [place for place in range(self._size) if place not in self._rows][: len(rows)]
        places = np.full(count, self._size, np.int32)
        places[: len(rows)] = taken
        choice = slots.Choice(
            *(
                np.asarray([getattr(draw, name) for _, draw in rows] + [0] * (count - len(rows)), t)
                for name, t in (("temperature", "f4"), ("top_p", "f4"), ("seed", "i4"))
            )
        )
        given: dict[str, Any] = {"tokens": padded([row for row, _ in rows], count, limits.inputs)}
        if pictures is not None:  # A slot has room for an image, whether its row has one or not.
            given |= pictures.batch([row.picture for row, _ in rows], count)
        given |= {"routes": engine.routes(self._kind, modules, count), "choice": choice}
        self._slots = engine.run(slots.begin, self._kind, slots=self._slots, places=places, **given)
        for place, (row, _) in zip(taken, rows, strict=True):
            self._rows[place] = row
            engine.hold(row.module)
        return taken

    def advance(self) -> np.ndarray:
        """Adds tokens to all rows; returns them, int32 [S, `STEPS`]."""
        static = {"steps": STEPS}
        run = self._service.engine.run
        self._slots, tokens = run(slots.advance, self._kind, slots=self._slots, static=static)
        return np.asarray(tokens)

    def end(self, place: int) -> None:
        """Frees a slot."""
        self._service.engine.release(self._rows.pop(place).module)

    def forget(self) -> None:
        """Frees all slots and their memory, as after a call that failed amid its work."""
        for place in tuple(self._rows):
            self.end(place)
        self._slots = None
