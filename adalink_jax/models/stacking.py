"""Layers run one after another, or as one layer scanned over stacked parameters.

Files, adapters and everything else that names parameters use public names, such as
``encoder/layers_3/mlp/wo/kernel`` [F,D]. In memory, layers may be stacked on a leading axis:
``encoder/layers/mlp/wo/kernel`` [layers,F,D]. The network accepts both. It scans over stacked
layers, so that program size and compile time do not grow with the depth.

Training and evaluation stack layers if `T5Config.stacks_layers` is true. Verifying, folding,
exporting, serving and T5X's launcher never do: they run the trees that they read.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.methods.base import Array, Params
from adalink_jax.models.config import T5Config

STACKS = ("encoder", "decoder")
# The scope of a stack's stacked layers.
STACKED = "layers"

_LAYER = re.compile(r"layers_(\d+)")
_POLICIES = {
    # T5X's "minimal": products with weights are kept, those of attention are recomputed.
    "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerStack:
    """Arrays of equal shapes, seen as one stacked array. A slice reads only what it needs.

    Attributes:
      shape: [layers, …].
    """

    def __init__(self, layers: Sequence[Any]):
        """Takes one array per layer, in memory or on disk."""
        self._layers = list(layers)
        self.shape = (len(self._layers), *self._layers[0].shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.stack([np.asarray(layer[index[1:]]) for layer in self._layers[index[0]]])


def is_stacked(params: Params) -> bool:
    """Returns whether a tree holds stacked layers."""
    return any(STACKED in params.get(stack, {}) for stack in STACKS)


def stack_layers(params: Params, join: Callable[[list], Any] = jnp.stack) -> dict[str, Any]:
    """Stacks the layers that are under public names; stacked layers stay as they are.

    Args:
      params: a tree with the base's layers, under public names or stacked. An adapter in it may
        have fewer layers: those that its method leaves out become zeros. If a leaf is there both
        stacked and under the public name of one layer (a leaf that a method unlocks), the latter
        replaces that layer in the stacked one.
      join: makes the stacked leaf from a list with one leaf per layer, in order.
    """
    apart: dict[tuple, dict[int, Any]] = {}
    stacked: dict[tuple, Any] = {}
    for name, leaf in traverse_util.flatten_dict(dict(params)).items():
        place = place_in_stack(name)
        if place:
            apart.setdefault(place[0], {})[place[1]] = leaf
        else:
            stacked[name] = leaf
    counts = _counts(stacked)
    for name, layers in apart.items():
        counts[name[0]] = max(counts.get(name[0], 0), max(layers) + 1)
    for name, layers in apart.items():
        if name in stacked:
            for number, leaf in layers.items():
                # The base may be stored in fewer bits than the trained leaf.
                stacked[name] = stacked[name].astype(leaf.dtype).at[number].set(leaf)
            continue
        count = counts[name[0]]
        if len(layers) < count:
            zeros = jax.tree.map(jnp.zeros_like, next(iter(layers.values())))
            layers = {i: layers.get(i, zeros) for i in range(count)}
        # A leaf of an optimizer's state may be an empty node.
        stacked[name] = jax.tree.map(
            lambda *leaves: join(list(leaves)), *map(layers.get, range(count))
        )
    return traverse_util.unflatten_dict(stacked)


def place_in_stack(name: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
    """Returns the stacked leaf's name and the layer's number, for the leaf of one layer.

    Args:
      name: a public name, as a tuple of its parts.

    Returns:
      (name, number), or None for a leaf outside of all layers.
    """
    layer = _LAYER.fullmatch(name[1]) if name[0] in STACKS and name[1:] else None
    return ((name[0], STACKED, *name[2:]), int(layer[1])) if layer else None


def unstack_layers(
    params: Params, layer_of: Callable[[Any, int], Any] = operator.getitem
) -> dict[str, Any]:
    """Unstacks all layers, so that only public names are left; the inverse of `stack_layers`.

    Args:
      params: a tree whose layers may be stacked.
      layer_of: returns a layer's leaf, given the stacked leaf and the layer's number.
    """
    flat, apart = traverse_util.flatten_dict(dict(params)), {}
    counts = _counts(flat)
    for name, leaf in flat.items():
        if not _is_stacked_name(name):
            apart[name] = leaf
            continue
        for i in range(counts[name[0]]):
            public = (name[0], f"{STACKED}_{i}", *name[2:])
            apart[public] = jax.tree.map(lambda leaf, i=i: layer_of(leaf, i), leaf)
    return traverse_util.unflatten_dict(apart)


def _counts(flat: Mapping[tuple, Any]) -> dict[str, int]:
    """Returns the number of layers of each stack with stacked layers."""
    return {
        name[0]: leaf.shape[0]
        for name, leaf in flat.items()
        if _is_stacked_name(name) and hasattr(leaf, "shape")
    }


def _is_stacked_name(name: Sequence[str]) -> bool:
    return name[0] in STACKS and name[1:2] == (STACKED,)


def map_params(function: Callable[[Params], Any], tree: Any) -> Any:
    """Applies a function to each parameter tree in a pytree, such as an optimizer's state."""

    def is_params(node: Any) -> bool:
        return isinstance(node, Mapping) and not node.keys().isdisjoint(STACKS)

    return jax.tree.map(
        lambda node: function(node) if is_params(node) else node, tree, is_leaf=is_params
    )


def run_layers(
    stack: nn.Module,
    layer: Callable[..., nn.Module],
    num_layers: int,
    run: Callable[..., Array],
    x: Array,
) -> Array:
    """Runs x through all layers of a stack; scans if its parameters are stacked.

    Args:
      stack: the encoder or decoder. This is called inside its compact method.
      layer: (config, method, name=…) → a layer.
      num_layers: number of layers.
      run: (layer, x, gate) → x; the gate goes into the contexts, and is 1 by default.
      x: input of the first layer.
    """
    config, method = stack.config, stack.method
    gates = method.gates(stack.name, num_layers)
    if not stack.has_variable("params", STACKED):
        run = _rematerialized(run, config, prevent_cse=True)
        for i in range(num_layers):
            own = method.where(jax.tree.map(operator.itemgetter(i), gates))
            x = run(layer(config, own, name=f"{STACKED}_{i}"), x)
        return x

    def body(layer: nn.Module, x: Array, gate: Array | None) -> tuple[Array, None]:
        return (run(layer, x) if gate is None else run(layer, x, gate)), None

    scan = nn.scan(
        # A scan's body cannot share results with its own backward pass.
        _rematerialized(body, config, prevent_cse=False),
        variable_axes={"params": 0, "cache": 0, "source": 0},
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
    )
    on_some = None
    if not all(map(np.all, jax.tree.leaves(gates))):
        on_some = jax.tree.map(lambda on: jnp.asarray(on, config.dtype), gates)
    return scan(layer(config, method, name=STACKED), x, on_some)[0]


def _rematerialized(run: Callable, config: T5Config, prevent_cse: bool) -> Callable:
    """Wraps a function so that its backward pass recomputes what `T5Config.remat` says."""
    if config.remat == "none":
        return run
    return nn.remat(run, policy=_POLICIES[config.remat], prevent_cse=prevent_cse)
