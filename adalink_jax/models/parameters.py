"""The parameters of a base with a method: their shapes, logical axes and first values."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Method, Params, split
from adalink_jax.models.t5 import T5Config, Transformer


def _variables(config: T5Config, method: Method, key: Array) -> dict[str, Any]:
    tokens = jnp.ones((1, 2), jnp.int32)
    routes = jnp.zeros((1, 2), jnp.int32)
    return Transformer(config, method).init(
        key,
        tokens,
        tokens,
        tokens,
        enable_dropout=False,
        encoder_routes=routes,
        decoder_routes=routes,
    )


def abstract_params(config: T5Config, method: Method) -> tuple[Params, Params]:
    """Shapes and logical axes of all parameters of base and method; allocates nothing."""
    # The key is abstract too: the mesh in use may be of devices that are not here.
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key: _variables(config, method, key), key)
    return variables["params"], variables["params_axes"]


def init_base(config: T5Config, key: Array) -> Params:
    """A base of random weights, by T5X's initialisation."""
    return jax.jit(lambda key: _variables(config, Method(), key)["params"])(key)


def init_adapter(
    config: T5Config,
    method: Method,
    base: Params,
    key: Array,
    token_ids: Sequence[Sequence[int]] = (),
) -> Params:
    """The method's own tree for this base, e.g. ``{"encoder": {"adalink": {…}}}``.

    Args:
      config: the base's architecture.
      method: the method.
      base: the base's tree; an initialisation may be taken from its embeddings.
      key: a PRNG key.
      token_ids: the ids of each of `Method.texts`, without EOS.

    Raises:
      UserError: the method has nothing to train in this architecture.
    """
    if method.trains_base:
        return base
    network_key, method_key = jax.random.split(key)

    # Under jit the base's own initialisation is dead code: only the method's leaves are computed.
    @jax.jit
    def own(key):
        return split(_variables(config, method, key)["params"], method)[0]

    adapter = own(network_key)
    if not jax.tree.leaves(adapter):
        raise UserError(f"{method} matches no parameter of this architecture: nothing would train")
    return method.initialise(adapter, base, token_ids, method_key)
