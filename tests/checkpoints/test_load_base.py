"""Loading bases: T5X's goldens against an independent reading, variants, and damage."""

import dataclasses
import gzip
import json
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from adalink_jax.checkpoints import load_base, save_adapter
from adalink_jax.checkpoints.architecture import describe_architecture
from adalink_jax.errors import UserError


def refused(path, *words, configured=None):
    with pytest.raises(UserError) as caught:
        load_base(path, configured)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message
    for word in words:
        assert str(word) in message, message
    return message


def hand_read(folder):
    """A golden's array from its one gzip chunk, by NumPy alone."""
    layout = json.loads((folder / ".zarray").read_text())
    assert layout["chunks"] == layout["shape"] and layout["dtype"] == "<f4"
    chunk = folder / ".".join("0" for _ in layout["shape"])
    values = np.frombuffer(gzip.decompress(chunk.read_bytes()), np.float32)
    return values.reshape(layout["shape"])


def same(found, expected):
    flat = traverse_util.flatten_dict(found, sep="/")
    assert flat.keys() == expected.keys()
    for name, array in expected.items():
        assert flat[name].dtype == np.float32
        np.testing.assert_array_equal(flat[name], array, err_msg=name)


@pytest.mark.parametrize("golden", ["t5_1_0_tiny", "t5_1_1_tiny"])
def test_goldens_load_every_array_once(shared_data, golden):
    folder = shared_data / "golden" / golden
    expected = {
        child.name.removeprefix("target.").replace(".", "/"): hand_read(child)
        for child in (folder / "checkpoint_0").glob("target.*")
    }
    config, params = load_base(folder / "checkpoint_0")
    same(params, expected)
    written = json.loads((folder / "config.json").read_text())
    written.pop("dropout_rate")
    written |= {"separate_encoder_embedding": False, "relpos_bias_per_layer": False}
    assert describe_architecture(config) == written
    # The folder above is as good, whatever else is in it.
    same(load_base(str(folder))[1], expected)


def halves(shape):
    return [max(1, -(-size // 2) - 1) for size in shape]


def test_arrays_in_many_parts_load(tmp_path, write_t5x, arrays, tiny):
    config, params = load_base(write_t5x(tmp_path / "checkpoint_5", arrays, chunks=halves))
    assert describe_architecture(config) == describe_architecture(tiny)
    same(params, arrays)


def test_bfloat16_is_read_as_the_float32_it_holds(tmp_path, write_t5x, arrays):
    half = {name: array.astype(jnp.bfloat16) for name, array in arrays.items()}
    stored = write_t5x(tmp_path / "stored", half, chunks=halves)
    inline = write_t5x(tmp_path / "inline", half, inline=tuple(half))
    for folder in (stored, inline):
        same(load_base(folder)[1], {n: a.astype(np.float32) for n, a in half.items()})


def test_small_arrays_may_stand_in_the_index(tmp_path, write_t5x, arrays):
    small = tuple(name for name, array in arrays.items() if array.ndim == 1)
    same(load_base(write_t5x(tmp_path / "checkpoint_5", arrays, inline=small))[1], arrays)


@pytest.mark.parametrize(
    "store",
    [
        lambda name: {"driver": "gcs", "bucket": "b", "path": f"a/checkpoint_5/target.{name}/"},
        lambda name: {"driver": "gfile", "path": f"/cns/t5/checkpoint_5/target.{name}"},
        lambda name: {"driver": "file", "path": f"/no/such/place/target.{name}/"},
    ],
)
def test_paths_of_where_it_was_written_do_not_matter(tmp_path, write_t5x, arrays, store):
    same(load_base(write_t5x(tmp_path / "checkpoint_5", arrays, store=store))[1], arrays)


def test_the_latest_of_several_counts_and_an_unfinished_one_is_no_candidate(
    tmp_path, write_t5x, arrays
):
    changed = {name: array + 1 for name, array in arrays.items()}
    write_t5x(tmp_path / "checkpoint_9", arrays)
    write_t5x(tmp_path / "checkpoint_100", changed)
    (tmp_path / "checkpoint_200.tmp-1699").mkdir()
    same(load_base(tmp_path)[1], changed)
    (tmp_path / "checkpoint_300").mkdir()
    refused(tmp_path, tmp_path / "checkpoint_300", "unfinished")


def test_a_configured_architecture_is_compared(tmp_path, write_t5x, arrays, tiny):
    folder = write_t5x(tmp_path / "checkpoint_5", arrays)
    other = dataclasses.replace(tiny, num_heads=8, head_dim=1)
    refused(folder, folder, "num_heads (configured 8, checkpoint 2)", configured=other)
    silu = dataclasses.replace(tiny, mlp_activations=("silu", "linear"))
    assert load_base(folder, silu)[0].mlp_activations == ("silu", "linear")
    refused(folder, "relu", configured=dataclasses.replace(tiny, mlp_activations=("relu",)))


def remove_array(folder):
    shutil.rmtree(folder / "target.encoder.layers_1.mlp.wo.kernel")


def remove_chunk(folder):
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0").unlink()


def cut_chunk(folder):
    path = folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0"
    path.write_bytes(path.read_bytes()[:-9])


def empty_chunk(folder):
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0").write_bytes(b"")


def remove_layout(folder):
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray").unlink()


def cut_layout(folder):
    path = folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray"
    path.write_text(path.read_text()[:30])


def half_precision(folder):
    path = folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray"
    path.write_text(path.read_text().replace("<f4", "<f2"))


def other_shape(folder):
    path = folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray"
    path.write_text(path.read_text().replace('"shape": [10, 6]', '"shape": [6, 10]'))


def spare_array(folder):
    shutil.copytree(folder / "target.encoder.encoder_norm.scale", folder / "target.extra.scale")


WO = "target.encoder.layers_1.mlp.wo.kernel"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_array, [WO, "missing"]),
        (remove_chunk, [f"{WO}/1.0", "missing"]),
        (cut_chunk, [WO, "truncated"]),
        (empty_chunk, [WO, "truncated"]),
        (remove_layout, [f"{WO}/.zarray", "missing"]),
        (cut_layout, [f"{WO}/.zarray"]),
        (half_precision, [WO, "<f2", "float32"]),
        (other_shape, [WO, "[6, 10]", "[10, 6]"]),
        (spare_array, ["target.extra.scale"]),
    ],
)
def test_damaged_arrays_are_named(tmp_path, write_t5x, arrays, damage, words):
    folder = write_t5x(tmp_path / "checkpoint_5", arrays, chunks=halves)
    load_base(folder)
    damage(folder)
    refused(folder, *words)


def without_target(index):
    return {"version": 3, "optimizer": {"state": {}}}


def without_one(index):
    del index["optimizer"]["target"]["encoder"]["encoder_norm"]
    return index


def two_of_one(index):
    layers = index["optimizer"]["target"]["encoder"]
    layers["layers_0"]["mlp"]["wo"] = layers["layers_1"]["mlp"]["wo"]
    return index


def not_an_array(index):
    index["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"] = "text"
    return index


def outside(index):
    spec = index["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"]
    spec["kvstore"]["path"] = "../.."
    return index


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_target, ["optimizer/target"]),
        (without_one, ["missing (1): encoder/encoder_norm/scale"]),
        (two_of_one, [WO]),
        (not_an_array, ["encoder/encoder_norm/scale", "str"]),
        (outside, ["encoder/encoder_norm/scale", "../.."]),
        (lambda index: {**index, "version": 4}, ["version 4", "3"]),
        (lambda index: {"params": {}}, ["version None"]),
        (lambda index: [1], ["version None"]),
    ],
)
def test_wrong_indices_are_named(tmp_path, write_t5x, arrays, change, words):
    folder = write_t5x(tmp_path / "checkpoint_5", arrays, index_of=change)
    refused(folder, folder, *words)


def test_golden_truncated_in_any_way_is_refused(shared_data, tmp_path):
    source = shared_data / "golden" / "t5_1_1_tiny" / "checkpoint_0"
    folder = tmp_path / "checkpoint_0"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        for child in source.iterdir():
            if child.is_dir() and child.name.startswith("target."):
                os.makedirs(folder / child.name)
                for file in child.iterdir():
                    shutil.copyfile(file, folder / child.name / file.name)
        shutil.copyfile(source / "checkpoint", folder / "checkpoint")

    fresh()
    load_base(folder)
    (folder / "target.token_embedder.embedding" / "0.0").unlink()
    refused(folder, "target.token_embedder.embedding/0.0")
    fresh()
    shutil.rmtree(folder / "target.decoder.decoder_norm.scale")
    refused(folder, "target.decoder.decoder_norm.scale")
    fresh()
    os.truncate(folder / "checkpoint", 5000)
    refused(folder, folder / "checkpoint", "truncated")
    (folder / "checkpoint").unlink()
    refused(folder, "no known format")


def test_a_path_of_nothing_names_its_neighbour_or_where_to_get_one(tmp_path, monkeypatch):
    for name in ("flan_t5_base", "flan_t5_small\n"):
        (tmp_path / name).mkdir()
    refused(tmp_path / "flan_t5_bsae", "does not exist; did you mean 'flan_t5_base'?")
    refused(tmp_path / "flan_t5_small", "does not exist; did you mean 'flan_t5_base'?")
    refused(tmp_path / "none", "does not exist; docs/howto/files.md says where")
    refused(tmp_path / "none" / "flan_t5_base", "does not exist; docs/howto/files.md")
    monkeypatch.chdir(tmp_path)
    refused("mini_rwa", "did you mean 'mini_raw'?")
    refused("flan_t5_bas", "did you mean 'flan_t5_base'?")
    assert (pathlib.Path(__file__).parents[2] / "docs/howto/files.md").is_file()


def test_what_is_no_checkpoint_is_said(tmp_path, write_t5x, arrays):
    refused(tmp_path / "none", "does not exist", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    refused(tmp_path / "loop", "symbolic links")
    folder = write_t5x(tmp_path / "checkpoint_5", arrays)
    refused(folder / "checkpoint", "is a file", folder)
    refused("s3://bucket/checkpoint", "s3://bucket/checkpoint", "gs://BUCKET/PATH")
    (tmp_path / "small").mkdir()
    for name in ("checkpoint", "model.ckpt-100.index", "model.ckpt-100.data-00000-of-00002"):
        (tmp_path / "small" / name).write_text("")
    refused(tmp_path / "small", "Mesh TensorFlow", "model.ckpt-100", "t5x/")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights.pt").write_text("")
    refused(tmp_path / "other", "checkpoint_N", "adapter.safetensors", "weights.pt")


@pytest.mark.parametrize("method", ["full", "adalink"])
def test_the_model_of_a_full_fine_tuning_run_is_a_base(tmp_path, params, arrays, tiny, method):
    save_adapter(
        tmp_path / "run" / "adapter",
        params,
        method_name=method,
        settings={} if method == "full" else {"rank": 2},
        architecture=dataclasses.replace(tiny, mlp_activations=("silu", "linear")),
        base_fingerprint="0" * 64,
        route_names=["rte"],
        metadata={},
    )
    if method != "full":
        refused(tmp_path / "run", "adalink", "not a base")
        return
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
        config, found = load_base(folder)
        same(found, arrays)
        assert config.mlp_activations == ("silu", "linear")
    refused(tmp_path / "run", "gelu", "silu", configured=tiny)


def test_a_full_model_without_one_of_its_arrays_is_refused(tmp_path, arrays, tiny):
    part = {name: array for name, array in arrays.items() if "encoder_norm" not in name}
    save_adapter(
        tmp_path / "adapter",
        traverse_util.unflatten_dict(part, sep="/"),
        method_name="full",
        settings={},
        architecture=tiny,
        base_fingerprint="0" * 64,
        route_names=["rte"],
        metadata={},
    )
    refused(tmp_path / "adapter", "missing (1): encoder/encoder_norm/scale")


@pytest.fixture(scope="module")
def intact(tmp_path_factory, write_t5x, arrays):
    return write_t5x(tmp_path_factory.mktemp("fuzz") / "checkpoint_5", arrays)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_altered_files_load_the_same_or_are_refused(intact, arrays, data):
    """Of the index and one array's files; a changed byte may be in optimizer state, unread."""
    name = data.draw(st.sampled_from(["checkpoint", f"{WO}/.zarray", f"{WO}/0.0"]))
    path = intact / name
    original = path.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    cut = data.draw(st.booleans())
    byte = data.draw(st.integers(0, 255))
    altered = original[:place] + (b"" if cut else bytes([byte]) + original[place + 1 :])
    path.write_bytes(altered)
    try:
        same(load_base(intact)[1], arrays)
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(original)
