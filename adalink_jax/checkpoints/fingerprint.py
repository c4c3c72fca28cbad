"""What an array tree or a file is, in one string: SHA-256 over contents, free of order."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

_READ_BYTES = 1 << 20


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a tree of parameters.

    For each leaf, SHA-256 over ``[name, shape, dtype]`` as JSON, a newline, and the contents
    (little-endian, C order); then SHA-256 over the sorted leaf digests (32 bytes each). So it
    depends on names, shapes and every bit of the contents, not on the order of the leaves. A
    bfloat16 or float16 leaf is hashed as the float32 values it holds, so that a base has one
    fingerprint at whatever precision it is kept.

    Leaves are hashed one after the other: at most one leaf is copied to the host at a time. Each
    must be wholly addressable from this process (or replicated).

    Args:
      params: nested dicts of arrays of any shape; floating point, integer or bool.

    Returns:
      64 lower-case hexadecimal digits.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    return combined_fingerprint(leaf_digest(name, leaf) for name, leaf in flat.items())


def combined_fingerprint(digests: Iterable[bytes]) -> str:
    """Returns the fingerprint of the parameters of which these are the `leaf_digest`."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def leaf_digest(name: str, leaf: Any) -> bytes:
    """Returns one parameter's part in the fingerprint, 32 bytes.

    Args:
      name: its ``"/"``-joined name.
      leaf: its array, of any shape.
    """
    array = as_float32(np.asarray(leaf))
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    header = json.dumps([name, list(array.shape), array.dtype.name]) + "\n"
    digest = hashlib.sha256(header.encode())
    # `reshape` before `ascontiguousarray`: that would turn a scalar into a vector silently.
    digest.update(np.ascontiguousarray(array.reshape(-1)).view(np.uint8).data)
    return digest.digest()


def as_float32(array: np.ndarray) -> np.ndarray:
    """Returns a bfloat16 or float16 array as float32, which holds it exactly; others as given."""
    if array.dtype in (jnp.bfloat16, np.float16):
        return array.astype(np.float32)
    return array


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return streamed_sha256(iter(lambda: file.read(_READ_BYTES), b""))


def streamed_sha256(blocks: Iterable[bytes]) -> str:
    """Returns the SHA-256 of bytes that come in blocks, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
