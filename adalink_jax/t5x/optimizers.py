"""What `t5x.optimizers.MultiOptimizer` trains."""

from collections.abc import Callable
from typing import Any

from adalink_jax.methods.base import Method


def trainable(method: Method) -> Callable[[str, Any], bool]:
    """The filter of a `flax.traverse_util.ModelParamTraversal`: True for what the method trains."""
    return lambda path, value: method.trainable(path.strip("/"))
