"""A base on one host of several: read in parts, and fingerprinted together."""

import dataclasses
import math
import re
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import tasks
from adalink_jax.checkpoints import fingerprint, load_base, open_base
from adalink_jax.checkpoints.lazy import StoredBase
from adalink_jax.distributed import hosts, sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.models.parameters import check_trains
from adalink_jax.models.stacking import LayerStack
from adalink_jax.runs import options, setup
from adalink_jax.runs.description import description
from adalink_jax.training import state
from tests.methods.toys import Norms


@pytest.fixture
def reads(monkeypatch):
    """What is read of stored bases, as (name, number of values)."""
    found = []
    read = StoredBase.read

    def watched(base, name, index=...):
        array = read(base, name, index)
        found.append((name, array.size))
        return array

    monkeypatch.setattr(StoredBase, "read", watched)
    return found


@pytest.fixture
def folder(tiny, write_base):
    return write_base(tiny[0])


class Hosts:
    """Hosts one after another in this process: what one asks of the others is kept from before."""

    def __init__(self, monkeypatch, count):
        self._monkeypatch, self.records, self._said = monkeypatch, {}, {}
        monkeypatch.setattr(jax, "process_count", lambda: count)
        self.count = count

    def all(self, ask):
        """The answers of all, once each knows what all have said."""
        for _ in range(2):
            answers = [self._as(index, ask) for index in range(self.count)]
        return answers

    def _as(self, index, ask):
        def gather(value):
            self._said[index] = value
            return [self._said.get(i, []) for i in range(self.count)]

        self._monkeypatch.setattr(jax, "process_index", lambda: index)
        self._monkeypatch.setattr(hosts, "gather", gather)
        self._monkeypatch.setattr(
            hosts, "agree", lambda **parts: self.records.update({index: parts})
        )
        return ask(index)


def test_hosts_share_the_reading_and_find_the_fingerprint_of_one(monkeypatch, folder, reads):
    expected = fingerprint(load_base(folder)[1])
    total = sum(size for _, size in reads)
    three = Hosts(monkeypatch, 3)

    def prepared(index):
        reads.clear()
        base = setup.prepared_base(str(folder), None, Method(), 0, {})
        return base, sum(size for _, size in reads)

    answers = three.all(prepared)
    assert {base.fingerprint for base, _ in answers} == {expected}
    assert three.records[0] == three.records[1] == three.records[2]
    corners = sum(
        math.prod(min(length, 8) for length in leaf.shape)
        for leaf in jax.tree.leaves(load_base(folder)[1])
    )
    # Each leaf by one host alone; beside that, a few values of it by every host.
    assert sum(size for _, size in answers) == total + 3 * corners
    assert max(size for _, size in answers) < total / 2 + corners


def test_hosts_with_different_bases_are_told_apart(monkeypatch, folder):
    params = load_base(folder)[1]
    other = jax.tree.map(lambda leaf: leaf * np.float32(1 + 1e-6), params)
    two = Hosts(monkeypatch, 2)
    two.all(lambda index: setup._fingerprint((params, other)[index]))
    first, second = (two.records[index]["base"] for index in range(2))
    assert first["shapes"] == second["shapes"] and first["first values"] != second["first values"]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_base_goes_from_its_files_onto_the_mesh(tiny, folder, reads, scan_layers):
    config, params = load_base(folder)
    config = config.__class__(**{**vars(config), "scan_layers": scan_layers})
    mesh = sharding.make_mesh()
    expected = state.place_params(config, Method(), params, mesh)
    reads.clear()
    found = state.place_params(config, Method(), open_base(folder).unread(), mesh)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # Each once, each whole: there is one device.
    sizes = {name: leaf.size for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    assert sorted(reads) == sorted(sizes.items())


def test_a_part_that_several_devices_hold_is_read_once_and_copied(monkeypatch):
    """With the devices of a mesh that is not here: two parts, each on two devices."""
    rows = [(slice(0, 2),), (slice(0, 2),), (slice(2, 4),), (slice(2, 4),)]
    parts = []
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda shape, where, part: parts.extend(map(part, rows))
    )
    monkeypatch.setattr(sharding, "check_split", lambda *given: None)
    asked = []

    class Stored:
        shape = (4,)

        def __getitem__(self, index):
            asked.append(index)
            return np.arange(4.0)[index]

    sharding.place("x", Stored(), None)
    assert [part.tolist() for part in parts] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert asked == [(slice(0, 2),), (slice(2, 4),)]
    assert not np.shares_memory(parts[0], parts[1])


def test_an_array_that_the_mesh_does_not_divide_is_named():
    place = NamedSharding(Mesh(np.array(jax.devices()), ("model",)), PartitionSpec("model"))
    assert sharding.place("x", LayerStack([np.ones(3)] * 2), place).shape == (2, 3)
    abstract = jax.sharding.AbstractMesh((5,), ("model",))
    with pytest.raises(UserError, match=r"encoder/x of shape \[37\] cannot be split"):
        sharding.check_split("encoder/x", (37,), NamedSharding(abstract, PartitionSpec("model")))


def test_a_base_in_int8_says_what_it_needs(monkeypatch):
    setup.check_frozen_dtype("int8", Method())
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"qwix is not installed: .*pip install -e .*\[int8\]"):
        setup.check_frozen_dtype("int8", Method())


@pytest.mark.parametrize(
    ("task", "variables", "said"),
    [
        ("mini_colla", {}, "'mini_colla'; did you mean 'mini_cola'"),
        ("glue_rte", {}, "no vocabulary: set VOCABULARY"),
        ("glue_proportional", {}, "no vocabulary: set VOCABULARY"),
        ("glue_rte", {"VOCABULARY": "no/such.model"}, "VOCABULARY=no/such.model: no such file"),
        ("super_glue_copa", {"SUPER_GLUE_DIR": "no/such"}, "SUPER_GLUE_DIR=no/such: no such fo"),
        ("glue_equal", {"GLUE_DIR": "no/such"}, "GLUE_DIR=no/such: no folder no/such"),
    ],
)
def test_what_a_task_lacks_is_said_before_a_base_is_read(monkeypatch, task, variables, said):
    for name in ("VOCABULARY", "SUPER_GLUE_DIR", "GLUE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    data = options.Data(task, {"inputs": 32, "targets": 4})
    with pytest.raises((UserError, tasks.DataError), match=re.escape(said)):
        setup.own_data(data, options.Table(), options.Evaluation(), "no_such_base")


def test_a_method_that_could_not_be_loaded_is_refused_before_it_trains():
    adalink = METHODS["adalink"](rank=2)
    setup.check_method(adalink, "float32")
    for method in (Norms(), METHODS["compose"](parts=(adalink, Norms()))):
        with pytest.raises(UserError, match="^Norms is not in METHODS .* by its scope 'norms'"):
            setup.check_method(method, "float32")


def test_a_method_whose_hooks_are_never_called_is_refused_and_not_described_as_empty(tiny):
    @dataclasses.dataclass(frozen=True)
    class Misspelled(Method):
        routes: int = 1
        scope: ClassVar[str] = "misspelled"

        def sub_layer(self, y, x, residual, site, ctx):
            raise AssertionError

    for look in (description, check_trains):
        with pytest.raises(UserError, match="Misspelled.*nothing would train"):
            look(tiny[0], Misspelled())
    assert description(tiny[0], Method())["parameters"]["trainable"] == 0
