"""T5X's own checkpoints are read, and ours restored by T5X: recorded, and live.

tests/golden/t5x/checkpoints.tar.xz holds a checkpoint of each network of T5X's examples in each of
T5X's forms. (`tests/checkpoints/test_formats.py` reads what this project's tests lay out.)
"""

import functools
import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from adalink_jax.checkpoints import load_base, open_base, save_base
from adalink_jax.models.t5 import Transformer
from tests.t5x import recorded

SIZES = {
    "vocab_size": 16,
    "emb_dim": 8,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "head_dim": 3,
    "mlp_dim": 12,
}
SCALABLE = {
    "scanned": {},
    "scanned_on_axis_0": {"param_scan_axis": 0},
    "unscanned": {"scan_layers": False},
}
KINDS = ("1.0", "1.1", *SCALABLE)
FORMS = ("native", "orbax")
ARCHIVE = recorded.FOLDER / "checkpoints.tar.xz"


def network(kind):
    """T5X's network, and its variables with the parameters of `recorded.parameters`."""
    reason = "T5X, which is on no registry, is not installed"
    minimal = pytest.importorskip("t5x.examples.t5.network", reason=reason)
    scalable = pytest.importorskip("t5x.examples.scalable_t5.network", reason=reason)
    module, options = (scalable, SCALABLE[kind]) if kind in SCALABLE else (minimal, {})
    tied = kind == "1.0"
    activations = ("relu",) if tied else ("gelu", "linear")
    config = module.T5Config(
        **SIZES,
        **options,
        mlp_activations=activations,
        logits_via_embedding=tied,
        dropout_rate=0.0,
    )
    model = module.Transformer(config)
    variables = model.init(jax.random.key(1), *tokens(), enable_dropout=False)
    params = recorded.parameters(variables["params"])
    return model, {**variables, "params": params}


def tokens():
    generator = np.random.RandomState(0)
    inputs, targets = (generator.randint(1, 16, (2, n)).astype(np.int32) for n in (21, 7))
    inputs[1, 15:] = 0
    return inputs, targets, targets


def tools(variables):
    from t5x import checkpoints, partitioning, train_state

    state = train_state.InferenceState.create(variables)
    return checkpoints, state, partitioning.PjitPartitioner(num_partitions=1)


def written(folder, variables, form):
    """The folder, with a checkpoint of T5X's in it."""
    checkpoints, state, partitioner = tools(variables)
    folder.mkdir(parents=True)
    if form == "native":
        checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)
    else:
        manager = checkpoints.OrbaxCheckpointManagerInterface(str(folder), state, partitioner)
        manager.save(state)
        manager.wait_until_finished()
        manager.close()
    return folder


def layout(folder: pathlib.Path) -> dict:
    """What a native checkpoint's files say, their arrays' contents and place left out."""
    (index,) = folder.rglob("checkpoint")
    stored = serialization.msgpack_restore(index.read_bytes())
    flat = traverse_util.flatten_dict(stored["optimizer"]["target"], sep="/")
    flat = {n: v for n, v in flat.items() if not n.endswith("kvstore/path")}
    # A chunk's shape is a list of integers; a list of one is read back as a number's tuple.
    index = {name: np.asarray(value).tolist() for name, value in sorted(flat.items())}
    arrays = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(folder.rglob(".zarray"))
    }
    files = sorted(path.parent.name + "/" + path.name for path in folder.rglob("[0-9]*.[0-9]*"))
    return {"index": index, "version": int(stored["version"]), "arrays": arrays, "files": files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> pathlib.Path:
    """A folder KIND/FORM for each checkpoint recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(ARCHIVE) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_checkpoints_are_read(archive, kind, form):
    config, params = load_base(archive / kind / form)
    assert config.relpos_bias_per_layer is (kind in SCALABLE)
    apply = jax.jit(functools.partial(Transformer(config).apply, enable_dropout=False))
    ours = apply({"params": params}, *tokens())
    np.testing.assert_allclose(ours, recorded.arrays("checkpoints")[kind], atol=1e-5)


@pytest.mark.parametrize("kind", ["1.0", "1.1", "unscanned"])
def test_what_is_written_here_is_laid_out_as_t5xs(archive, tmp_path, kind):
    theirs = archive / kind / "native"
    save_base(tmp_path / "checkpoint_0", open_base(theirs), "t5x")
    assert layout(tmp_path) == layout(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_t5x_writes_is_read(tmp_path, kind, form):
    model, variables = network(kind)
    config, params = load_base(written(tmp_path / "base", variables, form))
    assert config.relpos_bias_per_layer is (kind in SCALABLE)
    ours = Transformer(config).apply({"params": params}, *tokens(), enable_dropout=False)
    theirs = model.apply(variables, *tokens(), enable_dropout=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_t5x_writes_what_is_recorded(tmp_path, request, update_goldens):
    logits = {}
    for kind in KINDS:
        model, variables = network(kind)
        logits[kind] = model.apply(variables, *tokens(), enable_dropout=False)
        for form in FORMS:
            written(tmp_path / kind / form, variables, form)
    update_goldens("t5x/checkpoints.npz", logits, 1e-5)
    if request.config.getoption("--update-goldens"):
        with tarfile.open(ARCHIVE, "w:xz") as files:
            for kind in KINDS:
                files.add(tmp_path / kind, kind)
    archive = request.getfixturevalue("archive")
    for kind in KINDS:
        found = [layout(folder / kind / "native") for folder in (tmp_path, archive)]
        assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["1.0", "1.1", "unscanned"])
def test_what_is_written_here_t5x_restores(tmp_path, kind):
    _, variables = network(kind)
    theirs = written(tmp_path / "theirs", variables, "native")
    save_base(tmp_path / "checkpoint_9", open_base(theirs), "t5x")
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    checkpoints, empty, partitioner = tools(other)
    restored = checkpoints.Checkpointer(empty, partitioner, str(tmp_path)).restore(
        path=str(tmp_path / "checkpoint_9")
    )
    found = traverse_util.flatten_dict(dict(restored.params), sep="/")
    expected = traverse_util.flatten_dict(dict(variables["params"]), sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
