"""What the methods of chosen linear layers have in common: their patterns, and smaller variants."""

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import numpy as np
from flax import traverse_util

from adalink_jax.errors import UserError, nearest
from adalink_jax.methods.base import LINEAR_SITES, Method, Params, Site

# Linear layers that `OnLinears.variants` keeps: all of them (AdaLink's paper), queries and values
# (LoRA's paper), down to a single one.
_FEWER = (
    ("*attention/*", "mlp/*"),
    ("*attention/*",),
    ("mlp/*",),
    ("*attention/query", "*attention/value"),
    ("*attention/query",),
)


class OnLinears(Method):
    """A method with the fields `linears`, `stacks` and `layers`.

    `linears` has shell patterns over "block/layer", e.g. "*attention/query" or "mlp/*". The blocks
    are "attention" (encoder), "self_attention", "encoder_decoder_attention" (decoder) and "mlp".
    """

    linears = cast(tuple[str, ...], ("*attention/*", "mlp/*"))

    def __post_init__(self):
        super().__post_init__()
        sites = [site for stack in self.stacks for site in LINEAR_SITES[stack]]
        for pattern in self.linears:
            if not fnmatch.filter(sites, pattern):
                raise UserError(
                    f"{type(self).__name__}.linears has {pattern!r}, which matches no linear layer "
                    f"of the {' or '.join(self.stacks)}{nearest(pattern, sites)}"
                )

    def adapts(self, site: Site) -> bool:
        """Returns whether a linear layer is adapted, in the layers that `gates` selects."""
        chosen = any(fnmatch.fnmatchcase(site.linear, pattern) for pattern in self.linears)
        return chosen and site.stack in self.stacks

    def variants(self, depths: Mapping[str, int]) -> Iterator[Self]:
        """Drops layers first, down to one; then kinds of linear layers."""
        depth = min(depths[stack] for stack in self.stacks)
        numbers = list(range(depth)) if self.layers is None else sorted(set(self.layers))
        for linears in dict.fromkeys((self.linears, *_FEWER)):
            if not self._sites(linears) <= self._sites(self.linears):
                continue
            for count in range(len(numbers), 0, -1):
                spread = np.linspace(0, len(numbers) - 1, count).round().astype(int)
                chosen = self.layers if count == len(numbers) else tuple(numbers[i] for i in spread)
                yield cast(Any, dataclasses.replace)(self, linears=linears, layers=chosen)

    def _sites(self, linears: tuple[str, ...]) -> set[str]:
        sites = [site for stack in self.stacks for site in LINEAR_SITES[stack]]
        return {site for pattern in linears for site in fnmatch.filter(sites, pattern)}


def modules_of(adapter: Params, scope: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields each place of a method's modules, e.g. "encoder/layers_0/mlp/wo", and its leaves.

    Args:
      adapter: the method's tree.
      scope: the method's scope.
    """
    places: dict[str, dict[str, Any]] = {}
    for name, leaf in traverse_util.flatten_dict(dict(adapter), sep="/").items():
        place, found, inner = name.partition(f"/{scope}/")
        if found:
            places.setdefault(place, {})[inner] = leaf
    for place, leaves in places.items():
        yield place, {inner: np.asarray(leaf, np.float32) for inner, leaf in leaves.items()}


def with_kernels(base: Params, kernels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the base with other kernels, given by the places of their layers."""
    flat = traverse_util.flatten_dict(dict(base), sep="/")
    changed = {f"{place}/kernel": kernel for place, kernel in kernels.items()}
    return traverse_util.unflatten_dict({**flat, **changed}, sep="/")


def kernel_of(base: Params, place: str) -> np.ndarray:
    """Returns the float32 kernel [Din,Dout] of the layer at a place."""
    tree: Any = base
    for part in place.split("/"):
        tree = tree[part]
    return np.asarray(tree["kernel"], np.float32)
