"""The parameters of a base with a method: shapes, logical axes and initial values."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.methods.base import Array, Method, Params, split
from adalink_jax.models.layers import ImageProjection
from adalink_jax.models.stacking import STACKED, STACKS
from adalink_jax.models.t5 import T5Config, Transformer


def _variables(config: T5Config, method: Method, key: jax.Array) -> Mapping[str, Any]:
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
    """Returns shapes and logical axes of all parameters of base and method; allocates nothing."""
    depths = {stack: getattr(config, f"num_{stack}_layers") for stack in STACKS}
    gates = {stack: method.gates(stack, depth) for stack, depth in depths.items()}
    everywhere = method if method.layers is None else dataclasses.replace(method, layers=None)
    if everywhere == method and not _all_on(gates):
        return _traced(config, method)
    if not _all_on({stack: everywhere.gates(stack, 1) for stack in STACKS}):
        return _traced(config, method)
    # All layers of a stack have the same shapes, so one layer is traced.
    shallow = dataclasses.replace(config, num_encoder_layers=1, num_decoder_layers=1)

    def deep(tree: Params) -> Params:
        flat = {}
        for name, leaf in traverse_util.flatten_dict(dict(tree)).items():
            if name[1] != f"{STACKED}_0":
                flat[name] = leaf
                continue
            for i in range(depths[name[0]]):
                if _all_on(gates[name[0]]) or gates[name[0]][i] or not method.owns("/".join(name)):
                    flat[name[0], f"{STACKED}_{i}", *name[2:]] = leaf
        return traverse_util.unflatten_dict(flat)

    shapes, axes = _traced(shallow, everywhere)
    return deep(shapes), deep(axes)


def _all_on(gates: Any) -> bool:
    return all(map(np.all, jax.tree.leaves(gates)))


@functools.lru_cache(maxsize=256)
def _traced(config: T5Config, method: Method) -> tuple[Params, Params]:
    # The key is abstract too: the current mesh may have devices that this machine does not.
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda key: _variables(config, method, key), key)
    return variables["params"], variables["params_axes"]


def init_base(config: T5Config, key: Array) -> Params:
    """Initializes a base with random weights, as T5X does."""
    return jax.jit(lambda key: _variables(config, Method(), key)["params"])(key)


def init_projection(config: T5Config, key: jax.Array) -> Params:
    """Initializes the projection of images of a base that had none: ``kernel``, ``bias``."""
    images = jnp.zeros((1, 1, config.image_width or 0))
    return ImageProjection(config.emb_dim, config.dtype).init(key, images)["params"]


def init_adapter(
    config: T5Config,
    method: Method,
    base: Params,
    key: Array,
    token_ids: Sequence[Sequence[int]] = (),
) -> Params:
    """Initializes the method's tree for a base, e.g. ``{"encoder": {"adalink": {…}}}``.

    Leaves of the base that the method unlocks start from the base's values.

    Args:
      config: the base's architecture.
      method: the method.
      base: the base's tree; some methods initialize from its embeddings.
      key: a PRNG key.
      token_ids: the ids of each of `Method.texts`, without EOS.

    Raises:
      UserError: the method has nothing to train in this architecture.

    Examples:
      >>> adapter = al.init_adapter(config, al.AdaLink(rank=4), base, jax.random.key(0))
      >>> adapter["encoder"]["adalink"]["down"].shape  # routes, width, rank
      (1, 128, 4)
    """
    if method.trains_base:
        return base
    network_key, method_key = jax.random.split(key)

    # Under jit the base's initialization is dead code: only the method's leaves are computed.
    @jax.jit
    def own(key):
        flat = traverse_util.flatten_dict(_variables(config, method, key)["params"], sep="/")
        return {name: leaf for name, leaf in flat.items() if method.owns(name)}

    flat: dict[str, Any] = own(network_key)
    base_leaves: dict[str, Any] = traverse_util.flatten_dict(dict(base), sep="/")
    for name, leaf in base_leaves.items():
        if method.trainable(name):
            flat[name] = jnp.asarray(leaf[...], jnp.float32)
    adapter = traverse_util.unflatten_dict(flat, sep="/")
    _check_any(method, flat)
    return method.initialise(adapter, base, token_ids, method_key)


def check_trains(config: T5Config, method: Method) -> None:
    """Raises `UserError` unless the method has anything to train in an architecture."""
    names = traverse_util.flatten_dict(dict(abstract_params(config, method)[0]), sep="/")
    _check_any(method, [name for name in names if method.trainable(name)])


def _check_any(method: Method, names: Collection[str]) -> None:
    if not names:
        raise UserError(f"{method} matches no parameter of this architecture: nothing would train")


def stored_shapes(config: T5Config, method: Method) -> Params:
    """Returns the shapes of the tree in an adapter's file; allocates nothing."""
    adapter, _ = split(abstract_params(config, method)[0], method)
    return jax.eval_shape(lambda tree: method.export(tree)[1], adapter)


def widened(
    config: T5Config, method: Method, adapter: Params, size: int
) -> tuple[Method, dict[str, Any]]:
    """Widens an adapter to a larger size by padding its leaves with zeros.

    Args:
      config: the base's architecture.
      method: a method with `Method.widens`.
      adapter: its tree.
      size: the new size, at least the method's.

    Returns:
      The wider method and its tree, which compute the same function.
    """
    if not method.widens or method.size is None or size < method.size:
        raise ValueError(f"{method} cannot be widened to {size}")
    wider = method.resized(size)
    shapes, _ = split(abstract_params(config, wider)[0], wider)

    def fill(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        return jnp.pad(leaf, [(0, n - m) for m, n in zip(leaf.shape, like.shape, strict=True)])

    return wider, jax.tree.map(fill, dict(adapter), shapes)
