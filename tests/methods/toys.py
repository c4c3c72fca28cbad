"""Methods to test with: examples of those in `METHODS`, and two that nobody has heard of."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, split
from adalink_jax.methods.low_rank import LowRank
from adalink_jax.models.parameters import abstract_params


def required(name: str) -> dict[str, Any]:
    """A value for each field of a method that has no default: a size, as a rule."""
    if name == "compose":
        return {"parts": ({"method": "adalink", "rank": 2}, {"method": "lora", "rank": 2})}
    fields = dataclasses.fields(METHODS[name])
    return {field.name: 2 for field in fields if field.default is dataclasses.MISSING}


def example(name: str) -> Method:
    """The method of this name with its defaults."""
    return METHODS[name](**required(name))


# Those that a base of text can have; the others adapt images.
OF_TEXT = tuple(name for name in METHODS if not example(name).needs_images)


def blank(config, method: Method):
    """A method's tree in zeros, to be filled: nothing is compiled, as by `init_adapter`."""
    tree, _ = split(abstract_params(config, method)[0], method)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


def _product(method: Method, features: int, dropout_rate: float = 0.0) -> LowRank:
    return LowRank(
        features=features,
        rank=method.rank,
        routes=method.routes,
        down_init=nn.initializers.normal(0.1),
        dropout_rate=dropout_rate,
        name=method.scope,
    )


@dataclasses.dataclass(frozen=True)
class Stabilised(Method):
    """rsLoRA on queries: its scale depends on its rank, and its dropout has a name of its own."""

    rank: int
    bottleneck_dropout: float = 0.0
    routes: int = 1

    scope: ClassVar[str] = "stabilised"
    size_field: ClassVar[str] = "rank"

    def linear(self, x, y, kernel, site, ctx):
        if site.linear != "attention/query":
            return y
        delta = _product(self, y.shape[-1], self.bottleneck_dropout)(x, ctx)
        return y + ctx.gate * 4 / math.sqrt(self.rank) * delta


@dataclasses.dataclass(frozen=True)
class Norms(Method):
    """A low-rank product at the encoder's input, and norms of the base that train with it."""

    rank: int = 2
    within: str = ""
    routes: int = 1

    scope: ClassVar[str] = "norms"
    size_field: ClassVar[str] = "rank"

    def inputs(self, x, ctx):
        return (x + _product(self, x.shape[-1])(x, ctx) if ctx.stack == "encoder" else x), ctx

    def trainable(self, name):
        return self.owns(name) or (name.endswith("norm/scale") and self.within in name)
