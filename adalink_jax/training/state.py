"""The train state. Trainable and frozen parameters are two trees, with no mask.

If layers are scanned (`T5Config.stacks_layers`), the base is stacked in memory, whether it is
frozen or trains. Adapters, and everything that is saved, use public names.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.distributed.sharding import (
    WHOLE,
    Layout,
    check_split,
    param_shardings,
    place,
    reduced_sharding,
    replicated,
)
from adalink_jax.methods.base import Method, Params, merge, split
from adalink_jax.models.kernels import quantised, quantised_shardings
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.stacking import (
    LayerStack,
    is_stacked,
    map_params,
    place_in_stack,
    stack_layers,
    unstack_layers,
)
from adalink_jax.models.t5 import T5Config


@flax.struct.dataclass
class TrainState:
    """The arrays of a training run.

    Only `trainable` has gradients and optimizer state. Checkpoints hold all but the frozen base.

    Attributes:
      step: number of finished steps.
      trainable: the method's tree (full fine-tuning: the whole model), with the leaves of the base
        that the method unlocks.
      opt_state: the optimizer's state for `trainable`.
      frozen: the base (full fine-tuning: empty).
      average: the exponential moving average of `trainable`; None without one.
      best: the best that was evaluated (`training.selection`): "trainable", its "score" (float32),
        its "step", and "waited", the evaluations since (int32); None where none is kept.
    """

    step: Any  # As the others: an array, or in an abstract state its shape.
    trainable: Any
    opt_state: Any
    frozen: Any
    average: Any = None
    best: Any = None

    @property
    def result(self) -> Any:
        """What is evaluated: the average if there is one, else what trains."""
        return self.trainable if self.average is None else self.average

    @property
    def kept(self) -> Any:
        """What a run that ends now would end with."""
        return self.result if self.best is None else self.best["trainable"]

    def finite(self) -> bool:
        """Returns whether what trains can go on: its numbers are finite, their squares add up."""
        return bool(_finite(self.trainable, self.opt_state))

    def _training(self) -> dict[str, Any]:
        parts = ("step", "trainable", "opt_state", "average", "best")
        present = {name: getattr(self, name) for name in parts}
        return {name: part for name, part in present.items() if part is not None}

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint holds, under public names; a copy if layers are stacked."""
        if not is_stacked(self.trainable):
            return self._training()
        places = jax.tree.map(lambda leaf: leaf.sharding, self.saved_like())
        return jax.jit(_unstacked, out_shardings=places)(self._training())

    def saved_like(self) -> dict[str, Any]:
        """Returns shapes, dtypes and shardings of `saved`; allocates nothing."""
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            self._training(),
        )
        return _unstacked(abstract, _abstract_layer)

    def restored(self, saved: Mapping[str, Any]) -> "TrainState":
        """Returns this state with a checkpoint's values, in this state's layout."""
        if is_stacked(self.trainable):
            places = jax.tree.map(lambda leaf: leaf.sharding, self._training())
            stack = jax.jit(lambda saved: map_params(stack_layers, saved), out_shardings=places)
            saved = stack(saved)
        return dataclasses.replace(self, **saved)


@jax.jit
def _finite(trainable: Params, opt_state: Any) -> jax.Array:
    # A parameter of 1e30 is finite, but the network's norms take squares.
    norms = [optax.tree.norm(trainable)]
    return jnp.all(
        jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((norms, opt_state))])
    )


def _unstacked(tree: Any, layer_of: Callable[[Any, int], Any] = operator.getitem) -> Any:
    return map_params(lambda params: unstack_layers(params, layer_of), tree)


def _abstract_layer(leaf: jax.ShapeDtypeStruct, number: int) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*tuple(leaf.sharding.spec)[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


def _stacked_sharding(layers: Sequence[NamedSharding]) -> NamedSharding:
    """Returns the sharding of the stacked leaf: each device holds its part of every layer."""
    return NamedSharding(layers[0].mesh, PartitionSpec(None, *layers[0].spec))


def _laid_out(
    params: Params, config: T5Config, method: Method, join: Callable[[list], Any]
) -> tuple[Params, Params]:
    """Splits a whole tree into (trainable, frozen); stacks the base's layers if `config` does.

    If a method unlocks a leaf in some layers only, the frozen leaf still stacks all layers. The
    network uses the trained values in place of the frozen ones.
    """
    trainable, frozen = split(params, method)
    if not config.stacks_layers:
        return trainable, frozen
    if method.trains_base:
        return stack_layers(trainable, join), frozen
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(frozen))
    stacked = {place[0] for place in map(place_in_stack, flat) if place}
    for name, leaf in traverse_util.flatten_dict(dict(trainable)).items():
        place = place_in_stack(name)
        if place and place[0] in stacked:
            flat[name] = leaf
    return trainable, stack_layers(traverse_util.unflatten_dict(flat), join)


def abstract_trees(config: T5Config, method: Method) -> tuple[Params, Params]:
    """Returns shapes of (trainable, frozen) in a state's layout; allocates nothing."""
    params, _ = abstract_params(config, method)
    return jax.eval_shape(lambda params: _laid_out(params, config, method, jnp.stack), params)


def create(
    config: T5Config,
    method: Method,
    base: Params,
    adapter: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: Layout = WHOLE,
    frozen_dtype: Any = jnp.float32,
) -> TrainState:
    """Places base and adapter on the mesh and initializes the optimizer's state.

    Args:
      config: the base's architecture.
      method: the method.
      base: the base's tree, on the host or on devices.
      adapter: the method's tree, as returned by `init_adapter`.
      optimizer: already wrapped by `per_module`.
      mesh: the mesh.
      layout: the layout that the mesh was made for.
      frozen_dtype: the dtype of the frozen tree, one of `FROZEN_DTYPES`. With int8, only kernels
        are int8; tables, norms and biases are bfloat16.
    """
    shardings = model_shardings(config, method, mesh, layout)
    trainable_shardings, frozen_shardings = _laid_out(shardings, config, method, _stacked_sharding)
    trees = _laid_out(merge(base, adapter), config, method, LayerStack)
    trainable = _place(trees[0], trainable_shardings)
    frozen = _place(trees[1], frozen_shardings, frozen_dtype)
    opt_shardings = _opt_shardings(optimizer, trainable, trainable_shardings, mesh)[1]
    opt_state = jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable)
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh))
    return TrainState(step, trainable, opt_state, frozen)


def abstract_state(
    config: T5Config,
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: Layout = WHOLE,
    frozen_dtype: Any = jnp.float32,
) -> TrainState:
    """Returns shapes, dtypes and shardings of `create`'s result; allocates nothing.

    The mesh may consist of devices that this machine does not have. Arguments are as in `create`.

    Raises:
      UserError: an array cannot be split evenly over the mesh.
    """
    shardings = model_shardings(config, method, mesh, layout)
    places = _laid_out(shardings, config, method, _stacked_sharding)
    trainable, frozen = abstract_trees(config, method)
    state, opt_places = _opt_shardings(optimizer, trainable, places[0], mesh)

    def put(tree, shardings, dtype=None):
        def abstract(path, leaf, sharding):
            check_split(_name(path), leaf.shape, sharding)
            stored = leaf.dtype if dtype is None else _stored(path, dtype)
            if stored == jnp.int8:
                like = jax.eval_shape(quantised, leaf)
                return jax.tree.map(_at, like, quantised_shardings(like, sharding))
            return _at(jax.ShapeDtypeStruct(leaf.shape, stored), sharding)

        return jax.tree_util.tree_map_with_path(abstract, tree, shardings)

    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(
        step,
        put(trainable, places[0]),
        put(state, opt_places),
        put(frozen, places[1], frozen_dtype),
    )


def _opt_shardings(optimizer, trainable: Params, shardings: Params, mesh: Mesh) -> tuple[Any, Any]:
    """Returns the shapes of the optimizer's state for these parameters, and their shardings."""
    state = jax.eval_shape(optimizer.init, trainable)
    return state, _like_params(state, trainable, shardings, replicated(mesh))


def model_shardings(config: T5Config, method: Method, mesh: Mesh, layout: Layout) -> dict[str, Any]:
    """Returns the sharding of each parameter of base and method."""
    shapes, axes = abstract_params(config, method)
    return param_shardings(axes, mesh, layout, shapes)


def place_params(
    config: T5Config,
    method: Method,
    params: Params,
    mesh: Mesh,
    layout: Layout = WHOLE,
    frozen_dtype: Any = jnp.float32,
) -> Params:
    """Places all parameters, base and adapter, on the mesh in the layout of a state."""
    shardings = model_shardings(config, method, mesh, layout)
    adapter, base = (
        _place(tree, places, dtype)
        for tree, places, dtype in zip(
            _laid_out(params, config, method, LayerStack),
            _laid_out(shardings, config, method, _stacked_sharding),
            (jnp.float32, frozen_dtype),
            strict=True,
        )
    )
    return merge(base, adapter)


def _place(tree: Params, shardings: Params, dtype: Any = jnp.float32) -> Params:
    """Places copies on the mesh. The train step donates its state, so it needs its own arrays."""

    def put(path, leaf, sharding):
        stored = _stored(path, dtype)
        if stored != jnp.int8:
            return place(_name(path), leaf, sharding, stored)
        # Quantized on the devices: a scale needs a whole column, which may be split over them.
        kernel = place(_name(path), leaf, sharding)
        places = quantised_shardings(jax.eval_shape(quantised, kernel), sharding)
        return jax.jit(quantised, out_shardings=places)(kernel)

    return jax.tree_util.tree_map_with_path(put, dict(tree), dict(shardings))


def _stored(path: Sequence[Any], dtype: Any) -> jnp.dtype:
    """Returns the dtype a leaf is stored in, where `dtype` was requested for its tree."""
    dtype = jnp.dtype(dtype)
    is_kernel = path[-1].key == "kernel"
    return jnp.dtype(jnp.bfloat16) if dtype == jnp.int8 and not is_kernel else dtype


def _at(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _like_params(tree: Any, params: Params, shardings: Params, default: Any) -> Any:
    """Returns the shardings of an optimizer's state: each leaf's is that of its parameter.

    A leaf belongs to the parameter with the same path and the same shape, or the same shape
    without one dimension. The latter are Adafactor's second moments of a matrix by row (``v_row``,
    without the last dimension) and by column.
    """
    by_path = {
        jax.tree_util.keystr(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def choose(path, leaf):
        for start in range(len(path)):
            shape, sharding = by_path.get(jax.tree_util.keystr(path[start:]), (None, default))
            if shape == leaf.shape:
                return sharding
            if shape is not None:
                by_row = getattr(path[start - 1], "name", "") == "v_row"
                return reduced_sharding(sharding, shape, leaf.shape, last=by_row) or default
        return default

    return jax.tree_util.tree_map_with_path(choose, tree)
