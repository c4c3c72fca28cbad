"""Damaged bases: every reader answers with one clear line, never with a crash or other weights."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import time

import numpy as np
import orbax.checkpoint
import pytest
from flax import serialization, traverse_util
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adalink_jax.checkpoints import StoredBase, lazy, open_base, save_base
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


def write_orbax(folder, base, **options):
    tree = {"target": traverse_util.unflatten_dict(dict(base.arrays), sep="/")}
    handler = orbax.checkpoint.PyTreeCheckpointHandler(**options)
    with orbax.checkpoint.Checkpointer(handler) as checkpointer:
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
    header["shared.weight"]["dtype"] = "F8\nE5M2"
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


@pytest.mark.parametrize("name", ["t5x", "huggingface", "native"])
def test_a_written_base_is_the_one_that_is_read_or_none(tmp_path, intact, tiny_base, name):
    """A bit of each file is flipped, and each is cut. No other number is ever read."""
    generator = np.random.default_rng(1)
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=intact / name
    )
    assert done.returncode == 0
    for path in sorted(p for p in (intact / name).rglob("*") if p.is_file()):
        original = path.read_bytes()
        place, bit = generator.integers(len(original)), generator.integers(8)
        for altered in (
            original[:place] + bytes([original[place] ^ (1 << bit)]) + original[place + 1 :],
            original[:place],
        ):
            path.write_bytes(altered)
            try:
                same(open_base(intact / name), tiny_base)
                assert path.name == "SHA256SUMS" or name == "native", path
            except UserError as error:
                assert str(error).isprintable()
            finally:
                path.write_bytes(original)


def test_a_base_without_sums_is_read_and_known_as_unchecked(tmp_path, intact, tiny_base):
    shutil.copytree(intact / "huggingface", tmp_path / "hf")
    assert open_base(tmp_path / "hf").verify is not None
    (tmp_path / "hf" / "SHA256SUMS").unlink()
    found = open_base(tmp_path / "hf")
    assert found.verify is None
    same(found, tiny_base)


@pytest.mark.parametrize("lines", ["", "no sums", f"{'0' * 64}  ../adapter.json", "0" * 66])
def test_sums_that_are_none_are_refused(tmp_path, intact, refused, lines):
    shutil.copytree(intact / "t5x", tmp_path / "t5x")
    (tmp_path / "t5x" / "SHA256SUMS").write_text(f"{lines}\n")
    refused(tmp_path / "t5x", "t5x/SHA256SUMS is truncated or damaged")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["t5x", "huggingface", "native"])
def test_a_base_with_numbers_that_are_not_finite_is_refused(
    tmp_path, tiny_base, refused, name, value
):
    """Also a part of it; no reader and no writer passes it on."""
    parameter = "encoder/layers_0/mlp/wo/kernel"
    arrays = {n: np.array(a) for n, a in tiny_base.arrays.items()}
    arrays[parameter][2, 1] = value
    lame = StoredBase(TINY, "lame", arrays)
    words = f"lame: {parameter}: 1 of 6 numbers are NaN or not finite"
    with pytest.raises(UserError, match=words):
        save_base(tmp_path / name, lame, name)
    assert not (tmp_path / name).exists()
    with pytest.raises(UserError, match=parameter):
        lame.load()
    with pytest.raises(UserError, match=parameter):
        lame.unread()["encoder"]["layers_0"]["mlp"]["wo"]["kernel"][2:, :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "check_finite", lambda array, what: None)
        save_base(tmp_path / name, lame, name)
    refused(tmp_path / name, parameter, "NaN")


def test_large_numbers_are_finite():
    """Their sum is not."""
    lazy.check_finite(np.full(9, 3e38, np.float32), "all")
    lazy.check_finite(np.zeros((0, 3), np.float32), "nothing")


HUGE = [10**6, 10**9, 10**12, 2**63, 10**400]


@pytest.fixture
def absurd(refused):
    """Returns absurd(path): it is refused in one line, at once and with no memory."""

    def check(path):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        message = refused(path, path)
        assert time.process_time() - started < 1, message
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, message

    return check


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("field", ["num_encoder_layers", "vocab_size", "emb_dim"])
def test_records_of_absurd_sizes_are_refused_at_once(tmp_path, intact, absurd, field, number):
    shutil.copytree(intact / "native", tmp_path / "base")
    path = tmp_path / "base" / "adapter.json"
    record = json.loads(path.read_text())
    record["architecture"][field] = number
    path.write_text(json.dumps(record))
    absurd(tmp_path / "base")


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("what", ["shape", "chunks", "both"])
@pytest.mark.parametrize("form", ["t5x", "orbax"])
def test_arrays_of_absurd_shapes_are_refused_at_once(
    tmp_path, intact, tiny_base, absurd, form, what, number
):
    """Also where T5X's index agrees. TensorStore would end the process."""
    folder = tmp_path / form
    if form == "orbax":
        write_orbax(folder, tiny_base, use_ocdbt=False)
    else:
        shutil.copytree(intact / "t5x", folder)
        (folder / "SHA256SUMS").unlink()
    layout = folder / "target.token_embedder.embedding" / ".zarray"
    described = json.loads(layout.read_text())
    for name in ("shape", "chunks") if what == "both" else (what,):
        described[name] = [number, 2]
    layout.write_text(json.dumps(described))
    if form == "t5x" and number < 2**64:
        index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        embedding = index["optimizer"]["target"]["token_embedder"]["embedding"]
        embedding["metadata"]["shape"] = described["shape"]
        (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    absurd(folder)


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
