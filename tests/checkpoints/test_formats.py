"""Every format against every other: round trips, parts, shardings, T5X's newer layouts, gs://."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from adalink_jax.checkpoints import StoredBase, fingerprint, load_base, open_base, save_base
from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.checkpoints.bases import WRITERS
from adalink_jax.checkpoints.formats import t5x_writer as writer
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config, Transformer
from tests.checkpoints import bucket
from tests.tiers import mostly_slow

from .conftest import BASES

LAYERS = T5Config(
    vocab_size=11,
    emb_dim=6,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=3,
    head_dim=4,
    mlp_dim=10,
    mlp_activations=("gelu", "linear"),
    relpos_bias_per_layer=True,
)


def same(one, other):
    assert one.config == other.config
    assert one.shapes == other.shapes
    for name in one.arrays:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


def random_arrays(config):
    generator = np.random.default_rng(3)
    return {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, *tokens):
    return Transformer(config).apply({"params": params}, *tokens, enable_dropout=False)


def contents(folder):
    """Every file's bytes, by its path in the folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("base", mostly_slow(BASES, ["1.1"]), indirect=True)
@pytest.mark.parametrize("first", list(WRITERS))
@pytest.mark.parametrize("second", list(WRITERS))
def test_there_and_back_is_bit_equal(tmp_path, base, first, second):
    save_base(tmp_path / "one", base, first)
    save_base(tmp_path / "two", open_base(tmp_path / "one"), second)
    save_base(tmp_path / "three", open_base(tmp_path / "two"), first)
    same(open_base(tmp_path / "two"), base)
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert fingerprint(load_base(tmp_path / "three")[1]) == fingerprint(base.load())


@pytest.mark.parametrize("golden", ["t5_1_0_tiny", "t5_1_1_tiny"])
@pytest.mark.parametrize("format_name", list(WRITERS))
def test_goldens_of_t5x_keep_their_logits(shared_data, tmp_path, golden, format_name):
    folder = shared_data / "golden" / golden
    original = open_base(folder)
    save_base(tmp_path / "copy", original, format_name)
    same(open_base(tmp_path / "copy"), original)
    config, params = load_base(tmp_path / "copy")
    with np.load(folder / "expected.npz") as expected:
        names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
        logits = logits_of(config, params, *(expected[name] for name in names))
        np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


def test_big_arrays_are_written_in_chunks(tmp_path, base, monkeypatch):
    monkeypatch.setattr(writer, "_CHUNK_BYTES", 200)
    save_base(tmp_path / "many", base, "t5x")
    assert len(list((tmp_path / "many" / "target.token_embedder.embedding").iterdir())) > 3
    same(open_base(tmp_path / "many"), base)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path, base):
    (tmp_path / "there").mkdir()
    os.symlink(tmp_path / "nothing", tmp_path / "link")
    unread = StoredBase(base.config, "nothing to read", {})
    for target in ("there", "link"):
        with pytest.raises(UserError, match="exists"):
            save_base(tmp_path / target, unread, "huggingface")

    def refuse(folder: pathlib.Path):
        assert (folder / "config.json").is_file()
        raise UserError("not equal")

    with pytest.raises(UserError, match="not equal"):
        save_base(tmp_path / "new", base, "huggingface", refuse)
    with pytest.raises(UserError, match="did you mean 'huggingface'"):
        save_base(tmp_path / "new", base, "hugingface")
    with pytest.raises(UserError, match="on this machine"):
        save_base("gs://bucket/new", base, "t5x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize("format_name", list(WRITERS))
def test_parts_are_the_parts(tmp_path, base, format_name):
    save_base(tmp_path / "base", base, format_name)
    stored = open_base(tmp_path / "base")
    for name in base.arrays:
        whole = base.read(name)
        for index in [slice(1, 3), (slice(0, 2),), tuple(slice(1, n) for n in whole.shape)]:
            np.testing.assert_array_equal(stored.read(name, index), whole[index], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize(
    ("format_name", "kind"),
    [
        ("huggingface", "adalink_jax.checkpoints.formats.safetensors_files:Tensor"),
        ("t5x", "adalink_jax.checkpoints.formats.zarr:ZarrArray"),
    ],
)
def test_each_host_reads_its_shards_once(tmp_path, params, tiny, hosts, format_name, kind):
    """Two devices for each host; what two of them hold, their host reads once."""
    arrays = traverse_util.flatten_dict(params, sep="/")
    save_base(tmp_path / "base", StoredBase(tiny, "tiny", arrays), format_name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = pathlib.Path(__file__).with_name("sharded_reading.py")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    processes = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "base", kind, str(port), str(hosts), str(number)],
            env={**os.environ, "PYTHONPATH": str(script.parents[2]), "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(hosts)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        said = json.loads(output.splitlines()[-1])
        if format_name == "t5x":
            assert said["read"] == said["held"]
        else:  # Of a tensor that lies transposed, a host that holds columns reads the rows.
            assert said["held"] <= said["read"] <= said["total"] * 2 / hosts
        assert (said["held"] < said["total"]) is (hosts == 2)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_shardings_of_other_parameters_are_refused(base):
    place = NamedSharding(Mesh(np.array(jax.devices()), ("model",)), PartitionSpec())
    places = dict.fromkeys(base.arrays, place)
    lost, _ = places.popitem()
    with pytest.raises(UserError, match=r"missing \(1\)"):
        base.load(traverse_util.unflatten_dict(places, sep="/"))
    abstract = AbstractMesh((5,), ("model",))
    places |= {
        lost: place,
        "token_embedder/embedding": NamedSharding(abstract, PartitionSpec("model")),
    }
    with pytest.raises(UserError, match=r"token_embedder/embedding.*\[37, 12\]"):
        base.load(traverse_util.unflatten_dict(places, sep="/"))


def stacked(arrays, config, axis):
    """`arrays` as T5X's scalable_t5 lays them out, by NumPy alone."""
    found = {n: a for n, a in arrays.items() if "/layers_" not in n}
    for stack, count in (
        ("encoder", config.num_encoder_layers),
        ("decoder", config.num_decoder_layers),
    ):
        for name in [n for n in arrays if n.startswith(f"{stack}/layers_0/")]:
            rest = name.split("/", 2)[2]
            layers = [arrays[f"{stack}/layers_{i}/{rest}"] for i in range(count)]
            if "attention/" in rest:
                heads = (config.num_heads, config.head_dim)
                out = "/out/" in rest
                layers = [a.reshape((*heads, -1) if out else (-1, *heads)) for a in layers]
            found[f"{stack}/{stack}/{rest}"] = np.stack(layers, axis)
    return found


def write_orbax(folder, arrays, prefix="target", **options):
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    for part in reversed(prefix.split(".")):
        tree = {part: tree}
    tree = {**tree, "state": {"step": np.int32(5), "param_states": {"x": np.zeros(3)}}}
    with orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler(**options)) as c:
        c.save(pathlib.Path(folder).absolute(), tree)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", ["native", "orbax"])
def test_scanned_layouts_of_scalable_t5(tmp_path, write_t5x, axis, form):
    """Stacked here, by the layout in T5X's scalable_t5; T5X itself made none of these."""
    arrays = random_arrays(LAYERS)
    if form == "native":
        write_t5x(tmp_path / "checkpoint_5", stacked(arrays, LAYERS, axis))
    else:
        write_orbax(tmp_path / "checkpoint_5" / "state", stacked(arrays, LAYERS, axis))
    found = open_base(tmp_path)
    same(found, StoredBase(dataclasses.replace(LAYERS), "arrays", arrays))
    name = "encoder/layers_1/attention/key/kernel"
    np.testing.assert_array_equal(
        found.read(name, (slice(1, 5), slice(3, 7))), arrays[name][1:5, 3:7]
    )
    name = "decoder/layers_2/self_attention/out/kernel"
    np.testing.assert_array_equal(found.read(name, (slice(5, 8),)), arrays[name][5:8])
    for format_name in ("t5x", "native"):
        save_base(tmp_path / format_name, found, format_name)
        same(open_base(tmp_path / format_name), found)


def test_stacks_without_a_common_number_of_layers_are_refused(tmp_path, write_t5x, refused):
    arrays = stacked(random_arrays(LAYERS), LAYERS, 1)
    arrays["encoder/encoder/mlp/wo/kernel"] = arrays["encoder/encoder/mlp/wo/kernel"][:, :1]
    write_t5x(tmp_path / "checkpoint_5", arrays)
    refused(tmp_path, "number of layers", "encoder")


def test_biases_of_each_layer_make_the_stacks_when_they_are_equal():
    """With one table in all layers, the network computes what one table a stack does."""
    arrays = random_arrays(LAYERS)
    for stack in ("encoder", "decoder"):
        table = arrays[f"{stack}/layers_0/relpos_bias/rel_embedding"]
        arrays |= {n: table for n in arrays if n.startswith(stack) and "relpos_bias" in n}
    one = dataclasses.replace(LAYERS, relpos_bias_per_layer=False)
    shared = {n: a for n, a in arrays.items() if "relpos_bias" not in n}
    for stack in ("encoder", "decoder"):
        name = "relpos_bias/rel_embedding"
        shared[f"{stack}/{name}"] = arrays[f"{stack}/layers_0/{name}"]
    tokens = np.array([[3, 4, 5, 0], [6, 7, 8, 9]], np.int32)

    def computed(config, tree):
        return logits_of(config, traverse_util.unflatten_dict(tree, sep="/"), *(3 * [tokens]))

    logits = [computed(LAYERS, arrays), computed(one, shared)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    arrays["encoder/layers_1/relpos_bias/rel_embedding"] = table + 1
    arrays["encoder/layers_1/relpos_bias/rel_embedding"][:, ::2] *= 3
    assert np.max(np.abs(computed(LAYERS, arrays) - logits[0])) > 1e-3


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("target", {}),
        ("target", {"use_zarr3": True}),
        ("target", {"use_ocdbt": False}),
        ("optimizer.target", {}),
    ],
)
def test_orbax_checkpoints_load(tmp_path, base, prefix, options):
    """Written by Orbax itself, in the tree that T5X's OrbaxCheckpointManagerInterface gives it."""
    write_orbax(tmp_path / "checkpoint_7" / "state", dict(base.arrays), prefix, **options)
    (tmp_path / "checkpoint_7" / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "checkpoint_8.orbax-checkpoint-tmp-3").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoint_7", tmp_path / "checkpoint_7" / "state"):
        same(open_base(folder), base)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_orbax_checkpoints_in_bfloat16_load(tmp_path, base):
    half = {name: jnp.asarray(array, jnp.bfloat16) for name, array in base.arrays.items()}
    write_orbax(tmp_path / "checkpoint_7", half)
    found = open_base(tmp_path)
    for name, array in half.items():
        np.testing.assert_array_equal(found.read(name), np.asarray(array, np.float32))


def unfinished(folder):
    (folder / "manifest.ocdbt").unlink()


def without_metadata(folder):
    (folder / "_METADATA").unlink()


def cut_metadata(folder):
    os.truncate(folder / "_METADATA", 40)


def cut_manifest(folder):
    os.truncate(folder / "manifest.ocdbt", 30)


def without_data(folder):
    for path in [*folder.rglob("d/*")]:
        path.unlink()


def cut_data(folder):
    for path in folder.rglob("d/*"):
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (unfinished, ["manifest.ocdbt", "still being written"]),
        (without_metadata, ["_METADATA", "still being written"]),
        (cut_metadata, ["_METADATA", "truncated"]),
        (cut_manifest, ["truncated"]),
        (without_data, ["truncated"]),
        (cut_data, ["truncated"]),
    ],
)
def test_damaged_orbax_checkpoints_are_refused(tmp_path, base, refused, damage, words):
    folder = tmp_path / "checkpoint_7" / "state"
    write_orbax(folder, dict(base.arrays))
    damage(folder)
    refused(tmp_path, folder, *words)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_orbax_checkpoints_of_other_things_are_refused(tmp_path, base, refused):
    write_orbax(tmp_path / "other", dict(base.arrays), "params")
    refused(tmp_path / "other", "'target'")
    wrong = {**base.arrays, "encoder/encoder_norm/scale": np.ones(12, np.int32)}
    write_orbax(tmp_path / "integers", wrong)
    refused(tmp_path / "integers", "target.encoder.encoder_norm.scale", "<i4")
    short = {n: a for n, a in base.arrays.items() if "encoder_norm" not in n}
    write_orbax(tmp_path / "short", short)
    refused(tmp_path / "short", "missing (1): encoder/encoder_norm/scale")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A served folder: (its path, what is asked of it); its bucket is gs://shelf."""
    folder = tmp_path_factory.mktemp("cloud")
    with bucket.serve(folder, "shelf") as (url, asked):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
            patch.setenv("no_proxy", "*")
            patch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")  # No other credentials are sought.
            yield folder, asked


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize("format_name", [*WRITERS, "orbax", "scanned"])
def test_buckets_are_read_as_folders_are(cloud, base, write_t5x, format_name):
    folder, asked = cloud
    place = folder / "models" / format_name / base.where.replace(" ", "_")
    if format_name == "orbax":
        write_orbax(place / "checkpoint_7" / "state", dict(base.arrays))
    elif format_name == "scanned":
        write_t5x(place / "checkpoint_7", stacked(random_arrays(LAYERS), LAYERS, 1))
    else:
        save_base(place, base, format_name)
    del asked[:]
    found = open_base(f"gs://shelf/{place.relative_to(folder)}/")
    if format_name in ("huggingface", "t5x", "orbax"):
        assert not any("target.encoder" in n and "/0" in n for n, _ in asked)  # Opened, not read.
    same(found, open_base(place))
    if format_name == "huggingface":
        name = "decoder/layers_0/mlp/wo/kernel"
        del asked[:]
        found.read(name, (slice(None), slice(2, 5)))
        (part,) = asked  # Three rows of the transpose, which lies there.
        start, stop = part[1].removeprefix("bytes=").split("-")
        assert int(stop) + 1 - int(start) == 3 * base.config.mlp_dim * 4


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_what_is_not_in_the_bucket_is_said(cloud, base, refused):
    folder, _ = cloud
    refused("gs://shelf/none", "gs://shelf/none", "does not exist")
    refused("gs://", "gs://BUCKET/PATH")
    save_base(folder / "cut", base, "huggingface")
    path = folder / "cut" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    refused("gs://shelf/cut", "gs://shelf/cut/model.safetensors")
    path.write_bytes(content + b"x")
    refused("gs://shelf/cut", "gs://shelf/cut/model.safetensors", "damaged")
    save_base(folder / "short", base, "t5x")
    shutil.rmtree(folder / "short" / "target.encoder.encoder_norm.scale")
    refused("gs://shelf/short", "target.encoder.encoder_norm.scale", "missing")
    save_base(folder / "index", base, "native")
    record = json.loads((folder / "index" / "adapter.json").read_text())
    record["sha256"] = "0" * 64
    (folder / "index" / "adapter.json").write_text(json.dumps(record))
    refused("gs://shelf/index", "SHA-256")
