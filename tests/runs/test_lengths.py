"""The lengths of batches that a run which goes on has: those that it began with."""

from unittest import mock

import pytest

from adalink_jax.runs.folder import RunFolder
from adalink_jax.runs.options import Batches, Data
from adalink_jax.runs.training import _lengths

DATA = Data("task", {"inputs": 512, "targets": 16})


@pytest.mark.parametrize(
    ("options", "record", "lengths"),
    [
        ({}, None, {}),
        ({}, {}, {}),
        ({"padding": "cheapest"}, None, {"steps": 500}),
        ({"padding": "cheapest"}, {"padded_to": [64, 96]}, {"padded_to": [64, 96]}),
        ({"packing": True}, None, {}),
        ({"packing": True}, {"packed_targets": 48}, {"packed_targets": 48}),
        # A run from before rows had room for the targets of all their inputs.
        ({"packing": True}, {"packing": True}, {"packed_targets": 16}),
    ],
)
def test_a_run_that_goes_on_keeps_the_lengths_that_it_began_with(options, record, lengths):
    folder = mock.create_autospec(RunFolder, instance=True)
    folder.record.return_value = None if record is None else {"data": record}
    assert _lengths(Batches(**options), DATA, folder, 500) == lengths
