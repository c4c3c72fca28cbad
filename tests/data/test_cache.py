"""The cache file: whole or not there."""

import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.data import cache
from adalink_jax.errors import UserError

ARRAYS = {
    "tokens": np.arange(300, dtype=np.int32),
    "offsets": np.array([0, 100, 300]),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.frombuffer("é text".encode(), np.uint8),
}


def test_what_is_written_is_read_and_only_mapped(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.safetensors"
    cache.write(path, ARRAYS, {"examples": 2})
    arrays, about = cache.read(path)
    assert about == {"examples": 2} and set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(arrays[name], array)
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert not arrays[name].flags.writeable and not arrays[name].flags.owndata
    assert os.listdir(path.parent) == ["a.safetensors"]


@settings(deadline=None)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed_or_changes_nothing(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("cache") / "a.safetensors"
    cache.write(path, ARRAYS, {})
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    try:
        arrays, about = cache.read(path)
    except cache.Damaged:
        return
    # White space of the header may become other white space.
    assert about == {} and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].tolist()) == (array.dtype, array.tolist())


def test_other_software_reads_it(tmp_path):
    cache.write(tmp_path / "a.safetensors", ARRAYS, {"examples": 2})
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_equal_contents_are_equal_bytes(tmp_path):
    for place, about in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
        cache.write(tmp_path / place, ARRAYS, about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_facts_are_checked_too(tmp_path):
    path = tmp_path / "a.safetensors"
    cache.write(path, ARRAYS, {"examples": 2})
    content = path.read_bytes()
    assert content.count(b"examples") == 1
    path.write_bytes(content.replace(b"examples", b"exomples"))
    with pytest.raises(cache.Damaged, match="SHA-256"):
        cache.read(path)


@pytest.mark.parametrize("kept", [0, 5, 47, 48, 200, -1])
def test_a_truncated_file_is_noticed(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    cache.write(path, ARRAYS, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(cache.Damaged):
        cache.read(path)


def test_a_file_that_is_gone_or_none_is_damage_too(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(cache.Damaged):
            cache.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    cache.write(path, ARRAYS, {"version": "old"})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="a.safetensors cannot be written: No space left"):
        cache.write(path, ARRAYS, {"version": "new"})
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert cache.read(path)[1] == {"version": "old"}


def test_the_digest_tells_arrays_names_and_shapes_apart():
    variants = [
        {"a": np.arange(4)},
        {"b": np.arange(4)},
        {"a": np.arange(4).reshape(2, 2)},
        {"a": np.arange(4, dtype=np.int32)},
        {"a": np.arange(4) + 1},
    ]
    assert len({cache.digest(arrays) for arrays in variants}) == len(variants)
    assert cache.digest({"x": variants[0]["a"], "y": np.zeros(2)}) == cache.digest(
        {"y": np.zeros(2), "x": variants[0]["a"]}
    )


WRITER = """
import pathlib, sys
import numpy as np
from adalink_jax.data import cache
path, who = pathlib.Path(sys.argv[1]), int(sys.argv[2])
for turn in range(40):
    cache.write(path, {"a": np.full(200_000, who)}, {"who": who})
    arrays, about = cache.read(path)  # raises Damaged if it sees a mixture of two
    assert (arrays["a"] == about["who"]).all()
"""


def test_processes_that_write_at_once_never_see_half_a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    root = pathlib.Path(cache.__file__).parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(who)], cwd=root)
        for who in (1, 2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a.safetensors"]
