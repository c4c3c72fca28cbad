"""Images in front of the encoder's text: against transformers, and rows without images."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.checkpoints import StoredBase, save_base
from adalink_jax.checkpoints.architecture import (
    config_from,
    describe_architecture,
    differing_fields,
    expected_shapes,
    infer_config,
    shapes_of,
)
from adalink_jax.errors import UserError
from adalink_jax.methods import PromptTuning
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding, slots
from adalink_jax.models.inputs import FEATURES, IMAGES, features_of, shapes_of_batch
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.stacking import stack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training.step import loss_fn

M, WIDTH = 6, 5
CONFIG = T5Config(
    vocab_size=31, emb_dim=16, num_heads=2, head_dim=8, num_encoder_layers=2, num_decoder_layers=2,
    mlp_dim=24, mlp_activations=("gelu", "linear"), dropout_rate=0.0, image_width=WIDTH,
)  # fmt: skip
TEXT = dataclasses.replace(CONFIG, image_width=None)


def filled(config, method=None, seed=0):
    """A tree of the network's shapes, filled with numbers near those of an initialized one."""
    rng = np.random.default_rng(seed)
    tree, _ = abstract_params(config, method or Method())
    scale = 0.5 / np.sqrt(config.emb_dim)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32) + (x.ndim == 1),
                        tree)  # fmt: skip


@functools.cache
def base(config=CONFIG):
    return filled(config)


def batch(rows=3, images=M, inputs=7, targets=4, seed=1):
    """Rows with all, some and none of their images; the second has padding in its text."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, images), np.int32)
    mask[1:2, images // 2 :] = 0
    mask[2:] = 0
    tokens = rng.integers(2, CONFIG.vocab_size, (rows, inputs)).astype(np.int32)
    tokens[1:2, inputs - 2 :] = 0
    decoder = rng.integers(2, CONFIG.vocab_size, (rows, targets)).astype(np.int32)
    return {
        "encoder_input_tokens": tokens,
        "decoder_input_tokens": decoder,
        "decoder_target_tokens": decoder,
        "encoder_images": rng.normal(size=(rows, images, WIDTH)).astype(np.float32),
        "encoder_image_mask": mask,
    }


def without_images(given):
    return {name: value for name, value in given.items() if name not in IMAGES}


@functools.partial(jax.jit, static_argnums=0)
def applied(model, params, given):
    return model.apply({"params": params}, **given, enable_dropout=False)


def projected(params, images):
    """The image tokens, in float64 NumPy."""
    own = params["encoder"]["image_projection"]
    return images.astype(np.float64) @ own["kernel"] + own["bias"]


@pytest.fixture(scope="module")
def in_torch(tmp_path_factory):
    """The text part of the base in transformers' T5."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    flat = traverse_util.flatten_dict(base(), sep="/")
    text = {name: leaf for name, leaf in flat.items() if "image_projection" not in name}
    folder = tmp_path_factory.mktemp("base") / "text"
    save_base(folder, StoredBase(TEXT, "text", text), "huggingface")
    return transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.mark.reference
@pytest.mark.parametrize("scanned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_joint_encoder_is_transformers_t5_of_embeddings(in_torch, scanned):
    """150 image tokens, which reach the last bucket of relative positions."""
    import torch

    given = batch(images=150)
    params = stack_layers(base()) if scanned else base()
    found = applied(Transformer(CONFIG), params, given)
    tokens = torch.tensor(given["encoder_input_tokens"]).long()
    images = torch.tensor(projected(base(), given["encoder_images"]), dtype=torch.float32)
    mask = np.concatenate([given["encoder_image_mask"], given["encoder_input_tokens"] > 0], axis=1)
    with torch.no_grad():
        expected = in_torch(
            inputs_embeds=torch.cat([images, in_torch.shared(tokens)], dim=1),
            attention_mask=torch.tensor(mask).long(),
            decoder_input_ids=torch.tensor(given["decoder_input_tokens"]).long(),
        ).logits.numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_a_row_without_an_image_is_the_row_of_text():
    """In a batch with images; their masked tokens in front change nothing."""
    given = batch()
    mixed = applied(Transformer(CONFIG), base(), given)
    text = {name: value for name, value in base().items() if name != "encoder"}
    encoder = {k: v for k, v in base()["encoder"].items() if k != "image_projection"}
    plain = applied(Transformer(TEXT), {**text, "encoder": encoder}, without_images(given))
    np.testing.assert_allclose(mixed[2], plain[2], atol=1e-5, rtol=0)
    assert np.abs(mixed[0] - plain[0]).max() > 1e-3  # The image is seen.
    # A batch of text alone, bit for bit.
    np.testing.assert_array_equal(
        applied(Transformer(CONFIG), base(), without_images(given)), plain
    )


def test_a_base_of_text_is_the_network_of_before():
    """Its parameters, record and context have nothing of images."""
    params, _ = abstract_params(TEXT, Method())
    assert "image_projection" not in params["encoder"]
    assert not {"image_width", "image_positions"} & describe_architecture(TEXT).keys()
    seen = []

    class Looks(Method):
        def layer(self, x, site, ctx):
            seen.append(ctx.modalities)
            return x

    tokens = np.ones((1, 3), np.int32)
    jax.eval_shape(
        functools.partial(Transformer(TEXT, Looks()).apply, enable_dropout=False),
        {"params": params}, tokens, tokens, tokens,
    )  # fmt: skip
    assert seen and not any(one is not None for one in seen)


@pytest.mark.slow
def test_without_positions_no_bias_involves_an_image():
    """VL-T5's way, in NumPy: one layer's attention weights with random biases."""
    config = dataclasses.replace(CONFIG, image_positions="none", num_encoder_layers=1)
    params = filled(config)
    given = batch(rows=1, seed=3)

    @functools.partial(jax.jit, static_argnums=0)
    def encoded(config, params):
        return Transformer(config).apply(
            {"params": params}, given["encoder_input_tokens"], enable_dropout=False,
            encoder_images=given["encoder_images"], method="encode",
        )  # fmt: skip

    found = encoded(config, params)
    # The same, written out.
    table = params["encoder"]["relpos_bias"]["rel_embedding"]
    layer = params["encoder"]["layers_0"]
    x = np.concatenate(
        [projected(params, given["encoder_images"]),
         params["token_embedder"]["embedding"][given["encoder_input_tokens"]]], axis=1,
    )[0]  # fmt: skip

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    y = norm(x, layer["pre_attention_layer_norm"]["scale"])
    heads = {n: (y @ layer["attention"][n]["kernel"]).reshape(len(y), 2, 8)
             for n in ("query", "key", "value")}  # fmt: skip
    bias = np.zeros((2, len(y), len(y)))
    for q in range(M, len(y)):
        for k in range(M, len(y)):  # All within the buckets of one distance each.
            bias[:, q, k] = table[:, abs(k - q) + 16 * (k > q)]
    logits = np.einsum("qnc,knc->nqk", heads["query"], heads["key"]) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    x = (
        x
        + np.einsum("nqk,knc->qnc", weights, heads["value"]).reshape(len(y), 16)
        @ (layer["attention"]["out"]["kernel"])
    )
    z = norm(x, layer["pre_mlp_layer_norm"]["scale"])
    wide = [z @ layer["mlp"][n]["kernel"] for n in ("wi_0", "wi_1")]
    x = x + (np.asarray(jax.nn.gelu(wide[0])) * wide[1]) @ layer["mlp"]["wo"]["kernel"]
    x = norm(x, params["encoder"]["encoder_norm"]["scale"])
    np.testing.assert_allclose(found[0], x, atol=2e-5)
    joint = dataclasses.replace(config, image_positions="joint")
    assert np.abs(found - encoded(joint, params)).max() > 1e-3


@pytest.mark.slow
def test_a_prompt_stands_in_front_of_the_image():
    """P vectors are the same as P image tokens more, in front of the others."""
    method = PromptTuning(length=3, reparameterise=False)
    rng = np.random.default_rng(5)
    inner = rng.normal(size=(1, 3, WIDTH)).astype(np.float32)
    prompt = projected(base(), inner).astype(np.float32)
    params = merge(base(), {"encoder": {"prompt_tuning": {"prompt": prompt}}})
    given = batch()
    more = {
        "encoder_images": np.concatenate(
            [np.repeat(inner, 3, axis=0), given["encoder_images"]], axis=1
        ),
        "encoder_image_mask": np.pad(
            given["encoder_image_mask"], ((0, 0), (3, 0)), constant_values=1
        ),
    }
    found = applied(Transformer(CONFIG, method), params, given)
    expected = applied(Transformer(CONFIG), base(), {**given, **more})
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


SOURCE = ("encoder_input_tokens", *IMAGES)


def greedy(params, given, length=5):
    source = {name: given[name] for name in SOURCE}
    return np.asarray(decoding.greedy(Transformer(CONFIG), params, max_length=length, **source))


def test_decoding_sees_the_image_and_ends_where_there_is_none():
    """Greedy against the network on whole sequences; an image without text is no filler."""
    given = batch(rows=4)
    given["encoder_input_tokens"][3] = 0
    tokens = greedy(base(), given)
    steps = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    whole = {**given, "decoder_input_tokens": steps, "decoder_target_tokens": np.ones_like(steps)}
    best = np.argmax(applied(Transformer(CONFIG), base(), whole), -1)
    for row in range(3):
        end = tokens[row].tolist().index(1) + 1 if 1 in tokens[row] else 5
        np.testing.assert_array_equal(tokens[row, :end], best[row, :end])
    assert not tokens[3].any()
    given["encoder_input_tokens"][:] = 0
    found = greedy(base(), given)
    assert found[:2, 0].all() and not found[2:].any()


@pytest.mark.slow
def test_scores_and_beams_see_the_image():
    given, params = batch(), base()
    model, source = Transformer(CONFIG), {name: given[name] for name in SOURCE}
    targets = given["decoder_target_tokens"]
    scores = decoding.score_targets(model, params, targets=targets, **source)
    shifted = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    whole = applied(model, params, {**given, "decoder_input_tokens": shifted})
    chosen = np.take_along_axis(np.asarray(jax.nn.log_softmax(whole)), targets[..., None], -1)
    np.testing.assert_allclose(scores, chosen[..., 0].sum(1), atol=1e-4)
    options = decoding.score_options(model, params, options=targets, **source)
    np.testing.assert_allclose(np.diag(options), scores, atol=1e-4)
    beams = decoding.beam_search(model, params, max_length=5, beam_size=3, **source)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in source.items()}
        one = decoding.beam_search(model, params, max_length=5, beam_size=3, **alone)
        np.testing.assert_array_equal(beams[row], one[0])


@pytest.mark.slow
def test_slots_hold_images():
    """Of longer inputs, and filled at different times, against greedy decoding; layers stacked."""
    given, params = batch(), stack_layers(base())
    model, length, tokens = Transformer(CONFIG), 5, greedy(params, given)
    zeros = jnp.zeros(2)
    choice = slots.Choice(zeros, zeros + 1, zeros.astype(int))
    state = slots.empty(model, params, 3, 9, length, images=M)

    def begin(state, rows, places):
        some = {name: given[name][rows] for name in IMAGES}
        inputs = given["encoder_input_tokens"][rows]
        routes = np.zeros(2, np.int32)
        return slots.begin(model, params, inputs, state, np.array(places), routes, choice, **some)

    state = begin(state, [0, 1], [2, 0])
    state, first = slots.advance(model, params, state, 2)
    state, second = slots.advance(model, params, begin(state, [2, 2], [1, 99]), length)
    found = [[*first[2], *second[2]], [*first[0], *second[0]], second[1]]
    for row, alone in zip(found, tokens.tolist(), strict=True):
        end = alone.index(1) + 1 if 1 in alone else length
        assert [int(token) for token in row[:end]] == alone[:end]


def test_one_place_lists_the_inputs():
    arguments = inspect.signature(Transformer.__call__).parameters
    assert FEATURES.keys() == arguments.keys() - {"self", "enable_dropout", "decode"}
    shapes = shapes_of_batch(CONFIG, 3, 7, 4, M)
    given = batch()
    assert {name: shapes[name].shape for name in given} == {k: v.shape for k, v in given.items()}
    assert not shapes_of_batch(TEXT, 3, 7, 4).keys() & {*IMAGES}
    assert features_of({**given, "decoder_loss_weights": 0}) == given


@pytest.mark.slow
def test_the_step_sees_images_and_trains_their_projection():
    given = {**batch(), "decoder_loss_weights": np.ones((3, 4), np.float32)}

    @jax.jit
    def loss(params):
        return loss_fn(Transformer(CONFIG), params, {}, given, None, 0.0, 0.0)[0]

    def of_projection(projection):
        return loss(merge(base(), {"encoder": {"image_projection": projection}}))

    gradients = jax.jit(jax.grad(of_projection))(base()["encoder"]["image_projection"])
    assert np.abs(gradients["kernel"]).max() > 0 and np.abs(gradients["bias"]).max() > 0
    # The derivative along a direction, by finite differences.
    step = 1e-2 * np.random.default_rng(0).normal(size=(WIDTH, 16)).astype(np.float32)
    there, back = (
        merge(base(), {"encoder": {"image_projection": {
            "kernel": base()["encoder"]["image_projection"]["kernel"] + sign * step}}})
        for sign in (1, -1)
    )  # fmt: skip
    slope = (loss(there) - loss(back)) / 2
    np.testing.assert_allclose(slope, np.sum(gradients["kernel"] * step), rtol=2e-2)


def test_the_architecture_is_in_the_arrays_and_the_record():
    none = dataclasses.replace(CONFIG, image_positions="none")
    assert expected_shapes(CONFIG) == shapes_of(base())
    assert infer_config(shapes_of(base())).image_width == WIDTH
    assert describe_architecture(infer_config(shapes_of(base()), image_positions="none")) == (
        describe_architecture(none)
    )
    assert config_from(describe_architecture(none), "here").image_positions == "none"
    assert differing_fields(TEXT, none) == {
        "image_width": (None, WIDTH), "image_positions": ("joint", "none")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (TEXT, {}, "the base reads text alone"),
        (CONFIG, {"encoder_images": np.zeros((3, M, 4), np.float32)}, "image_width is 5"),
        (CONFIG, {"encoder_segment_ids": np.ones((3, 7), np.int32)}, "set packing to False"),
    ],
)
def test_images_that_do_not_fit_are_refused(config, changes, says):
    tree = jax.tree.map(lambda x: x, base())
    with pytest.raises(UserError, match=says):
        jax.eval_shape(functools.partial(
            Transformer(config).apply, enable_dropout=False), {"params": tree},
            **{**batch(), **changes})  # fmt: skip


def test_positions_of_images_need_images():
    with pytest.raises(UserError, match="image_width is None"):
        dataclasses.replace(TEXT, image_positions="none")
    with pytest.raises(UserError, match="image_positions"):
        dataclasses.replace(CONFIG, image_positions="behind")
