"""Fingerprints of parameter trees and files: SHA-256 of the contents, independent of order.

Also what must hold of any contents: that they are finite.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.errors import UserError

_READ_BYTES = 1 << 20


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a tree of parameters.

    Each leaf's digest is the SHA-256 of ``[name, shape, dtype]`` as JSON, a newline, and the
    contents (little-endian, C order). The fingerprint is the SHA-256 of the sorted leaf digests
    (32 bytes each). It depends on names, shapes and every bit of the contents, but not on the
    order of the leaves. bfloat16 and float16 leaves are hashed as float32, so a base has the same
    fingerprint in any precision that holds it exactly.

    Leaves are hashed one by one: at most one is copied to the host at a time. Each must be fully
    addressable from this process (or replicated).

    Args:
      params: nested dicts of arrays of any shape; floating point, integer or bool.

    Returns:
      64 lowercase hexadecimal digits.

    Examples:
      >>> al.fingerprint(base)[:12]
      'd4ab158540be'
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    return combined_fingerprint(leaf_digest(name, leaf) for name, leaf in flat.items())


def combined_fingerprint(digests: Iterable[bytes]) -> str:
    """Returns the fingerprint of parameters, given their `leaf_digest` values."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def leaf_digest(name: str, leaf: Any) -> bytes:
    """Returns one parameter's part of the fingerprint, 32 bytes.

    Args:
      name: its ``"/"``-joined name.
      leaf: its array, of any shape.
    """
    array = as_float32(np.asarray(leaf))
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    header = json.dumps([name, list(array.shape), array.dtype.name]) + "\n"
    digest = hashlib.sha256(header.encode())
    # `reshape` first: `ascontiguousarray` silently turns a scalar into a vector.
    digest.update(np.ascontiguousarray(array.reshape(-1)).view(np.uint8).data)
    return digest.digest()


def as_float32(array: np.ndarray) -> np.ndarray:
    """Converts bfloat16 and float16 arrays to float32, without loss; returns others unchanged."""
    if array.dtype in (jnp.bfloat16, np.float16):
        return array.astype(np.float32)
    return array


def check_finite(array: np.ndarray, what: str) -> None:
    """Raises `UserError` if a floating-point array holds NaN or infinity."""
    # A sum of finite numbers can overflow, but NaN and infinity never leave a finite one.
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(array.sum()))
    if not finite and (count := array.size - np.count_nonzero(np.isfinite(array))):
        raise UserError(f"{what}: {count:,} of {array.size:,} numbers are NaN or not finite")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return streamed_sha256(iter(lambda: file.read(_READ_BYTES), b""))


def streamed_sha256(blocks: Iterable[bytes]) -> str:
    """Returns the SHA-256 of a sequence of byte blocks as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
