"""Presents the arrays of T5X's ``scalable_t5`` as those of the minimal T5.

Scanned, it stacks layers: what the minimal T5 stores as ``encoder/layers_0/mlp/wo/kernel`` [F, D],
``encoder/layers_1/…``, is one array ``encoder/encoder/mlp/wo/kernel`` [F, layers, D], with the
layers on axis 1 (``param_scan_axis``). Attention kernels have separate axes for heads and head
width, [D, N, K], and [N, K, D] for the output. Each layer has its own relative position biases.
Unscanned layers have the minimal T5's names.

Source of the layout: t5x/examples/scalable_t5/network.py and layers.py.
"""

import re
from collections.abc import Mapping

from adalink_jax.checkpoints.lazy import Array, JoinedHeads, Layer
from adalink_jax.errors import UserError

_ATTENTION_KERNEL = re.compile(r"attention/(query|key|value|out)/kernel$")
# T5X's default comes first. If both axes match, every width equals the number of layers.
_AXES = (1, 0)
_MOST_LAYERS = 10_000  # More is no T5, and would be as many objects.


def as_minimal(arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Returns arrays by the minimal T5's names and in its shapes; its own are unchanged.

    Args:
      arrays: by T5X's names, of the minimal T5 or of ``scalable_t5``, scanned or not.
      where: their path, for errors.

    Raises:
      UserError: the arrays of a stack do not have the same number of layers on one axis.
    """
    result: dict[str, Array] = {}
    for stack in ("encoder", "decoder"):
        prefix = f"{stack}/{stack}/"
        stacked = {n: array for n, array in arrays.items() if n.startswith(prefix)}
        if not stacked:
            continue
        axis, count = _layer_axis(stacked, stack, where)
        if count > _MOST_LAYERS:
            raise UserError(f"{where}: damaged: {count} layers in the {stack}")
        for name, array in stacked.items():
            for i in range(count):
                result[f"{stack}/layers_{i}/{name.removeprefix(prefix)}"] = Layer(array, axis, i)
    for name, array in arrays.items():
        if not name.startswith(("encoder/encoder/", "decoder/decoder/")):
            if name in result:
                raise UserError(f"{where}: {name} is there both stacked and alone")
            result[name] = array
    return {name: _joined(name, array) for name, array in result.items()}


def _joined(name: str, array: Array) -> Array:
    match = _ATTENTION_KERNEL.search(name)
    if match is None or len(array.shape) != 3:
        return array
    return JoinedHeads(array, 0 if match[1] == "out" else 1)


def _layer_axis(stacked: Mapping[str, Array], stack: str, where: str) -> tuple[int, int]:
    for axis in _AXES:
        sizes = {a.shape[axis] if len(a.shape) > axis else 0 for a in stacked.values()}
        if len(sizes) == 1 and 0 not in sizes:
            return axis, sizes.pop()
    raise UserError(
        f"{where}: the {stack}'s arrays are stacked, but have no common number of layers on axis"
        f" 1 or 0: {', '.join(f'{n} {list(a.shape)}' for n, a in list(stacked.items())[:3])}"
    )
