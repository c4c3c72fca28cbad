"""Our network in T5X's model against T5X's own network, on equal weights."""

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("t5x")


def variables(model, batch):
    import jax

    shapes = {name: value.shape for name, value in batch.items()}
    return model.get_initial_variables(jax.random.key(1), shapes)


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
def test_parameters_axes_and_logits_are_t5xs(kind, model, padded):
    import jax
    from flax import traverse_util

    batch = padded(5)
    theirs, ours = model(kind, plain=True), model(kind)
    types = {name: np.int32 for name in batch}
    shapes = {name: value.shape for name, value in batch.items()}
    reference = theirs.get_initial_variables(jax.random.key(1), shapes, types)
    found = variables(ours, batch)
    axes = [traverse_util.flatten_dict(dict(v["params_axes"])) for v in (reference, found)]
    assert axes[0] == axes[1] and len(axes[0]) > 20
    shapes = [jax.tree.map(lambda x: x.shape, dict(v["params"])) for v in (reference, found)]
    assert shapes[0] == shapes[1]
    logits = [jax.jit(m._compute_logits)(reference["params"], batch) for m in (theirs, ours)]
    print(f"{kind}: largest difference of logits {np.abs(logits[0] - logits[1]).max():.1e}")
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5, rtol=0)
    assert np.abs(logits[0]).max() > 0.1
    loss = [float(m.loss_fn(reference["params"], batch, None)[0]) for m in (theirs, ours)]
    assert loss[1] == pytest.approx(loss[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_gives_t5xs_tokens_and_scores(kind, beams, model, padded):
    batch = padded(4)
    theirs, ours = model(kind, plain=True), model(kind)
    params = variables(ours, batch)["params"]
    found = [
        m.predict_batch_with_aux(params, batch, num_decodes=beams, return_all_decodes=True)
        for m in (theirs, ours)
    ]
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_allclose(found[1][1]["scores"], found[0][1]["scores"], rtol=1e-5)


def test_dropout_is_on_where_t5x_passes_a_key(model, padded):
    import dataclasses

    import jax

    ours, batch = model("1.1"), padded(4)
    config = dataclasses.replace(ours.module.config, dropout_rate=0.5)
    ours.module = ours.module.clone(config=config)
    params = variables(ours, batch)["params"]
    plain = ours._compute_logits(params, batch)
    first, second = (ours._compute_logits(params, batch, jax.random.key(k)) for k in (0, 1))
    assert np.abs(first - second).max() > 1e-3 < np.abs(first - plain).max()


def test_a_scanned_architecture_is_refused(t5x):
    from t5x.examples.scalable_t5 import network

    from adalink_jax.errors import UserError
    from adalink_jax.t5x.models import t5_config

    with pytest.raises(UserError, match="T5Config has '.*'; take a model file of t5x/examples/t5"):
        t5_config(network.T5Config(vocab_size=8))
