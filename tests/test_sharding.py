"""The mesh's refusals and the table of rules."""

import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.training.state import abstract_params


def test_a_batch_that_the_mesh_does_not_divide():
    mesh = types.SimpleNamespace(shape={"data": 8, "model": 1})
    sharding.check_divisible(mesh, BATCH_SIZE=32)
    with pytest.raises(UserError, match="BATCH_SIZE is 30, which the mesh's 8 data-parallel"):
        sharding.check_divisible(mesh, BATCH_SIZE=30)


def test_devices_that_a_model_cannot_be_spread_over():
    more = jax.device_count() + 1
    with pytest.raises(UserError, match=f"model_parallelism is {more}, which does not divide"):
        sharding.make_mesh(sharding.Layout(more))


@pytest.mark.parametrize("name", METHODS)
def test_every_axis_has_a_rule_and_adapters_are_not_split(tiny, name):
    method = METHODS[name](**({"rank": 2} if name in ("adalink", "lora") else {}))
    _, axes = abstract_params(tiny[0], method)
    rules = dict(sharding.RULES)
    for parameter, metadata in traverse_util.flatten_dict(dict(axes), sep="/").items():
        places = [rules[axis] for axis in metadata.names]  # A KeyError is an axis without a rule.
        if name in parameter.split("/"):
            assert not any(places), parameter


def test_a_batch_is_placed_as_it_is():
    batch = {"encoder_input_tokens": np.arange(12, dtype=np.int32).reshape(4, 3)}
    placed = sharding.place_batch(batch, sharding.make_mesh())
    np.testing.assert_array_equal(placed["encoder_input_tokens"], batch["encoder_input_tokens"])
