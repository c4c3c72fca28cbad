"""AutoPEFT's space of compositions (Zhou et al. 2024, arXiv 2301.12132), for ``adalink search``.

A switch for each layer and, for all chosen layers, the size of an adapter and of a prefix: the
width divided by powers of two, or none. The paper has a serial and a parallel adapter, each with a
size, and BERT's one stack. Here it is one adapter whose place is chosen, and a layer's number is
chosen in both stacks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_SOURCES = {"serial": "sum", "parallel": "residual"}
_HALVINGS = 10


def knobs(layers: int, width: int) -> dict[str, Sequence[Any]]:
    """Returns what is chosen, by name, with its values.

    Args:
      layers: number of layers that both stacks have.
      width: D.
    """
    sizes = (0, *(width >> i for i in reversed(range(_HALVINGS)) if width >> i))
    switches = {f"layer {i}": (False, True) for i in range(layers)}
    return {**switches, "adapter": sizes, "place": tuple(_SOURCES), "prefix": sizes}


def settings(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the gin settings of {name: value}; None where no layer or no part is chosen."""
    switches = [value for name, value in values.items() if name.startswith("layer ")]
    chosen = tuple(number for number, on in enumerate(switches) if on)
    parts = []
    if rank := values["adapter"]:
        parts.append({"method": "bottleneck", "rank": rank, "source": _SOURCES[values["place"]]})
    if length := values["prefix"]:
        parts.append({"method": "prefix_tuning", "length": length})
    if not parts or not chosen:
        return None
    return {"compose.Compose.parts": tuple({**part, "layers": chosen} for part in parts)}
