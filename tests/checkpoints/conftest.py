"""A tiny T5 for checkpoint tests, and a writer of T5X's format that shares no code with ours."""

import gzip
import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

from adalink_jax.checkpoints import StoredBase, load_base
from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

BASES = ("1.0", "1.1", "1.0 untied", "1.1 tied")


@pytest.fixture(scope="session")
def tiny() -> T5Config:
    """All widths differ, so that no axis can be taken for another."""
    return T5Config(
        vocab_size=11,
        emb_dim=6,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        head_dim=4,
        mlp_dim=10,
        mlp_activations=("gelu", "linear"),
    )


@pytest.fixture(scope="session")
def arrays(tiny) -> dict[str, np.ndarray]:
    """Random parameters of the tiny T5 by "/"-joined name; treat them as read-only."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in expected_shapes(tiny).items()
    }


@pytest.fixture(scope="session", params=BASES)
def base(request) -> StoredBase:
    """Random bases: gated and not, tied and not; unequal depths, and N·K is not D."""
    generator = np.random.default_rng(1)
    config = T5Config(
        vocab_size=37,
        emb_dim=12,
        num_heads=3,
        num_encoder_layers=2,
        num_decoder_layers=3,
        head_dim=5,
        mlp_dim=20,
        mlp_activations=("relu",) if request.param.startswith("1.0") else ("gelu", "linear"),
        logits_via_embedding=request.param in ("1.0", "1.1 tied"),
    )
    random = {
        name: generator.standard_normal(shape).astype(np.float32) * 0.5
        for name, shape in expected_shapes(config).items()
    }
    return StoredBase(config, request.param, random)


@pytest.fixture
def refused():
    """Returns refused(path, *words): opening and loading it is a one-line error with the words."""

    def check(path, *words, configured=None) -> str:
        with pytest.raises(UserError) as caught:
            load_base(path, configured)
        message = str(caught.value)
        assert message.isprintable(), message
        for word in words:
            assert str(word) in message, message
        return message

    return check


@pytest.fixture(scope="session")
def params(arrays) -> dict:
    return traverse_util.unflatten_dict(arrays, sep="/")


def _write_zarr(folder: pathlib.Path, array: np.ndarray, chunks: list[int]) -> None:
    """zarr v2 by its specification: edge chunks are stored full, C order, gzip."""
    folder.mkdir(parents=True)
    dtype = "bfloat16" if array.dtype == jnp.bfloat16 else array.dtype.str
    layout = {
        "chunks": chunks,
        "compressor": {"id": "gzip", "level": 1},
        "dtype": dtype,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(layout))
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    for place in itertools.product(*map(range, counts)):
        here = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, chunks, strict=True))
        part = np.zeros(chunks, array.dtype)
        part[tuple(slice(0, n) for n in array[here].shape)] = array[here]
        (folder / ".".join(map(str, place))).write_bytes(gzip.compress(part.tobytes()))


@pytest.fixture(scope="session")
def write_t5x():
    """Returns write(folder, arrays, chunks=…, store=…, inline=…), a writer of T5X's format.

    `chunks(shape)` gives the chunk shape; `store(name)` the spec's "kvstore"; the arrays named in
    `inline` are put into the index itself.
    """

    def write(
        folder,
        arrays,
        *,
        chunks=list,
        store=lambda name: {"driver": "file", "path": f"target.{name}/"},
        inline=(),
        index_of=lambda index: index,
    ):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True)
        target = {}
        for name, array in arrays.items():
            dotted = name.replace("/", ".")
            if name in inline:
                target[name] = array
                continue
            _write_zarr(folder / f"target.{dotted}", array, chunks(array.shape))
            target[name] = {
                "driver": "zarr",
                "dtype": str(array.dtype),
                "kvstore": store(dotted),
                "metadata": {"chunks": chunks(array.shape), "shape": list(array.shape)},
            }
        index = {
            "version": 3,
            "optimizer": {
                "target": traverse_util.unflatten_dict(target, sep="/"),
                "state": {"step": np.int32(7), "param_states": {"unread": np.zeros(3)}},
            },
        }
        (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index_of(index)))
        return folder

    return write
