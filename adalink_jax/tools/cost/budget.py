"""Finds settings that give a method a number of parameters, to compare methods at equal cost.

Only what the adapter stores is counted. Prompt tuning's reparameterization is needed only in
training, so it is not counted.
"""

import dataclasses

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.counts import stored_parameters

TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Match:
    """The result of matching a method to a budget.

    Attributes:
      given: the original method.
      method: the size and variant of it nearest to the budget.
      parameters: the number of parameters it stores.
      budget: the wanted number.
      tolerance: how far from the budget the size may be, as a part of the budget.
    """

    given: Method
    method: Method
    parameters: int
    budget: int
    tolerance: float = TOLERANCE

    @property
    def meets(self) -> bool:
        """Whether the size is near enough to the budget."""
        return self._error <= self.tolerance

    @property
    def _error(self) -> float:
        return abs(self.parameters - self.budget) / self.budget

    def flags(self) -> str:
        """Returns the flags that give a run these settings; "" if none meet the budget."""
        if not self.meets:
            return ""
        kind = type(self.method)
        named = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
        flags = []
        for field in dataclasses.fields(self.method):
            value = getattr(self.method, field.name)
            if field.name == self.method.size_field or value != getattr(self.given, field.name):
                shown = f'"{value!r}"' if isinstance(value, tuple | str) else repr(value)
                flags.append(f"--gin.{named}.{field.name}={shown}")
        return " ".join(flags)

    def line(self) -> str:
        """Returns the result in one line, with the flags if the budget is met."""
        off = self.parameters / self.budget - 1
        if self.meets:
            return f"{self.parameters:,} parameters ({off:+.2%})  {self.flags()}".rstrip()
        if self.method.trains_base:
            return "cannot: it trains the whole model"
        nearest = "only" if self.method.size is None else "nearest"
        return (
            f"cannot within {self.tolerance * 100:g}%: its {nearest} size is "
            f"{self.parameters:,} parameters ({off:+.1%})"
        )


def match(config: T5Config, method: Method, budget: int, tolerance: float = TOLERANCE) -> Match:
    """Finds the settings with which a method stores a given number of parameters.

    The method's size is changed. If even the smallest size is too large, the method's variants,
    which store less, are tried in order.

    Args:
      config: the base's architecture.
      method: any method; only its size and variant change.
      budget: the number of parameters, at least 1.
      tolerance: how far from the budget the size may be, as a part of the budget, below 1.

    Returns:
      The first candidate within the tolerance, else the nearest.

    Raises:
      UserError: as `check`; or the method names layers that the architecture does not have.
    """
    check(budget, tolerance)
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    best = None
    for variant in method.variants(depths):
        candidate = Match(method, *_sized(config, variant, budget), budget, tolerance)
        if best is None or candidate._error < best._error:
            best = candidate
        if best.meets:
            return best
    assert best is not None
    return best


def check(budget: int, tolerance: float) -> None:
    """Refuses a budget that is no whole number ≥ 1, and a tolerance that is not in [0, 1).

    Raises:
      UserError: either.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UserError(f"budget is {budget!r}; it must be a whole number of parameters ≥ 1")
    if not 0 <= tolerance < 1:
        raise UserError(f"tolerance is {tolerance}; it must be a part of the budget, from 0 to 1")


def _sized(config: T5Config, method: Method, budget: int) -> tuple[Method, int]:
    """Returns the method at the size nearest to the budget, and what it stores (affine in size)."""
    if method.size_field is None:
        return method, stored_parameters(config, method)
    smallest = method.resized(1)
    first = stored_parameters(config, smallest)
    if first >= budget:
        return smallest, first
    step = stored_parameters(config, method.resized(2)) - first
    steps = round((budget - first) / max(1, step))
    return method.resized(1 + steps), first + steps * step
