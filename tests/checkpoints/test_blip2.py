"""A whole BLIP-2 around a T5, against transformers: logits, greedy and beam search."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from adalink_jax.adapters import probe
from adalink_jax.checkpoints import load_image_encoder, open_base, save_base
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import beam_search, greedy
from adalink_jax.models.t5 import Transformer

from .vision_folders import IMAGE_TOKEN, configure, pictures, save

QUERIES = 5


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A folder of BLIP-2 in several files, and the model as transformers reads it."""
    folder = tmp_path_factory.mktemp("blip2") / "hf"
    return folder, save(folder, "blip-2", "40KB")


@pytest.fixture(scope="module")
def ours(blip):
    """The base of that folder, its parameters, and the pictures' tokens."""
    base = open_base(blip[0])
    return base, base.load(), load_image_encoder(blip[0])(pictures())


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, targets, images):
    return Transformer(config).apply(
        {"params": params}, tokens, targets, targets, encoder_images=images, enable_dropout=False
    )


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Encoder tokens [2, 6], with padding in the second row, and decoder tokens [2, 4]."""
    generator = np.random.default_rng(2)
    tokens = generator.integers(2, IMAGE_TOKEN, (2, 6)).astype(np.int32)
    tokens[1, 4:] = 0
    return tokens, generator.integers(2, IMAGE_TOKEN, (2, 4)).astype(np.int32)


def their_inputs(tokens: np.ndarray) -> dict:
    """transformers' arguments: a placeholder for each query in front of the text."""
    import torch

    placeholders = np.full((len(tokens), QUERIES), IMAGE_TOKEN)
    ids = torch.tensor(np.concatenate([placeholders, tokens], axis=1)).long()
    pixels = torch.tensor(pictures()).permute(0, 3, 1, 2)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.reference
def test_logits_are_those_of_transformers(blip, ours):
    import torch

    base, params, images = ours
    assert base.config.mlp_activations == ("gelu_exact", "linear")
    assert base.config.image_width == images.shape[-1] == 12
    tokens, targets = texts()
    with torch.no_grad():
        found = blip[1](**their_inputs(tokens), decoder_input_ids=torch.tensor(targets).long())
    expected = found.logits.numpy()
    difference = logits(base.config, params, tokens, targets, images) - expected
    assert np.abs(difference).max() < 1e-5 * np.abs(expected).max()
    blind = logits(base.config, params, tokens, targets, images * 0) - expected
    assert np.abs(blind).max() > 0.05 * np.abs(expected).max()


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_it_generates_what_transformers_generates(blip, ours, beams):
    base, params, images = ours
    tokens, _ = texts()
    search = {"num_beams": beams, "do_sample": False, "max_new_tokens": 7, "length_penalty": 0.0}
    theirs = blip[1].generate(**their_inputs(tokens), **search, early_stopping=beams > 1)
    theirs = np.pad(theirs.numpy()[:, 1:], ((0, 0), (0, 8)))[:, :7]  # Without the start.
    model = Transformer(base.config)
    if beams == 1:
        found = greedy(model, params, tokens, 7, encoder_images=images)
    else:
        found = beam_search(
            model, params, tokens, 7, beam_size=beams, length_penalty=0.0, encoder_images=images
        )
    np.testing.assert_array_equal(found, theirs)
    assert len(set(np.asarray(found).ravel().tolist())) > 2


@pytest.mark.reference
@pytest.mark.slow
def test_a_conversion_is_compared_with_transformers(blip):
    found, _ = probe.base_logits(blip[0])
    expected = probe.transformers_logits(blip[0])
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.reference
def test_its_base_is_written_in_our_format_and_not_as_a_t5(blip, ours, tmp_path, refused):
    base = ours[0]
    save_base(tmp_path / "native", base, "native")
    copy = open_base(tmp_path / "native")
    assert copy.config == base.config and copy.shapes == base.shapes
    for name in copy.arrays:
        np.testing.assert_array_equal(copy.read(name), base.read(name), err_msg=name)
    for format_name, words in (("huggingface", "takes images"), ("t5x", "no exact GELU")):
        with pytest.raises(UserError, match=words):
            save_base(tmp_path / format_name, base, format_name)
        assert not (tmp_path / format_name).exists()


@pytest.mark.reference
def test_a_blip2_that_does_not_fit_is_refused(tmp_path, refused):
    save(tmp_path, "blip-2")
    settings = json.loads((tmp_path / "config.json").read_text())

    def text(**changes):
        configure(tmp_path, {"text_config": {**settings["text_config"], **changes}})

    text(model_type="opt")
    refused(tmp_path, "model_type 'opt'", "'blip-2' around one")
    text(eos_token_id=2)
    refused(tmp_path, "eos_token_id is 2")
    text(d_model=25)
    refused(tmp_path, "d_model", "25", "24")
    configure(tmp_path, {"text_config": None})
    refused(tmp_path, "no text_config")
    configure(tmp_path, settings)
    path = tmp_path / "model.safetensors"
    before = safetensors.numpy.load_file(path)
    for changes, words in (
        ({"language_projection.bias": None}, ("no tensor language_projection.bias",)),
        ({"language_projection.bias": np.zeros(23, np.float32)}, ("mismatched", "[24]", "[23]")),
        ({"text_projection.weight": np.zeros(2, np.float32)}, ("text_projection.weight",)),
        ({"language_model.encoder.final_layer_norm.weight": None}, ("missing (1)",)),
    ):
        tensors = {n: t for n, t in {**before, **changes}.items() if t is not None}
        safetensors.numpy.save_file(tensors, path, {"format": "pt"})
        refused(tmp_path, *words)
