"""Which parameters `t5x.optimizers.MultiOptimizer` trains."""

from collections.abc import Callable
from typing import Any

from adalink_jax.methods.base import Method


def trainable(method: Method) -> Callable[[str, Any], bool]:
    """Returns a `flax.traverse_util.ModelParamTraversal` filter: True for what is trained."""
    return lambda path, value: method.trainable(path.strip("/"))
