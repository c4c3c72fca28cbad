"""What a search chooses from: knobs, and the settings that a choice stands for."""

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.methods import autopeft
from adalink_jax.models.t5 import T5Config

# A choice: for each knob the number of its value.
Choice = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Space:
    """Knobs with their values, and what they set.

    Attributes:
      knobs: the values of each knob by name, smallest first where they have an order.
      settings: returns the gin settings of {knob: value}; None where these are no adapter.
    """

    knobs: Mapping[str, Sequence[Any]]
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]

    def values(self, choice: Choice) -> dict[str, Any]:
        """Returns {knob: value} of a choice."""
        pairs = zip(self.knobs.items(), choice, strict=True)
        return {name: values[number] for (name, values), number in pairs}

    def flags(self, choice: Choice) -> list[str] | None:
        """Returns the flags of a training with a choice; None where it is no adapter."""
        found = self.settings(self.values(choice))
        return None if found is None else [f"--gin.{name}={v!r}" for name, v in found.items()]

    def said(self, choice: Choice) -> str:
        """Returns a choice in words."""
        return ", ".join(f"{name}={value!r}" for name, value in self.values(choice).items())


def given(knobs: Sequence[str]) -> Space:
    """Returns the space of ``NAME=[VALUE, …]`` flags: each knob is a gin setting.

    Raises:
      UserError: a flag is no name with a list of Python values, or has fewer than two of them.
    """
    found: dict[str, list[Any]] = {}
    for knob in knobs:
        name, _, text = knob.partition("=")
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            values = None
        if not name.strip() or not isinstance(values, list):
            raise UserError(f"--choose is {knob!r}; it takes NAME=[VALUE, VALUE…] in Python's form")
        if len({repr(value) for value in values}) < max(2, len(values)):
            raise UserError(f"--choose {name}: two or more different values are needed")
        if name in found:
            raise UserError(f"--choose {name} is given twice")
        found[name] = values
    return Space(found, lambda values: values)


def published(config: T5Config) -> dict[str, Space]:
    """Returns the published spaces on a base, by name."""
    layers = min(config.num_encoder_layers, config.num_decoder_layers)
    return {"autopeft": Space(autopeft.knobs(layers, config.emb_dim), autopeft.settings)}
