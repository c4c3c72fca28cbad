"""T5X's own checkpoints are read, and ours restored by T5X. Runs where T5X is installed.

No registry has T5X; elsewhere, `test_formats.py` reads what this project's tests lay out in its
stead, and T5X's golden checkpoints.
"""

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.checkpoints import load_base, open_base, save_base
from adalink_jax.models.t5 import Transformer

pytestmark = [pytest.mark.slow, pytest.mark.reference]

SIZES = {
    "vocab_size": 32,
    "emb_dim": 12,
    "num_heads": 3,
    "num_encoder_layers": 2,
    "num_decoder_layers": 4,
    "head_dim": 5,
    "mlp_dim": 20,
}
SCALABLE = {
    "scanned": {},
    "scanned on axis 0": {"param_scan_axis": 0},
    "unscanned": {"scan_layers": False},
}


def network(kind):
    """T5X's network, its configuration and random variables."""
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
    return model, variables


def tokens():
    generator = np.random.default_rng(0)
    inputs, targets = (generator.integers(1, 32, (2, n)).astype(np.int32) for n in (21, 7))
    inputs[1, 15:] = 0
    return inputs, targets, targets


def tools(variables):
    from t5x import checkpoints, partitioning, train_state

    state = train_state.InferenceState.create(variables)
    return checkpoints, state, partitioning.PjitPartitioner(num_partitions=1)


@pytest.mark.parametrize("form", ["native", "orbax"])
@pytest.mark.parametrize("kind", ["1.0", "1.1", *SCALABLE])
def test_what_t5x_writes_is_read(tmp_path, kind, form):
    model, variables = network(kind)
    checkpoints, state, partitioner = tools(variables)
    if form == "native":
        checkpoints.Checkpointer(state, partitioner, str(tmp_path)).save(state)
    else:
        manager = checkpoints.OrbaxCheckpointManagerInterface(str(tmp_path), state, partitioner)
        manager.save(state)
        manager.wait_until_finished()
        manager.close()
    config, params = load_base(tmp_path)
    assert config.relpos_bias_per_layer is (kind in SCALABLE)
    ours = Transformer(config).apply({"params": params}, *tokens(), enable_dropout=False)
    theirs = model.apply(variables, *tokens(), enable_dropout=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["1.0", "1.1", "unscanned"])
def test_what_is_written_here_t5x_restores(tmp_path, kind):
    model, variables = network(kind)
    checkpoints, state, partitioner = tools(variables)
    checkpoints.Checkpointer(state, partitioner, str(tmp_path / "theirs")).save(state)
    save_base(tmp_path / "checkpoint_9", open_base(tmp_path / "theirs"), "t5x")
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    _, empty, _ = tools(other)
    restored = checkpoints.Checkpointer(empty, partitioner, str(tmp_path)).restore(
        path=str(tmp_path / "checkpoint_9")
    )
    found = traverse_util.flatten_dict(dict(restored.params), sep="/")
    expected = traverse_util.flatten_dict(dict(variables["params"]), sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
