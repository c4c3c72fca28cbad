"""Our network against T5X's own, on equal weights: recorded, and where T5X is installed, live."""

import functools

import numpy as np
import pytest
from flax import traverse_util

from tests.t5x import recorded
from tests.tiers import mostly_slow

TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


def names_and_axes(params, axes) -> dict[str, list[str]]:
    """Every parameter with its logical axes and their sizes."""
    params, axes = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (params, axes))
    assert {f"{name}_axes" for name in params} == axes.keys()
    return {
        name: [
            f"{axis}={size}"
            for axis, size in zip(axes[f"{name}_axes"].names, leaf.shape, strict=True)
        ]
        for name, leaf in params.items()
    }


def ours_of(kind: str):
    """Our network and the parameters that T5X was given."""
    from adalink_jax.methods.base import Method
    from adalink_jax.models.parameters import abstract_params
    from adalink_jax.models.t5 import Transformer

    config = recorded.config(kind)
    return Transformer(config), recorded.parameters(abstract_params(config, Method())[0])


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
def test_parameters_and_axes_are_those_recorded(kind):
    from adalink_jax.methods.base import Method
    from adalink_jax.models.parameters import abstract_params

    found = names_and_axes(*abstract_params(recorded.config(kind), Method()))
    assert found == recorded.values(f"network_{kind}") and len(found) > 20


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
def test_logits_and_loss_are_those_recorded(kind):
    import jax

    from adalink_jax.training.losses import cross_entropy

    expected = recorded.arrays(f"network_{kind}")
    model, params = ours_of(kind)
    tokens = [expected[name] for name in TOKENS]
    apply = jax.jit(functools.partial(model.apply, enable_dropout=False))
    logits = apply({"params": params}, *tokens)
    assert np.abs(expected["logits"]).max() > 0.1
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5, rtol=1e-5)
    for z_loss, name in ((0.0, "loss"), (1e-2, "loss_with_z_loss")):
        weights = expected["decoder_loss_weights"].astype(np.float32)
        loss, _ = cross_entropy(logits, tokens[2], weights, z_loss)
        assert float(loss) == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.parametrize("kind", mostly_slow(["1.0", "1.1"], ["1.1"]))
def test_decoding_gives_the_tokens_recorded(kind):
    from adalink_jax.models import decoding

    model, params = ours_of(kind)
    expected = recorded.arrays(f"decoding_{kind}")
    inputs = expected["encoder_input_tokens"]
    length = expected["tokens_1"].shape[-1]
    found = decoding.beam_search(model, params, inputs, length, beam_size=3)
    np.testing.assert_array_equal(found, expected["tokens_3"][:, -1])
    greedy = decoding.greedy(model, params, inputs, length)
    np.testing.assert_array_equal(greedy, expected["tokens_1"][:, -1])


def variables(model, batch):
    import jax

    shapes = {name: value.shape for name, value in batch.items()}
    return model.get_initial_variables(jax.random.key(1), shapes)


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
def test_parameters_axes_and_logits_are_t5xs(kind, model, padded, update_goldens):
    import jax

    batch = padded(5)
    theirs, ours = model(kind, plain=True), model(kind)
    types = {name: np.int32 for name in batch}
    shapes = {name: value.shape for name, value in batch.items()}
    reference = theirs.get_initial_variables(jax.random.key(1), shapes, types)
    axes = [
        names_and_axes(v["params"], v["params_axes"]) for v in (reference, variables(ours, batch))
    ]
    assert axes[0] == axes[1]
    update_goldens(f"t5x/network_{kind}.json", axes[0])
    params = recorded.parameters(reference["params"])
    logits = [jax.jit(m._compute_logits)(params, batch) for m in (theirs, ours)]
    print(f"{kind}: largest difference of logits {np.abs(logits[0] - logits[1]).max():.1e}")
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5, rtol=1e-5)
    losses = [float(m.loss_fn(params, batch, None)[0]) for m in (theirs, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    with_z_loss = model(kind, plain=True, z_loss=1e-2).loss_fn(params, batch, None)[0]
    found = {"logits": logits[0], "loss": losses[0], "loss_with_z_loss": float(with_z_loss)}
    update_goldens(f"t5x/network_{kind}.npz", {**batch, **found}, 1e-5)


@pytest.mark.parametrize("kind", ["1.0", "1.1"])
def test_decoding_gives_t5xs_tokens_and_scores(kind, model, padded, update_goldens):
    batch = padded(4)
    theirs, ours = model(kind, plain=True), model(kind)
    params = recorded.parameters(variables(ours, batch)["params"])
    kept = dict(batch)
    for beams in (1, 3):
        found = [
            m.predict_batch_with_aux(params, batch, num_decodes=beams, return_all_decodes=True)
            for m in (theirs, ours)
        ]
        scores = [aux["scores"] for _, aux in found]
        np.testing.assert_array_equal(found[1][0], found[0][0])
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
        kept |= {f"tokens_{beams}": found[0][0], f"scores_{beams}": scores[0]}
    update_goldens(f"t5x/decoding_{kind}.npz", kept, 1e-5)


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
