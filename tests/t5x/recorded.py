"""What T5X computed, kept in tests/golden/t5x, and what it was computed from."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "t5x"
TINY = {
    "vocab_size": 64,
    "dtype": "float32",
    "emb_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "head_dim": 8,
    "mlp_dim": 24,
    "dropout_rate": 0.0,
}
KINDS = {
    "1.0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "1.1": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
}


def config(kind: str):
    """The tiny architecture, of kind "1.0" or "1.1", of which most files are."""
    from adalink_jax.models.t5 import T5Config

    return T5Config(**TINY, **KINDS[kind])


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/t5x/NAME.npz."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


def values(name: str):
    """The value of tests/golden/t5x/NAME.json."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def flat(prefix: str, tree) -> dict[str, np.ndarray]:
    """A tree as arrays under PREFIX/…."""
    found = traverse_util.flatten_dict(tree, sep="/")
    return {f"{prefix}/{name}": np.asarray(leaf) for name, leaf in found.items()}


def tree(prefix: str, stored: Mapping[str, np.ndarray]) -> dict:
    """The arrays under PREFIX/… as a tree."""
    own = {name: leaf for name, leaf in stored.items() if name.startswith(f"{prefix}/")}
    return traverse_util.unflatten_dict(
        {name.removeprefix(f"{prefix}/"): leaf for name, leaf in own.items()}, sep="/"
    )


def parameters(shapes: Mapping) -> dict:
    """Parameters for a tree of leaves with shapes: the same numbers everywhere and always.

    NumPy promises the numbers of RandomState. Multiples of 1/64 are exact and compress well.
    """
    found = traverse_util.flatten_dict(dict(shapes), sep="/")
    rng, made = np.random.RandomState(0), {}
    for name in sorted(found):
        noise = rng.standard_normal(found[name].shape)
        value = 1 + 0.1 * noise if name.endswith("scale") else 0.25 * noise
        made[name] = (np.round(64 * value) / 64).astype(np.float32)
    return traverse_util.unflatten_dict(made, sep="/")
