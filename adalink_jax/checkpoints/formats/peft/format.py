"""What one of PEFT's formats is, and what they share."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method

# What PEFT puts before the name of a module of the model.
PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of PEFT and the method that has it.

    Attributes:
      kind: PEFT's name, ``peft_type``.
      method: the class of the method.
      read: the fields of PEFT's configuration that `load` reads, or that change nothing here.
      write: ``(method, leaves of one route, config, base)`` → PEFT's settings and tensors.
      load: ``(settings, tensors, config, base, where)`` → the method, and the leaves of one route.
      switch: the setting of PEFT's that is on in this format, and off in others of its kind.
    """

    kind: str
    method: type[Method]
    read: frozenset[str]
    write: Callable[..., Any]
    load: Callable[..., Any]
    switch: str | None = None

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Returns whether a configuration of PEFT's may be of this format."""
        on = self.switch is None or bool(settings.get(self.switch))
        return settings.get("peft_type") == self.kind and on


def number(settings: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """Returns a setting: an int of 1 or more, or a finite float.

    Raises:
      UserError: it is missing or no such number.
    """
    value = settings.get(name)
    # By type, as True is an int too.
    if type(value) is int or (kind is float and type(value) is float):
        if math.isfinite(value) and (kind is float or value >= 1):
            return kind(value)
    raise UserError(f"{where}: {name} is {value!r}")
