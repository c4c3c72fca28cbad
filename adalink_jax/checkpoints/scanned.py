"""T5X's scanned layouts: the layers of a stack lie on one axis of each of its arrays.

``scalable_t5`` scans over its layers: what the minimal T5 stores as
``encoder/layers_0/mlp/wo/kernel`` [F, D], ``encoder/layers_1/…``, is there one array
``encoder/encoder/mlp/wo/kernel`` [F, layers, D], the layers on axis 1 (``param_scan_axis``). Each
of its layers has a table of relative position biases of its own.

Source of the layout: t5x/examples/scalable_t5/network.py.
"""

from collections.abc import Mapping

from adalink_jax.checkpoints.stored import Array, Layer
from adalink_jax.errors import UserError

# T5X's default first: where both fit, every width equals the number of layers.
_AXES = (1, 0)


def unstacked(arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Returns arrays under the minimal T5's names, a stacked one as one array per layer.

    Args:
      arrays: by T5X's names, stacked or not.
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
    return found


def _layer_axis(stacked: Mapping[str, Array], stack: str, where: str) -> tuple[int, int]:
    for axis in _AXES:
        sizes = {a.shape[axis] if len(a.shape) > axis else 0 for a in stacked.values()}
        if len(sizes) == 1 and 0 not in sizes:
            return axis, sizes.pop()
    raise UserError(
        f"{where}: the {stack}'s arrays are stacked, but have no common number of layers on axis"
        f" 1 or 0: {', '.join(f'{n} {list(a.shape)}' for n, a in list(stacked.items())[:3])}"
    )
