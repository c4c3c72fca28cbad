"""T5X's ``scalable_t5``: its arrays as those of the minimal T5.

It scans over its layers: what the minimal T5 stores as ``encoder/layers_0/mlp/wo/kernel`` [F, D],
``encoder/layers_1/…``, is there one array ``encoder/encoder/mlp/wo/kernel`` [F, layers, D], the
layers on axis 1 (``param_scan_axis``). Attention's kernels keep heads and their width apart,
[D, N, K] and for the output [N, K, D], and each layer has relative position biases of its own.
Unscanned, its layers have the minimal T5's names.

Source of the layout: t5x/examples/scalable_t5/network.py and layers.py.
"""

import re
from collections.abc import Mapping

from adalink_jax.checkpoints.lazy import Array, JoinedHeads, Layer
from adalink_jax.errors import UserError

_ATTENTION_KERNEL = re.compile(r"attention/(query|key|value|out)/kernel$")
# T5X's default first: where both fit, every width equals the number of layers.
_AXES = (1, 0)


def as_minimal(arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Returns arrays under the minimal T5's names and in its shapes; its own are left as they are.

    Args:
      arrays: by T5X's names, of the minimal T5 or of ``scalable_t5``, scanned or not.
      where: their path, for errors.

    Raises:
      UserError: the arrays of a stack do not have one number of layers on one axis.
    """
    found: dict[str, Array] = {}
    for stack in ("encoder", "decoder"):
        prefix = f"{stack}/{stack}/"
        stacked = {n: array for n, array in arrays.items() if n.startswith(prefix)}
        if not stacked:
            continue
        axis, count = _layer_axis(stacked, stack, where)
        for name, array in stacked.items():
            for i in range(count):
                found[f"{stack}/layers_{i}/{name.removeprefix(prefix)}"] = Layer(array, axis, i)
    for name, array in arrays.items():
        if not name.startswith(("encoder/encoder/", "decoder/decoder/")):
            if name in found:
                raise UserError(f"{where}: {name} is there both stacked and alone")
            found[name] = array
    return {name: _joined(name, array) for name, array in found.items()}


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
