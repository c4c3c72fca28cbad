"""The fingerprint: order-free, and sensitive to everything else."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from adalink_jax.checkpoints import fingerprint


def base():
    generator = np.random.default_rng(1)
    return {
        name: generator.standard_normal((3, 4)).astype(np.float32)
        for name in ("a/x", "a/y", "b/x", "b/y")
    }


def of(arrays):
    return fingerprint(traverse_util.unflatten_dict(arrays, sep="/"))


def test_is_the_documented_hash():
    leaves = []
    for name, array in base().items():
        header = json.dumps([name, [3, 4], "float32"]).encode() + b"\n"
        leaves.append(hashlib.sha256(header + array.tobytes()).digest())
    assert of(base()) == hashlib.sha256(b"".join(sorted(leaves))).hexdigest()


def test_is_free_of_order_memory_layout_and_where_the_arrays_are():
    arrays = base()
    expected = of(arrays)
    assert of(dict(reversed(arrays.items()))) == expected
    assert of({name: np.asfortranarray(array) for name, array in arrays.items()}) == expected
    assert of({name: array.astype(">f4") for name, array in arrays.items()}) == expected
    assert of({name: jnp.asarray(array) for name, array in arrays.items()}) == expected


def test_is_one_for_a_base_in_bfloat16_and_the_same_values_in_float32():
    half = {name: jnp.asarray(array, jnp.bfloat16) for name, array in base().items()}
    full = {name: array.astype(jnp.float32) for name, array in half.items()}
    assert of(half) == of(full) != of(base())


def test_tells_every_change():
    arrays = base()
    bit = arrays["a/x"].copy()
    bit.view(np.uint32)[2, 3] ^= 1
    changes = {
        "nothing": arrays,
        "one bit": {**arrays, "a/x": bit},
        "sign of a zero": {**arrays, "a/x": np.zeros((3, 4), np.float32)},
        "the other zero": {**arrays, "a/x": -np.zeros((3, 4), np.float32)},
        "a name": {name.replace("b/y", "b/z"): array for name, array in arrays.items()},
        "two arrays exchanged": {**arrays, "a/x": arrays["a/y"], "a/y": arrays["a/x"]},
        "a shape": {**arrays, "a/x": arrays["a/x"].reshape(4, 3)},
        "a transposition": {**arrays, "a/x": arrays["a/x"].T},
        "one less": {name: array for name, array in arrays.items() if name != "a/x"},
        "a dtype": {**arrays, "a/x": arrays["a/x"].view(np.int32)},
    }
    assert len({of(changed) for changed in changes.values()}) == len(changes)


def test_scalars_and_empty_arrays_have_one_too():
    leaves = {"a": np.float32(1), "b": np.ones(1, np.float32), "c": np.ones((0, 3), np.float32)}
    found = {of({"x": leaf}) for leaf in leaves.values()}
    assert len(found) == 3
