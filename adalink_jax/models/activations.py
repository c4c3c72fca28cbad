"""The functions inside MLPs, by the names that architectures use.

Published T5s compute GELU by its tanh formula; that is "gelu" here, as in T5X.
"""

import functools
from collections.abc import Callable, Mapping

import flax.linen as nn

from adalink_jax.methods.base import Array

FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "linear": lambda x: x,
    "silu": nn.silu,
    "swish": nn.swish,
}
