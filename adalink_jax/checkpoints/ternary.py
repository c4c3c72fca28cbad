"""Arrays of −s, 0 and s in two bits a number, as compressed adapters hold them.

The file has ``[2, ⌈N/8⌉]`` bytes: a bit for each of the N numbers that is s, and one for each that
is −s, the first in the highest bit. A list beside them has an s for each index of the first axis.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def scales(array: np.ndarray) -> list[float] | None:
    """Returns each row's s (0 for a row of zeros); None if the array has other numbers too."""
    rows = np.abs(array.reshape(len(array), -1))
    largest = rows.max(axis=1, initial=0.0, keepdims=True)
    ternary = bool(np.all((rows == 0) | (rows == largest)))
    return [float(s) for s in largest[:, 0]] if ternary else None


def encoded(array: np.ndarray) -> np.ndarray:
    """Returns the two bits of each number, as uint8 [2, ⌈N/8⌉]."""
    return np.stack([np.packbits(array.reshape(-1) > 0), np.packbits(array.reshape(-1) < 0)])


def decoded(stored: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """Returns the float32 array.

    Args:
      stored: as from `encoded`.
      entry: what is recorded of the array: its "shape" and "scales".

    Raises:
      ValueError: the bits are not those of such an array.
    """
    shape, values = entry["shape"], entry["scales"]
    count = math.prod(shape)
    fitting = all(type(n) is int and n > 0 for n in shape) and len(values) == shape[0]
    if not fitting or stored.dtype != np.uint8 or stored.shape != (2, -(-count // 8)):
        raise ValueError("other bits than its shape has")
    if not all(type(s) is float and 0 <= s < math.inf for s in values):
        raise ValueError("a scale that is none")
    bits = np.unpackbits(stored, axis=1)
    plus, minus = bits[:, :count].astype(np.float32)
    if np.any(plus * minus) or np.any(bits[:, count:]):
        raise ValueError("a number that is both s and -s")
    rows = (plus - minus).reshape(shape[0], -1) * np.array(values, np.float32)[:, None]
    return rows.reshape(shape)
