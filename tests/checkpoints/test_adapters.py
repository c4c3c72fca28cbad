"""Adapters on disk: bytes, round trip, replacement, and every way not to fit."""

import dataclasses
import hashlib
import json
import os
import random
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.checkpoints import (
    check_tensors,
    fingerprint,
    load_adapter,
    read_record,
    save_adapter,
    shapes_of,
)
from adalink_jax.checkpoints.adapter_record import record_digest
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from tests.methods.toys import example


@pytest.fixture
def tree():
    generator = np.random.default_rng(2)

    def normal(*shape):
        return generator.standard_normal(shape).astype(np.float32)

    return {
        "encoder": {
            "adalink": {"down": normal(3, 6, 2), "up": normal(3, 2, 6)},
            "layers_0": {"attention": {"query": {"adalink": {"down": normal(3, 6, 2)}}}},
        }
    }


SETTINGS = {"rank": 2, "stacks": ("encoder",), "routes": 3}


@pytest.fixture
def save(tmp_path, tree, tiny, params):
    """Returns save(folder name, **changed arguments) → the folder."""

    def call(name="adapter", tree=tree, **changes):
        arguments = {
            "method_name": "adalink",
            "settings": SETTINGS,
            "architecture": tiny,
            "base_fingerprint": fingerprint(params),
            "route_names": ["rte", "colà", "mrpc"],
            "metadata": {"metrics": {"rte": 0.5}, "config": "RANK = 2\n", "seeds": [1, 2]},
        }
        save_adapter(tmp_path / name, tree, **{**arguments, **changes})
        return tmp_path / name

    return call


def contents(folder):
    return {child.name: child.read_bytes() for child in folder.iterdir()}


def refused(folder, *words, **arguments):
    with pytest.raises(UserError) as caught:
        load_adapter(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in (folder, *words):
        assert str(word) in message, message
    return message


def test_round_trip_is_exact(save, tree, tiny, params):
    found = load_adapter(
        save(), architecture=tiny, base_fingerprint=fingerprint(params), method_name="adalink"
    )
    expected = traverse_util.flatten_dict(tree)
    flat = traverse_util.flatten_dict(found.tree)
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        assert flat[name].dtype == np.float32
        np.testing.assert_array_equal(flat[name], array)
    assert found.method_name == "adalink"
    assert found.settings == SETTINGS
    assert found.route_names == ("rte", "colà", "mrpc")
    assert found.metadata == {"metrics": {"rte": 0.5}, "config": "RANK = 2\n", "seeds": [1, 2]}
    assert found.architecture == tiny
    assert found.base_fingerprint == fingerprint(params)


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_every_method_make_it_again(save, name):
    method = example(name)
    names = [f"task_{i}" for i in range(method.routes)]
    folder = save(method_name=name, settings=method.settings(), route_names=names)
    found = load_adapter(folder)
    assert METHODS[found.method_name](**found.settings) == method
    hash(METHODS[found.method_name](**found.settings))


def test_equal_adapters_have_equal_bytes_in_any_order_place_and_process(save, tree, tmp_path):
    first = contents(save("one"))
    assert set(first) == {"adapter.safetensors", "adapter.json"}
    turned = {"encoder": dict(reversed(tree["encoder"].items()))}
    settings_turned = dict(reversed(SETTINGS.items()))
    assert contents(save("two", tree=turned, settings=settings_turned)) == first
    # Another hash seed would show an order taken from a set or a hash map.
    code = (
        "import sys; from adalink_jax.checkpoints import load_adapter, save_adapter\n"
        "a = load_adapter(sys.argv[1])\n"
        "save_adapter(sys.argv[2], a.tree, method_name=a.method_name, settings=a.settings,"
        " architecture=a.architecture, base_fingerprint=a.base_fingerprint,"
        " route_names=a.route_names, metadata=a.metadata)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "one"), str(tmp_path / "three")]
    subprocess.run(arguments, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert contents(tmp_path / "three") == first


def test_tensors_are_the_bytes_that_safetensors_writes(save, tree, tmp_path):
    more = {**tree, "a": {"scalar": np.float32(1), "empty": np.zeros((0, 3), np.float32)}}
    more["decoder"] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "B": jnp.ones((5,))}
    written = contents(save(tree=more))["adapter.safetensors"]
    flat = traverse_util.flatten_dict(more, sep="/")
    arrays = {name: np.array(leaf, np.float32, order="C") for name, leaf in flat.items()}
    assert written == safetensors.numpy.save(arrays)


def test_files_say_what_they_hold(save, tree):
    """Read by the safetensors specification: u64 length, JSON header, little-endian data."""
    found = contents(save())
    raw = found["adapter.safetensors"]
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = "encoder/adalink/up"
    assert header[name]["dtype"] == "F32" and header[name]["shape"] == [3, 2, 6]
    start, end = header[name]["data_offsets"]
    data = np.frombuffer(raw[8 + length :][start:end], "<f4").reshape(3, 2, 6)
    np.testing.assert_array_equal(data, tree["encoder"]["adalink"]["up"])

    text = found["adapter.json"].decode()
    record = json.loads(text)
    assert text == json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    assert record["tensors"][name] == {"dtype": "float32", "shape": [3, 2, 6]}
    assert record["tensors"].keys() == header.keys()
    assert record["architecture"]["emb_dim"] == 6


def test_device_arrays_views_and_bfloat16_are_stored_by_value(save):
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    half = jnp.arange(6, dtype=jnp.bfloat16).reshape(1, 2, 3) / 7
    found = load_adapter(save(tree={"a": {"turned": turned, "half": half, "one": jnp.ones(())}}))
    np.testing.assert_array_equal(found.tree["a"]["turned"], turned)
    np.testing.assert_array_equal(found.tree["a"]["half"], np.asarray(half, np.float32))
    assert found.tree["a"]["one"].shape == ()


def test_arrays_that_are_no_floats_are_a_mistake_of_the_caller(save, tmp_path):
    for leaf in (np.arange(3), np.ones(3), np.ones(3, bool)):
        with pytest.raises(TypeError, match="a/x"):
            save(tree={"a": {"x": leaf}})
    with pytest.raises(ValueError, match="JSON"):
        save(metadata={"loss": float("nan")})
    assert not (tmp_path / "adapter").exists()


def test_a_second_one_takes_the_first_ones_place(save, tmp_path):
    first = contents(save())
    second = contents(save(settings={**SETTINGS, "rank": 3}))
    assert first != second
    assert load_adapter(tmp_path / "adapter").settings["rank"] == 3
    assert [child.name for child in tmp_path.iterdir()] == ["adapter"]


class Killed(BaseException):
    """As a kill: no handler of exceptions sees it."""


@pytest.mark.parametrize("renames", [0, 1])
def test_killed_while_it_replaces_another_the_old_or_the_new_is_there(
    save, tmp_path, monkeypatch, renames
):
    save()
    done = []
    rename = os.rename

    def stop_after(source, target, **arguments):
        if len(done) == renames:
            raise Killed
        done.append(target)
        rename(source, target, **arguments)

    monkeypatch.setattr(os, "rename", stop_after)
    with pytest.raises(Killed):
        save(settings={**SETTINGS, "rank": 3})
    monkeypatch.undo()
    assert load_adapter(tmp_path / "adapter").settings == SETTINGS
    save(settings={**SETTINGS, "rank": 4})
    assert load_adapter(tmp_path / "adapter").settings["rank"] == 4
    assert [child.name for child in tmp_path.iterdir()] == ["adapter"]


def test_a_place_that_cannot_be_written_is_said(save, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/adapter cannot be written: .*File exists"):
        save("file/adapter")


def edit(folder, change):
    """Changes a record as a writer would: with the digest of what it says then."""
    record = json.loads((folder / "adapter.json").read_text())
    change(record)
    record["record_sha256"] = record_digest(record)
    (folder / "adapter.json").write_text(json.dumps(record))


def test_a_flipped_bit_of_a_record_never_gives_another_one(save):
    """Every byte once, and every bit of the settings and the routes."""
    folder = save()
    right = vars(read_record(folder))
    path = folder / "adapter.json"
    original = path.read_bytes()
    generator = random.Random(0)
    flips = [(place, generator.randrange(8)) for place in range(len(original))]
    for field in (b'"route_names"', b'"settings"'):
        start = original.index(field)
        flips += [(place, bit) for place in range(start, start + 90) for bit in range(8)]
    loaded = 0
    for place, bit in flips:
        altered = bytearray(original)
        altered[place] ^= 1 << bit
        path.write_bytes(altered)
        try:
            assert vars(read_record(folder)) == right, (place, bit)
            loaded += 1  # A space became another one, or the digest got another name.
        except UserError as error:
            assert str(error).isprintable()
    assert loaded < len(flips) / 4


def test_a_record_changed_by_hand_is_refused(save):
    folder = save()
    path = folder / "adapter.json"
    path.write_text(path.read_text().replace('"rank": 2', '"rank": 3'))
    refused(folder, "adapter.json: altered")
    with pytest.raises(UserError, match="adapter.json: altered"):
        read_record(folder)


def test_records_without_a_digest_load(save):
    """As earlier versions wrote them."""
    folder = save()
    right = load_adapter(folder)
    record = json.loads((folder / "adapter.json").read_text())
    assert record.pop("record_sha256") == record_digest(record)
    (folder / "adapter.json").write_text(json.dumps(record, indent=2))
    assert vars(read_record(folder)) == {k: v for k, v in vars(right).items() if k != "tree"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_not_loaded(save, tree, value):
    tree["encoder"]["adalink"]["up"][1, 1, 3] = value
    refused(save(), "encoder/adalink/up", "1 of 36 numbers are NaN or not finite")


def test_a_record_is_read_without_its_arrays(save):
    folder = save()
    loaded = load_adapter(folder)
    (folder / "adapter.safetensors").unlink()
    record = read_record(folder)
    assert vars(record) == {k: v for k, v in vars(loaded).items() if k != "tree"}
    assert record.method == loaded.method
    edit(folder, lambda record: record.update(method="adalonk"))
    with pytest.raises(UserError, match="unknown method 'adalonk'; did you mean 'adalink'"):
        read_record(folder)


@pytest.mark.parametrize("names", ["all", ("a", "b"), ("a", "a")])
def test_what_would_not_be_read_is_not_written(save, tmp_path, names):
    folder = tmp_path / "adapter"
    save(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="route"):
        save(folder, route_names=names)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_missing_and_damaged_files_are_named(save, tmp_path):
    refused(tmp_path / "none", "no such folder")
    folder = save()
    raw = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(raw[:-4])
    refused(folder, "adapter.safetensors", "truncated", hashlib.sha256(raw).hexdigest()[:12])
    (folder / "adapter.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused(folder, "altered")
    (folder / "adapter.safetensors").unlink()
    refused(folder, "adapter.safetensors")
    folder = save("cut")
    text = (folder / "adapter.json").read_text()
    (folder / "adapter.json").write_text(text[: len(text) // 2])
    refused(folder, "adapter.json", "truncated")


def test_records_that_do_not_fit_their_tensors_are_refused(save):
    folder = save()
    down = "encoder/adalink/down"
    original = (folder / "adapter.json").read_text()

    def lose(record):
        del record["tensors"][down]

    def add(record):
        record["tensors"]["encoder/adalink/more"] = {"dtype": "float32", "shape": [1]}

    def reshape(record):
        record["tensors"][down]["shape"] = [6, 3, 2]

    for change, word in [(lose, down), (add, "encoder/adalink/more"), (reshape, down)]:
        edit(folder, change)
        refused(folder, "1 arrays", word)
        (folder / "adapter.json").write_text(original)
    load_adapter(folder)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_another_dtype_is_refused(save, dtype):
    """Also where hash and record say so."""
    folder = save()
    path = folder / "adapter.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "encoder/adalink/up"
    tensors[name] = tensors[name].astype(dtype)
    safetensors.numpy.save_file(tensors, path)

    def agree(record):
        record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        record["tensors"][name]["dtype"] = dtype

    edit(folder, agree)
    refused(folder, name, f"is {dtype}; adapters hold float32")


def test_a_hash_that_matches_a_file_that_lies_is_refused(save):
    """A safetensors header that claims more data than there is."""
    folder = save()
    path = folder / "adapter.safetensors"
    raw = path.read_bytes()
    path.write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])
    edit(folder, lambda r: r.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    refused(folder, "no safetensors file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 3}, ["format_version 3", "reads 1 and 2"]),
        ({"format_version": None}, ["format_version None"]),
        ({"method": "adalnk"}, ["adalnk", "did you mean 'adalink'"]),
        ({"method": 3}, ["'method'", "str"]),
        ({"settings": []}, ["'settings'"]),
        ({"architecture": {"emb_dim": 6}}, ["architecture", "vocab_size"]),
        ({"settings": {"rnk": 2}}, ["unknown 'rnk'; did you mean 'rank'"]),
        ({"settings": {}}, ["no rank"]),
        ({"settings": {"rank": 2.0}}, ["rank is 2.0"]),
        ({"settings": {"rank": True}}, ["rank is True"]),
        ({"settings": {"rank": 2**63}}, ["rank is 9223372036854775808"]),
        ({"method": "lora", "settings": {"rank": 2, "alpha": 10**400}}, ["alpha is 1000"]),
        ({"settings": {"rank": 0}}, ["rank is 0; it takes a whole number from 1"]),
        ({"settings": {"rank": 2, "stacks": ["encoder", 1]}}, ["stacks is ('encoder', 1)"]),
        ({"route_names": ["a", "a"]}, ["a name twice"]),
        ({"route_names": ["a\nb"]}, ["route_names"]),
        ({"route_names": [1]}, ["route_names"]),
        ({"route_names": ["a", "b"]}, ["2 names of routes, but its settings say 3 routes"]),
        ({"sha256": None}, ["'sha256'"]),
    ],
)
def test_records_of_another_kind_are_refused(save, change, words):
    folder = save()
    edit(folder, lambda record: record.update(change))
    refused(folder, *words)


def test_another_base_or_method_is_refused(save, tiny):
    folder = save(base_fingerprint="a" * 64)
    refused(folder, "another base", "a" * 12 + ",", "b" * 12, base_fingerprint="b" * 64)
    wide = dataclasses.replace(tiny, emb_dim=8)
    message = refused(folder, "emb_dim 6, this base's is 8", architecture=wide)
    assert "num_heads" not in message
    refused(folder, "emb_dim", "b" * 12, architecture=wide, base_fingerprint="b" * 64)
    refused(folder, "'adalink'", "'lora'", method_name="lora")
    # What is no matter of architecture does not count.
    load_adapter(folder, architecture=dataclasses.replace(tiny, dropout_rate=0.0))


def test_tensors_are_compared_with_the_methods_own(tree):
    found = shapes_of(tree)
    check_tensors(found, shapes_of(tree))
    expected = {**found, "encoder/adalink/down": (3, 6, 4), "decoder/adalink/down": (3, 6, 2)}
    with pytest.raises(UserError) as caught:
        check_tensors(found, expected, "some/adapter")
    message = str(caught.value)
    assert message.startswith("some/adapter: ")
    assert "missing (1): decoder/adalink/down" in message
    assert "encoder/adalink/down (expected [3, 6, 4], found [3, 6, 2])" in message


@pytest.fixture(scope="module")
def intact(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    save_adapter(
        folder,
        {"encoder": {"adalink": {"down": np.ones((1, 6, 2), np.float32)}}},
        method_name="adalink",
        settings={"rank": 2},
        architecture=tiny,
        base_fingerprint="c" * 64,
        route_names=["rte"],
        metadata={},
    )
    return folder


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_altered_files_are_loaded_whole_or_refused(intact, data):
    name = data.draw(st.sampled_from(["adapter.json", "adapter.safetensors"]))
    path = intact / name
    original = path.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255))
    cut = data.draw(st.booleans())
    altered = original[:place] + (b"" if cut else bytes([byte]) + original[place + 1 :])
    path.write_bytes(altered)
    try:
        found = load_adapter(intact)
        assert name == "adapter.json" or altered == original
        np.testing.assert_array_equal(found.tree["encoder"]["adalink"]["down"], np.ones((1, 6, 2)))
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(original)
