"""Damaged bases: every reader answers with one clear line, never with a crash or other weights."""

import json
import os
import pathlib
import shutil

import numpy as np
import orbax.checkpoint
import pytest
from flax import traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adalink_jax.checkpoints import StoredBase, open_base, save_base
from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.checkpoints.formats import huggingface
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config

TINY = T5Config(
    vocab_size=5,
    emb_dim=2,
    num_heads=1,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=2,
    mlp_dim=3,
    mlp_activations=("relu",),
    logits_via_embedding=True,
)


@pytest.fixture(scope="module")
def tiny_base():
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in expected_shapes(TINY).items()
    }
    return StoredBase(TINY, "tiny", arrays)


def write_orbax(folder, base):
    tree = {"target": traverse_util.unflatten_dict(dict(base.arrays), sep="/")}
    with orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(pathlib.Path(folder).absolute(), tree)


@pytest.fixture(scope="module")
def intact(tmp_path_factory, tiny_base):
    """A folder in each format, by its name; whoever alters one puts it back."""
    place = tmp_path_factory.mktemp("intact")
    for name in ("t5x", "huggingface", "native"):
        save_base(place / name, tiny_base, name)
    write_orbax(place / "orbax", tiny_base)
    shards = place / "shards"
    shards.mkdir()
    huggingface.write(shards, tiny_base, shard_bytes=200)
    return place


def header_of(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_header(path, header, data, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data)


def longer_than_the_file(path):
    header, data = header_of(path)
    put_header(path, header, data, length=10**7)


def longer_than_memory(path):
    header, data = header_of(path)
    put_header(path, header, data, length=2**63)


def of_no_length(path):
    header, data = header_of(path)
    path.write_bytes((0).to_bytes(8, "little") + json.dumps(header).encode() + data)


def cut_inside_the_length(path):
    os.truncate(path, 5)


def cut_by_a_byte(path):
    os.truncate(path, path.stat().st_size - 1)


def with_a_byte_more(path):
    path.write_bytes(path.read_bytes() + b"\0")


def overlapping(path):
    header, data = header_of(path)
    names = [name for name in header if name != "__metadata__"]
    same = [n for n in names if header[n]["shape"] == header[names[1]]["shape"]]
    header[same[1]]["data_offsets"] = header[same[0]]["data_offsets"]
    put_header(path, header, data)


def with_a_hole(path):
    header, data = header_of(path)
    for name in header:
        if name != "__metadata__":
            header[name]["data_offsets"] = [n + 4 for n in header[name]["data_offsets"]]
    put_header(path, header, b"\0\0\0\0" + data)


def of_another_shape(path):
    header, data = header_of(path)
    header["shared.weight"]["shape"] = [2, 6]
    put_header(path, header, data)


def of_negative_size(path):
    header, data = header_of(path)
    header["shared.weight"]["shape"] = [-5, -2]
    put_header(path, header, data)


def of_huge_size(path):
    header, data = header_of(path)
    header["shared.weight"]["shape"] = [2**40, 2**40]
    put_header(path, header, data)


def of_unknown_dtype(path):
    header, data = header_of(path)
    header["shared.weight"]["dtype"] = "F8_E5M2"
    put_header(path, header, data)


def twice(path):
    header, data = header_of(path)
    text = json.dumps(header)
    entry = json.dumps(header["shared.weight"])
    put_header(path, (text[:-1] + f', "shared.weight": {entry}}}').encode(), data)


def nested(path):
    put_header(path, b"[" * 100_000, b"")


def no_text(path):
    put_header(path, b"\xff\xfe{}", b"")


@pytest.mark.parametrize(
    "damage",
    [
        longer_than_the_file,
        longer_than_memory,
        of_no_length,
        cut_inside_the_length,
        cut_by_a_byte,
        with_a_byte_more,
        overlapping,
        with_a_hole,
        of_another_shape,
        of_negative_size,
        of_huge_size,
        of_unknown_dtype,
        twice,
        nested,
        no_text,
    ],
)
def test_safetensors_headers_that_lie_are_refused(tmp_path, intact, refused, damage):
    shutil.copytree(intact / "huggingface", tmp_path / "hf")
    damage(tmp_path / "hf" / "model.safetensors")
    refused(tmp_path / "hf", tmp_path / "hf" / "model.safetensors")


def test_a_flipped_byte_of_a_native_base_is_refused(tmp_path, intact, refused):
    shutil.copytree(intact / "native", tmp_path / "base")
    path = tmp_path / "base" / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused(tmp_path / "base", "SHA-256", path)


def test_loops_of_links_and_unreadable_places(tmp_path, intact, refused):
    shutil.copytree(intact / "t5x", tmp_path / "t5x")
    os.symlink(tmp_path / "t5x", tmp_path / "t5x" / "target.extra")
    refused(tmp_path / "t5x", "target.extra", "a loop of symbolic links")
    (tmp_path / "t5x" / "target.extra").unlink()
    norm = tmp_path / "t5x" / "target.encoder.encoder_norm.scale"
    shutil.rmtree(norm)
    os.symlink(norm, norm)
    refused(tmp_path / "t5x", norm)
    shutil.copytree(intact / "huggingface", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    os.symlink("config.json", tmp_path / "hf" / "config.json")
    refused(tmp_path / "hf", "config.json", "symbolic links")
    (tmp_path / "hf" / "config.json").unlink()
    (tmp_path / "hf" / "config.json").mkdir()
    refused(tmp_path / "hf", "config.json")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "below", "file")
    os.symlink(tmp_path / "gone", tmp_path / "dangling")
    refused(tmp_path / "dangling", "dangling")


def test_links_to_files_and_folders_are_followed(tmp_path, intact, tiny_base):
    for place in ("t5x", "huggingface", "native", "orbax"):
        (tmp_path / place).mkdir()
        for child in (intact / place).iterdir():
            os.symlink(child, tmp_path / place / child.name)
        same(open_base(tmp_path / place), tiny_base)


def test_checkpoints_that_are_still_written_are_refused(tmp_path, intact, refused):
    for name in ("checkpoint_5.tmp-1699", "checkpoint_5.orbax-checkpoint-tmp-1"):
        place = tmp_path / name
        shutil.copytree(intact / "t5x", place / name)
        refused(place, "no known format", name)
    # Orbax writes each process' database, and joins them when all is there.
    shutil.copytree(intact / "orbax", tmp_path / "joining" / "checkpoint_5" / "state")
    (tmp_path / "joining" / "checkpoint_5" / "state" / "manifest.ocdbt").unlink()
    refused(tmp_path / "joining", "checkpoint_5/state", "still being written")


def same(found, expected):
    assert found.shapes == expected.shapes
    for name in expected.arrays:
        np.testing.assert_array_equal(found.read(name), expected.read(name), err_msg=name)


# Where a byte is no content of a parameter: a change there is refused, or changes nothing.
NAMING = {
    "t5x": ("checkpoint", "target.encoder.encoder_norm.scale/.zarray"),
    "huggingface": ("config.json", "model.safetensors"),
    "shards": ("model.safetensors.index.json", "config.json"),
    "native": ("adapter.json", "adapter.safetensors"),
    "orbax": ("_METADATA", "manifest.ocdbt", "d/*"),
}
JUNK = (
    b"",
    b"\0",
    b"\xff" * 8,
    b"{}",
    b"[]",
    b"null",
    b"-1",
    b"1e999",
    b'""',
    b"9" * 30,
    b"{" * 40,
)


def altered(data, content):
    """A file's content with a few changes of bytes: put, left out, doubled or moved."""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = min(len(content), start + data.draw(st.sampled_from((0, 1, 2, 8, 40, 10**6))))
        put = data.draw(st.one_of(st.sampled_from(JUNK), st.binary(min_size=1, max_size=4)))
        again = data.draw(st.booleans())
        content = content[:start] + put + (content[start:stop] if again else b"") + content[stop:]
    return content


def attack(intact, tiny_base, data, formats):
    """Alters a file of a base; what then loads has the shapes and dtypes of the original."""
    name = data.draw(st.sampled_from(formats))
    pattern = data.draw(st.sampled_from(NAMING[name]))
    path = data.draw(st.sampled_from(sorted((intact / name).glob(pattern))))
    original = path.read_bytes()
    try:
        path.write_bytes(altered(data, original))
        found = open_base(intact / name)
        for parameter in found.arrays:
            array = found.read(parameter)
            assert array.dtype == np.float32
            assert array.shape == found.shapes[parameter]
        if name == "native":
            same(found, tiny_base)
    except UserError as error:
        assert str(error).isprintable(), repr(str(error))
    finally:
        path.write_bytes(original)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_altered_files_are_refused_or_load(intact, tiny_base, data):
    attack(intact, tiny_base, data, tuple(NAMING))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NAMING))
@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_thousands_of_altered_files_are_refused_or_load(intact, tiny_base, name, data):
    attack(intact, tiny_base, data, (name,))


def test_the_intact_ones_load(intact, tiny_base):
    for name in NAMING:
        same(open_base(intact / name), tiny_base)
