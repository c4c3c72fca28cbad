"""The mesh's refusals and the table of rules."""

import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.config import gin_files
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.parameters import abstract_params
from tests.methods.toys import OF_TEXT, example


def test_a_batch_that_the_mesh_does_not_divide():
    mesh = types.SimpleNamespace(shape={"data": 8, "model": 1})
    sharding.check_divisible(mesh, BATCH_SIZE=32)
    slices = types.SimpleNamespace(shape={"slice": 2, "data": 8, "model": 1})
    with pytest.raises(UserError, match="BATCH_SIZE is 24, which the mesh's 16 data-parallel"):
        sharding.check_divisible(slices, BATCH_SIZE=24)
    with pytest.raises(UserError, match="BATCH_SIZE is 30, which the mesh's 8 data-parallel"):
        sharding.check_divisible(mesh, BATCH_SIZE=30)


def test_devices_that_a_model_cannot_be_spread_over():
    more = jax.device_count() + 1
    with pytest.raises(UserError, match=f"model_parallelism is {more}, which does not divide"):
        sharding.make_mesh(sharding.Layout(more))


@pytest.mark.parametrize("name", OF_TEXT)
def test_every_axis_has_a_rule_and_adapters_are_not_split(tiny, name):
    _, axes = abstract_params(tiny[0], example(name))
    rules = dict(sharding.RULES)
    for parameter, metadata in traverse_util.flatten_dict(dict(axes), sep="/").items():
        places = [rules[axis] for axis in metadata.names]  # A KeyError is an axis without a rule.
        if name in parameter.split("/"):
            assert not any(places), parameter


def test_t5x_has_a_rule_for_every_axis_of_adapters():
    """T5X has rules of its own for the base's axes."""
    of_base = {"embed", "kv", "length", "relpos_buckets"}
    own = {axis for axis, place in sharding.RULES if place is None} - of_base
    assert {"routes", "rank"} <= own
    for file in ("optimizers/adapter", "runs/finetune", "runs/eval", "runs/infer"):
        text = (gin_files.gin_folder() / f"t5x/{file}.gin").read_text(encoding="utf-8")
        assert not {axis for axis in own if f"'{axis}'" not in text}, file


def test_a_batch_is_placed_as_it_is():
    batch = {"encoder_input_tokens": np.arange(12, dtype=np.int32).reshape(4, 3)}
    placed = sharding.place_batch(batch, sharding.make_mesh())
    np.testing.assert_array_equal(placed["encoder_input_tokens"], batch["encoder_input_tokens"])


def test_a_hosts_rows_are_placed_as_the_whole_batch_is():
    batch = {"encoder_input_tokens": np.arange(12, dtype=np.int32).reshape(4, 3)}
    mesh = sharding.make_mesh()
    rows = sharding.local_rows(mesh, 4)
    np.testing.assert_array_equal(rows, np.arange(4))
    placed = sharding.place_batch(batch, mesh, 4)
    np.testing.assert_array_equal(placed["encoder_input_tokens"], batch["encoder_input_tokens"])


class Device:
    """What a mesh asks of a device."""

    device_kind = ""

    def __init__(self, number: int, slice_index: int | None = None, platform: str = "cpu"):
        self.id, self.platform, self.process_index = number, platform, number // 4
        if slice_index is not None:
            self.slice_index = slice_index


def test_devices_of_no_slice_are_divided_in_their_order():
    devices = [Device(i) for i in range(8)]
    mesh = sharding.make_mesh(sharding.Layout(2, slices=2), devices)
    assert dict(mesh.shape) == {"slice": 2, "data": 2, "model": 2}
    ids = [[[d.id for d in row] for row in part] for part in mesh.devices.tolist()]
    assert ids == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert dict(sharding.make_mesh(sharding.Layout(2), devices).shape) == {"data": 4, "model": 2}


def test_slices_are_those_of_the_devices():
    devices = [Device(i, i % 2, "tpu") for i in range(8)]
    for slices in (1, 4):
        with pytest.raises(UserError, match=f"slices is {slices}, but .* of 2 TPU slices"):
            sharding.make_mesh(sharding.Layout(slices=slices), devices)


@pytest.fixture
def places(monkeypatch):
    """Where a fully sharded layout puts each parameter: (config, data, model) -> specs."""

    def call(config, data, model):
        devices = [Device(i) for i in range(data * model)]
        layout = sharding.Layout(model, fully_sharded=True)
        mesh = sharding.make_mesh(layout, devices)
        monkeypatch.setattr(sharding, "NamedSharding", lambda mesh, spec: spec)
        shapes, axes = abstract_params(config, METHODS["adalink"](rank=4))
        specs = sharding.param_shardings(axes, mesh, layout, shapes)
        flat = traverse_util.flatten_dict(specs, sep="/")
        return {name: tuple(spec) for name, spec in flat.items()}

    return call


def test_fully_sharded_matrices_of_the_base_are_split_and_nothing_else(tiny, places):
    specs = places(tiny[0], 4, 2)
    assert specs["encoder/layers_0/attention/query/kernel"] == ("data", "model")
    assert specs["encoder/layers_0/mlp/wo/kernel"] == ("model", "data")
    assert specs["token_embedder/embedding"] == ("model", "data")
    # Vectors, tables of positions and adapters stay whole.
    assert "data" not in specs["encoder/encoder_norm/scale"]
    assert "data" not in specs["encoder/relpos_bias/rel_embedding"]
    assert set(specs["encoder/adalink/down"]) == {None}


def test_what_data_does_not_divide_is_split_elsewhere_or_not(tiny, places):
    # D = 16; N·K = 16, F = 24, V = 48.
    specs = places(tiny[0], 3, 1)
    assert specs["encoder/layers_0/mlp/wi_0/kernel"] == (None, "data")
    assert specs["token_embedder/embedding"] == ("data", None)
    assert "data" not in specs["encoder/layers_0/attention/query/kernel"]
    # The other axis belongs to tensor parallelism.
    assert places(tiny[0], 3, 2)["encoder/layers_0/mlp/wi_0/kernel"] == (None, "model")


def test_adafactors_moments_lie_as_their_matrices():
    """Rows and columns by hand: ``v_row`` lacks the larger, of equals the last dimension."""
    spec = sharding.PartitionSpec("data", "model")
    mesh = sharding.make_mesh()
    matrix = sharding.NamedSharding(mesh, spec)

    def reduced(shape, lacking, last):
        return tuple(sharding.reduced_sharding(matrix, shape, lacking, last).spec)

    assert reduced((8, 6), (8,), True) == reduced((8, 6), (8,), False) == ("data",)
    assert reduced((8, 6), (6,), True) == ("model",)
    assert reduced((8, 8), (8,), True) == ("data",)
    assert reduced((8, 8), (8,), False) == ("model",)
    assert sharding.reduced_sharding(matrix, (8, 6), (1,), True) is None
