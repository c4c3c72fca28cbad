"""Which parameters `t5x.optimizers.MultiOptimizer` trains."""

from collections.abc import Callable
from typing import Any

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Method


def trainable(method: Method) -> Callable[[str, Any], bool]:
    """Returns a `flax.traverse_util.ModelParamTraversal` filter: True for what is trained.

    It raises `UserError` for a leaf with a learning rate of its own, which T5X's optimizers lack.
    """

    def is_trained(path: str, value: Any) -> bool:
        name = path.strip("/")
        if not method.trainable(name):
            return False
        if method.rate_factor(name) != 1:
            raise UserError(
                f"T5X's optimizers have one learning rate, but {name} has rate_factors; train with "
                "this project's runner, or without rate_factors"
            )
        return True

    return is_trained
