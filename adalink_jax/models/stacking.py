"""A stack's layers one after another, or as one layer that is scanned over stacked parameters.

Parameters have public names, ``encoder/layers_3/mlp/wo/kernel`` [F,D]: in files, adapters and
whatever else is read or written by name. In memory they may be stacked on a leading axis,
``encoder/layers/mlp/wo/kernel`` [layers,F,D]. The network runs a tree as it lies: it scans over
stacked layers, so that a program's size and compile time do not grow with the depth.

Training and evaluation runs stack where `T5Config.stacks_layers` says so. Verifying, folding,
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

from adalink_jax.methods.base import Array, Method, Params
from adalink_jax.models.config import T5Config

STACKS = ("encoder", "decoder")
# The scope of a stack's stacked layers.
STACKED = "layers"

_LAYER = re.compile(r"layers_(\d+)")
_POLICIES = {
    # What T5X calls "minimal": products with weights are kept, attention's are computed again.
    "minimal": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class LayerStack:
    """Arrays of equal shapes as one with a leading axis, of which a part is read as it is asked.

    Attributes:
      shape: [layers, …].
    """

    def __init__(self, layers: Sequence[Any]):
        """Takes one array a layer, in memory or on disk."""
        self._layers = list(layers)
        self.shape = (len(self._layers), *self._layers[0].shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return np.stack([np.asarray(layer[index[1:]]) for layer in self._layers[index[0]]])


def is_stacked(params: Params) -> bool:
    """Whether a tree holds stacked layers."""
    return any(STACKED in params.get(stack, {}) for stack in STACKS)


def stack_layers(params: Params, join: Callable[[list], Any] = jnp.stack) -> dict[str, Any]:
    """Stacks what is under public names; what is stacked already stays as it is.

    Args:
      params: a tree with the base's layers, under public names or stacked. An adapter's beside
        them may be fewer: the layers that a method leaves out become zeros. A layer's leaf beside
        its stacked one, which a method unlocks, takes its place in there.
      join: one leaf of each layer, in order → the stacked leaf.
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
                # The base may be stored in fewer bits than what trains.
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
    """The name of the stacked leaf that a layer's leaf goes into, and its layer's number.

    Args:
      name: a public name, as a tuple of its parts; None is returned for one outside of all layers.
    """
    layer = _LAYER.fullmatch(name[1]) if name[0] in STACKS and name[1:] else None
    return ((name[0], STACKED, *name[2:]), int(layer[1])) if layer else None


def unstack_layers(
    params: Params, layer_of: Callable[[Any, int], Any] = operator.getitem
) -> dict[str, Any]:
    """The tree under public names alone; the inverse of `stack_layers`.

    Args:
      params: a tree whose layers may be stacked.
      layer_of: a stacked leaf and a layer's number → that layer's leaf.
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
    """How many layers each stack has whose layers are stacked."""
    return {
        name[0]: leaf.shape[0]
        for name, leaf in flat.items()
        if _is_stacked_name(name) and hasattr(leaf, "shape")
    }


def _is_stacked_name(name: Sequence[str]) -> bool:
    return name[0] in STACKS and name[1:2] == (STACKED,)


def map_params(function: Callable[[Params], Any], tree: Any) -> Any:
    """Applies a function to each tree of parameters in a pytree, such as an optimizer's state."""

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
    """Runs x through all layers of a stack, scanned where its parameters are stacked.

    Args:
      stack: the encoder or decoder, inside whose compact method this is called.
      layer: (config, method, name=…) → a layer.
      num_layers: how many.
      run: (layer, x, gate) → x; the gate goes into the contexts, and is 1 where it is not given.
      x: what the first layer gets.
    """
    config, method = stack.config, stack.method
    gates = method.gates(stack.name, num_layers)
    if not stack.has_variable("params", STACKED):
        run = _rematerialised(run, config, prevent_cse=True)
        for i, on in enumerate(gates):
            x = run(layer(config, method if on else Method(), name=f"{STACKED}_{i}"), x)
        return x

    def body(layer: nn.Module, x: Array, gate: Array | None) -> tuple[Array, None]:
        return (run(layer, x) if gate is None else run(layer, x, gate)), None

    scan = nn.scan(
        # A scan's body cannot share results with its own backward pass.
        _rematerialised(body, config, prevent_cse=False),
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        length=num_layers,
    )
    on_some = None if all(gates) else jnp.asarray(gates, config.dtype)
    return scan(layer(config, method, name=STACKED), x, on_some)[0]


def _rematerialised(run: Callable, config: T5Config, prevent_cse: bool) -> Callable:
    """The function, of which the backward pass computes again what `T5Config.remat` says."""
    if config.remat == "none":
        return run
    return nn.remat(run, policy=_POLICIES[config.remat], prevent_cse=prevent_cse)
