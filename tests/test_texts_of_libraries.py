"""Texts and names of other libraries that this code reads, provoked: a new version that says it
otherwise fails here, and not in front of a user.

Elsewhere: what TPU compilers say in tests/tools/planning/test_compiling.py, TensorFlow's notice in
tests/data/test_corpus.py, what jax.vmap says of its out_axes in tests/models/test_scan.py.
"""

import os
import types

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.checkpoints import storage, training_state
from adalink_jax.checkpoints.formats import zarr
from adalink_jax.config import gin_files
from adalink_jax.config.records import Target
from adalink_jax.errors import UserError
from adalink_jax.training import state


def test_refusals_of_the_operating_system_as_tensorstore_says_them(tmp_path):
    (tmp_path / "file").write_text("")
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path}/file/below/"}).result()
    with pytest.raises(ValueError) as caught:
        store.write("x", b"content").result()
    code = training_state._OS_ERROR.search(str(caught.value))
    assert os.strerror(int(code[1])) == "Not a directory"


def test_a_short_file_in_the_cloud_as_tensorstore_says_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"four")
    place = {"driver": "file", "path": f"{tmp_path}/"}
    monkeypatch.setattr(storage.Folder, "kvstore", lambda self, name="": place)
    folder = storage.Folder.at("gs://bucket/base")
    assert folder.read("file", 1, 4) == b"our"
    with pytest.raises(UserError, match=r"gs://bucket/base/file cannot be read: truncated: "):
        folder.read("file", 2, 9)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_lost_chunk_as_tensorstore_says_it(tmp_path, sparse):
    place = {"driver": "file", "path": f"{tmp_path}/"}
    layout = {"shape": [4, 4], "chunks": [2, 4], "dtype": "<f4", "fill_value": 0}
    spec = {"driver": "zarr", "kvstore": place, "metadata": layout, "create": True}
    tensorstore.open(spec).result().write(np.ones((4, 4), np.float32)).result()
    (tmp_path / "1.0").unlink()
    described = (tmp_path / ".zarray").read_bytes()
    array = zarr.describe_zarr(described, "zarr", "base/kernel", place, sparse)
    np.testing.assert_array_equal(array[:2], np.ones((2, 4)))
    if sparse:
        np.testing.assert_array_equal(array[...][2:], np.zeros((2, 4)))
        return
    with pytest.raises(UserError, match=rf"base/kernel: .*{tmp_path}/1.0.* is missing"):
        array[...]


def test_moments_by_row_as_optax_names_them():
    """A square matrix: by its shape alone, a row's moments could not be told from a column's."""
    params = {"w": jnp.ones((4, 4))}
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("rows", "columns"))
    sharding = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    found = state._like_params(
        jax.eval_shape(optax.scale_by_factored_rms(min_dim_size_to_factor=2).init, params),
        params,
        {"w": sharding},
        NamedSharding(mesh, PartitionSpec()),
    )
    assert found.v_row["w"].spec == PartitionSpec("rows")
    assert found.v_col["w"].spec == PartitionSpec("columns")


def test_the_object_that_refuses_as_gin_says_it():
    def toy_for_texts(rank):
        raise ValueError(f"rank is {rank}")

    with gin.unlock_config():  # A run before may have locked it.
        configured = gin.external_configurable(toy_for_texts, "toy_for_texts")
    found = types.SimpleNamespace(origins={"here.toy_for_texts.rank": None})
    try:
        with gin.unlock_config():
            gin.bind_parameter("toy_for_texts.rank", 0)
        with pytest.raises(ValueError) as caught:
            configured()
    finally:
        gin.clear_config()
    assert gin_files._refusal(caught.value, found) == "toy_for_texts.rank is 0"
    found.origins.clear()
    assert gin_files._refusal(caught.value, found) == "toy_for_texts: rank is 0"


def test_what_reads_gin_itself_as_gin_names_it():
    def plain(rank=0):
        return rank

    class Plain:
        def __init__(self, rank=0):
            self.rank = rank

    def reads_gin(found) -> bool:
        return Target("here.it", "here", "it", found).reads_gin

    assert not reads_gin(plain) and not reads_gin(Plain)
    with gin.unlock_config():
        assert reads_gin(gin.configurable("plain_for_texts")(plain))
        assert reads_gin(gin.configurable("Plain_for_texts")(Plain))
