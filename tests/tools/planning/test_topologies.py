"""The table of slices: names, numbers, and what is not in it."""

import importlib.metadata
import importlib.util
import re

import pytest

from adalink_jax.config import gin_files
from adalink_jax.errors import UserError
from adalink_jax.tools.planning import topologies


@pytest.mark.parametrize(
    ("name", "chips", "hosts", "preset"),
    [
        ("v4-8", 4, 1, "tpu_v4_8"),
        ("v4:2x2x1", 4, 1, "tpu_v4_8"),
        ("v5e:2x2", 4, 1, "tpu_v5e_2x2"),
        ("v5e:4x8", 32, 8, "tpu_v5e_4x8"),
        ("v5p:1x1x1", 1, 1, "tpu_v5p_1"),
        ("v5p:2x2x2", 8, 2, "tpu_v5p_2x2x2"),
        ("v6e:1x1", 1, 1, "tpu_v6e_1"),
        ("v6e:4x4", 16, 4, "tpu_v6e_4x4"),
    ],
)
def test_a_slice_is_found_with_its_preset(name, chips, hosts, preset):
    topology = topologies.find(name)
    assert (topology.chips, topology.hosts, topology.preset) == (chips, hosts, preset)
    assert (gin_files.gin_folder() / "hardware" / f"{preset}.gin").exists()


def test_every_shipped_preset_of_a_tpu_is_of_a_slice_and_of_its_size():
    presets = {each.preset: each for each in topologies.TOPOLOGIES.values()}
    files = list((gin_files.gin_folder() / "hardware").glob("tpu_*.gin"))
    assert files
    for file in files:
        devices = re.search(r"^options.Layout.devices = (\d+)$", file.read_text(), re.MULTILINE)
        assert presets[file.stem].chips == int(devices[1]), file.stem


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e:32x32", "did you mean 'v5e:2x2'.* it takes v5e:1x1, v5e:2x2"),  # libtpu takes it.
        ("v5p-8", "no TPU slice 'v5p-8'; did you mean"),
        ("", "no TPU slice ''; it takes v4-8"),  # libtpu gives a v2.
        ("h100:8", "it takes v4-8"),
    ],
)
def test_an_unknown_slice_is_refused_with_the_names_there_are(name, words):
    with pytest.raises(UserError, match=words):
        topologies.find(name)


def test_without_libtpu_a_line_says_what_to_install(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError, match=r"pip install -e .*\[plan\]"):
        topologies.find("v5e:2x2").devices()


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_libtpu_takes_all_names_and_gives_their_chips():
    for topology in topologies.TOPOLOGIES.values():
        devices = topology.devices()
        assert len({device.process_index for device in devices}) == topology.hosts, topology.name
