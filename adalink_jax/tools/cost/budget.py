"""Settings that give a method a wanted number of parameters, so that methods compare at equal cost.

What is counted is what the adapter stores for one route: prompt tuning's re-parameterisation,
which only training needs, is not.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.adalink import AdaLink
from adalink_jax.methods.base import Method
from adalink_jax.methods.full import Full
from adalink_jax.methods.lora import LoRA
from adalink_jax.methods.prompt_tuning import PromptTuning
from adalink_jax.models.t5 import T5Config
from adalink_jax.tools.cost.formulas import stored_parameters

TOLERANCE = 0.01

# Which linear layers LoRA gives up first: from all of them, as AdaLink's paper has it, over the
# queries and values of LoRA's own paper, down to a single one.
_LINEARS = (
    ("*attention/*", "mlp/*"),
    ("*attention/*",),
    ("mlp/*",),
    ("*attention/query", "*attention/value"),
    ("*attention/query",),
)


@dataclasses.dataclass(frozen=True)
class Match:
    """A method at a budget.

    Attributes:
      name: of the method, as in ``METHODS``.
      method: the method whose size is nearest; None for full fine-tuning, which has one size.
      parameters: what it stores.
      budget: what was wanted.
    """

    name: str
    method: Method | None
    parameters: int
    budget: int

    @property
    def meets(self) -> bool:
        """Whether the size is within 1 % of the budget."""
        return self.method is not None and self._error <= TOLERANCE

    @property
    def _error(self) -> float:
        return abs(self.parameters - self.budget) / self.budget

    def flags(self) -> str:
        """The flags that give a run these settings, or nothing where none meet the budget."""
        if not self.meets:
            return ""
        if isinstance(self.method, PromptTuning):
            return f"--gin.PROMPT_LENGTH={self.method.length}"
        flags = f"--gin.RANK={self.method.rank}"
        if isinstance(self.method, LoRA):
            flags += f' --gin.lora.LoRA.linears="{self.method.linears}"'
            flags += f' --gin.lora.LoRA.layers="{self.method.layers}"'
        return flags

    def line(self) -> str:
        """A line that says what came of it, with the flags where the budget is met."""
        if self.meets:
            off = self.parameters / self.budget - 1
            return f"{self.parameters:,} parameters ({off:+.2%})  {self.flags()}"
        if self.method is None:
            return "cannot: it trains the whole model"
        return (
            f"cannot within {TOLERANCE:.0%}: its nearest size is {self.parameters:,} parameters"
            f" ({self.parameters / self.budget - 1:+.1%})"
        )


def match(config: T5Config, name: str, budget: int) -> Match:
    """Finds the settings at which a method stores a number of parameters.

    AdaLink gives its rank; prompt tuning its length; LoRA the rank, and where even rank 1 is too
    large, fewer layers (spread evenly) or fewer linear layers in each. LoRA keeps as many of its
    layers as the tolerance allows.

    Args:
      config: the base's architecture.
      name: "adalink", "lora", "prompt_tuning" or "full".
      budget: the number of parameters, at least 1.

    Returns:
      The first candidate within 1 %, else the nearest.

    Raises:
      UserError: the budget is no positive number, or the method is unknown.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise UserError(f"budget is {budget!r}; it must be a whole number of parameters ≥ 1")
    candidates: dict[str, Callable[[], Iterator[Method]]] = {
        "adalink": lambda: _scaled(config, lambda n: AdaLink(rank=n), budget),
        "lora": lambda: _loras(config, budget),
        "prompt_tuning": lambda: _scaled(config, lambda n: PromptTuning(length=n), budget),
        "full": lambda: iter(()),
    }
    if name not in candidates:
        raise UserError(f"no method '{name}'{nearest(name, candidates)} can be given a budget")
    best = Match(name, None, stored_parameters(config, Full()), budget)
    for method in candidates[name]():
        found = Match(name, method, stored_parameters(config, method), budget)
        if best.method is None or found._error < best._error:
            best = found
        if best.meets:
            break
    return best


def _scaled(config: T5Config, make: Callable[[int], Method], budget: int) -> Iterator[Method]:
    """The method at the size nearest to the budget; what it stores is linear in n."""
    once = stored_parameters(config, make(1))
    yield make(max(1, round(budget / once)))


def _loras(config: T5Config, budget: int) -> Iterator[Method]:
    layers = config.num_encoder_layers
    for linears in _LINEARS:
        for count in range(layers, 0, -1):
            spread = np.unique(np.linspace(0, layers - 1, count).round().astype(int))
            chosen = None if count == layers else tuple(int(i) for i in spread)

            def make(rank, linears=linears, chosen=chosen):
                return LoRA(rank=rank, linears=linears, layers=chosen)

            yield from _scaled(config, make, budget)
