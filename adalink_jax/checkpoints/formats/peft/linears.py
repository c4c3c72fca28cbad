"""What PEFT's formats for methods of linear layers share.

PEFT names a tensor after its module in transformers' T5, and may adapt any set of modules. Methods
here take the same linear layers in all of their layers and stacks.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from adalink_jax.checkpoints.architecture import check_shapes, expected_shapes
from adalink_jax.checkpoints.formats.huggingface import linear_modules
from adalink_jax.checkpoints.formats.peft.format import PREFIX
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

# The fields of PEFT's configurations that say which modules are adapted, as its tensors do.
TARGETS = ("exclude_modules", "layers_pattern", "layers_to_transform", "target_modules")
# The leaves of one module: name → array.
Leaves = Mapping[str, np.ndarray]
# The shapes of a module's leaves, of the place of its linear layer.
Shapes = Callable[[str], Mapping[str, tuple[int, ...]]]


def kernels(config: T5Config) -> dict[str, tuple[int, int]]:
    """Returns the place of each linear layer, e.g. "encoder/layers_0/mlp/wo" → (Din, Dout)."""
    shapes = expected_shapes(config)
    found = {place: shapes[f"{place}/kernel"] for place in linear_modules(config)}
    return {place: (width, features) for place, (width, features) in found.items()}


def to_peft(
    flat: Leaves, scope: str, endings: Mapping[str, str], config: T5Config
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns PEFT's tensors, which are transposed, and its ``target_modules``.

    Args:
      flat: the leaves of a route, by their names in the method's tree.
      scope: the method's scope.
      endings: a leaf's name inside the scope → what PEFT puts after the module's name.
      config: the base's architecture.
    """
    modules = linear_modules(config)
    tensors, targets = {}, set()
    for name, leaf in flat.items():
        place, _, inner = name.partition(f"/{scope}/")
        tensors[f"{PREFIX}{modules[place]}.{endings[inner]}"] = leaf.T
        targets.add(modules[place])
    # Full names, because PEFT matches shorter ones at the end of any name.
    return tensors, sorted(targets)


def from_peft(
    tensors: Leaves, endings: Mapping[str, str], what: str, config: T5Config, where: str
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the place of each adapted layer and its leaves: PEFT's tensors, transposed.

    Args:
      tensors: PEFT's, by name.
      endings: as in `to_peft`.
      what: the method's name, for the error.
      config: the base's architecture.
      where: the folder's path, for the error.

    Raises:
      UserError: a tensor is not one of a linear layer, or there is none.
    """
    places = {module: place for place, module in linear_modules(config).items()}
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        inner, ending = next((e for e in endings.items() if name.endswith(f".{e[1]}")), ("", ""))
        place = places.get(name.removeprefix(PREFIX).removesuffix(f".{ending}"))
        if not inner or not name.startswith(PREFIX) or place is None:
            raise UserError(
                f"{where}: tensor {name!r} is no {what} of a linear layer in this T5's blocks"
            )
        found.setdefault(place, {})[inner] = array.T
    if not found:
        raise UserError(f"{where}: no tensors of {what}")
    return found


def check(modules: Mapping[str, Leaves], scope: str, shapes: Shapes, where: str) -> None:
    """Raises `UserError` unless each module has exactly the leaves of these shapes."""

    def flat(leaves: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
        return {
            f"{at}/{scope}/{inner}": leaf for at in modules for inner, leaf in leaves(at).items()
        }

    found = {name: array.shape for name, array in flat(modules.__getitem__).items()}
    check_shapes(flat(shapes), found, where)


def chosen(adapted: Collection[str], config: T5Config) -> tuple[dict[str, Any], list[str]]:
    """Returns the `linears`, `stacks` and `layers` of a method that adapts these linear layers.

    It may adapt more, if PEFT's modules are not the same in all layers and stacks. Returned is the
    choice that adapts fewest, and the places of all that it adapts.
    """
    sites = [place.split("/", 2) for place in adapted]
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    stacks = tuple(stack for stack in depths if any(stack == one for one, _, _ in sites))
    linears = tuple(sorted({linear for _, _, linear in sites}))
    numbers = sorted({int(number.removeprefix("layers_")) for _, number, _ in sites})
    there = kernels(config)

    def meant(layers: Iterable[int] | None) -> list[str]:
        places = (
            f"{stack}/layers_{number}/{linear}"
            for stack in stacks
            for number in (range(depths[stack]) if layers is None else layers)
            for linear in linears
        )
        return [place for place in places if place in there]

    choices = [None, tuple(numbers)]
    if numbers[-1] >= min(depths[stack] for stack in stacks):
        choices = [None]  # A stack has no layer of that number.
    layers = min(choices, key=lambda choice: len(meant(choice)))
    return {"linears": linears, "stacks": stacks, "layers": layers}, meant(layers)


def filled(
    modules: Mapping[str, Leaves], scope: str, meant: Iterable[str], shapes: Shapes
) -> dict[str, np.ndarray]:
    """Returns a method's leaves at all these places, filled up with zeros to these shapes."""
    flat = {}
    for place in sorted(meant):
        for inner, shape in shapes(place).items():
            leaf = flat[f"{place}/{scope}/{inner}"] = np.zeros(shape, np.float32)
            if (array := modules.get(place, {}).get(inner)) is not None:
                leaf[tuple(map(slice, array.shape))] = array
    return flat
