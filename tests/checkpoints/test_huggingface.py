"""Hugging Face folders: against transformers and safetensors, and every disagreement."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from adalink_jax.adapters.probe import fixed_inputs
from adalink_jax.checkpoints import StoredBase, load_base, open_base, save_base
from adalink_jax.checkpoints.architecture import expected_shapes
from adalink_jax.checkpoints.formats import companions, huggingface
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import Transformer
from tests.tiers import mostly_slow

from .conftest import BASES

SHARED = "shared.weight"
ENCODER = "encoder.embed_tokens.weight"
DECODER = "decoder.embed_tokens.weight"
HEAD = "lm_head.weight"


def same(one, other):
    assert one.config == other.config
    assert one.shapes == other.shapes
    for name in one.arrays:
        np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


def our_logits(base):
    inputs, targets = fixed_inputs(base.config.vocab_size)
    return np.asarray(applied(base.config, base.load(), inputs, targets, targets))


@functools.partial(jax.jit, static_argnums=0)
def applied(config, params, *tokens):
    return Transformer(config).apply({"params": params}, *tokens, enable_dropout=False)


def their_logits(model):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    inputs, targets = (torch.tensor(a).long() for a in fixed_inputs(model.config.vocab_size))
    with torch.no_grad():
        found = model.eval()(
            input_ids=inputs, attention_mask=(inputs > 0).long(), decoder_input_ids=targets
        )
    return found.logits.numpy()


def edit(folder, change):
    """Rewrites a folder's tensors by safetensors' own writer."""
    path = folder / huggingface.WEIGHTS
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def configure(folder, **settings):
    path = folder / huggingface.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.fixture
def folder(tmp_path, base):
    """A folder that this project wrote of `base`; without digests, as tests change its files."""
    save_base(tmp_path / "hf", base, "huggingface")
    (tmp_path / "hf/SHA256SUMS").unlink()
    return tmp_path / "hf"


@pytest.mark.reference
@pytest.mark.parametrize("base", mostly_slow(BASES, ["1.0", "1.1"]), indirect=True)
def test_what_is_written_runs_in_transformers(folder, base):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report[key] for key in ("unexpected_keys", "mismatched_keys"))
    assert np.max(np.abs(their_logits(model) - our_logits(base))) < 1e-4


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.reference
def test_it_generates_there_too(tmp_path, base):
    """Depths are equal here: transformers 5.23 sizes its cache by the encoder's."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    config = dataclasses.replace(base.config, num_decoder_layers=2)
    part = {name: base.arrays[name] for name in expected_shapes(config)}
    save_base(tmp_path / "hf", StoredBase(config, "part", part), "huggingface")
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    inputs = torch.tensor(fixed_inputs(37)[0][:1]).long()
    tokens = model.generate(inputs, max_new_tokens=1, do_sample=False)
    start, any_target = np.zeros((1, 1), np.int32), np.ones((1, 1), np.int32)
    params = StoredBase(config, "part", part).load()
    first = applied(config, params, inputs.numpy(), start, any_target)
    assert tokens[0].tolist() == [0, int(np.argmax(first))]


@pytest.mark.reference
@pytest.mark.parametrize("dtype", mostly_slow(["float32", "bfloat16", "float16"], ["bfloat16"]))
def test_what_transformers_writes_is_read(tmp_path, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    torch.manual_seed(0)
    exact = {"dense_act_fn": "gelu"}
    for tied, activation, more in (
        (True, "relu", {}),
        (False, "gated-gelu", {}),
        (False, "gated-silu", {}),
        (False, "gated-gelu", exact),
    ):
        config = transformers.T5Config(
            vocab_size=37,
            d_model=12,
            d_kv=5,
            d_ff=20,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=3,
            feed_forward_proj=activation,
            tie_word_embeddings=tied,
            **more,
        )
        activation += "-exact" if more else ""
        model = transformers.T5ForConditionalGeneration(config)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.randn(37, 12))
        model = model.to(getattr(torch, dtype))
        for shards in ("5GB", "8KB"):
            model.save_pretrained(tmp_path / f"{activation}{shards}", max_shard_size=shards)
            found = open_base(tmp_path / f"{activation}{shards}")
            assert found.config.logits_via_embedding is tied
            assert (found.config.mlp_activations[0] == "gelu_exact") is bool(more)
            assert np.max(np.abs(our_logits(found) - their_logits(model.float()))) < 1e-4
        files = list((tmp_path / f"{activation}8KB").glob("*.safetensors"))
        assert len(files) > 1
        save_base(tmp_path / f"{activation} again", found, "huggingface")
        again = transformers.T5Config.from_pretrained(tmp_path / f"{activation} again")
        assert again.dense_act_fn == config.dense_act_fn
        same(open_base(tmp_path / f"{activation} again"), found)


@pytest.mark.reference
def test_what_transformers_left_tied_but_unscaled_is_read_as_it_computes(tmp_path):
    """transformers 5 ties a new T5 1.1's output layer, does not scale it, and saves no head."""
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=37, d_model=12, d_ff=8, num_layers=1, tie_word_embeddings=False
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "hf")
    if "scale_decoder_outputs" not in json.loads((tmp_path / "hf" / "config.json").read_text()):
        pytest.skip("transformers before version 5 does not tie it")
    base = open_base(tmp_path / "hf")
    assert not base.config.logits_via_embedding
    assert np.max(np.abs(our_logits(base) - their_logits(model))) < 1e-4


@pytest.mark.reference
def test_an_mt5_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    torch.manual_seed(0)
    config = transformers.MT5Config(vocab_size=37, d_model=12, d_ff=8, num_layers=1)
    model = transformers.MT5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(37, 12))
    model.save_pretrained(tmp_path / "hf")
    base = open_base(tmp_path / "hf")
    assert not base.config.logits_via_embedding
    assert np.max(np.abs(our_logits(base) - their_logits(model))) < 1e-4


@pytest.mark.reference
@pytest.mark.parametrize("base", mostly_slow(BASES, ["1.1"]), indirect=True)
def test_a_table_of_the_encoders_own_stays_its_own(tmp_path, base):
    transformers = pytest.importorskip("transformers", "5", reason="transformers 4 ties it again")
    config = dataclasses.replace(base.config, separate_encoder_embedding=True)
    table = np.asarray(base.arrays["token_embedder/embedding"])[::-1].copy()
    own = StoredBase(config, "own", {**base.arrays, "encoder/token_embedder/embedding": table})
    save_base(tmp_path / "hf", own, "huggingface")
    same(open_base(tmp_path / "hf"), own)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert np.max(np.abs(their_logits(model) - our_logits(own))) < 1e-4
    assert np.max(np.abs(our_logits(base) - our_logits(own))) > 0.01


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_files_are_safetensors_and_shards_hold_each_tensor_once(tmp_path, base):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save_base(whole, base, "huggingface")
    parts.mkdir()
    huggingface.write(parts, base, shard_bytes=2000)
    tensors = safetensors.numpy.load_file(whole / huggingface.WEIGHTS)
    names = huggingface.tensor_names(base.config)
    assert tensors.keys() == {theirs for theirs, _ in names.values()}
    for ours, (theirs, turned) in names.items():
        array = np.asarray(base.arrays[ours])
        np.testing.assert_array_equal(tensors[theirs], array.T if turned else array)
    index = json.loads((parts / huggingface.SHARD_INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for file in set(index["weight_map"].values()):
        held = safetensors.numpy.load_file(parts / file)
        assert held.keys() == {n for n, f in index["weight_map"].items() if f == file}
        assert sum(t.nbytes for t in held.values()) <= 2000 or len(held) == 1
    same(open_base(parts), base)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_a_copy_keeps_what_lies_beside_the_weights(folder, base, tmp_path):
    configure(folder, dropout_rate=0.05, task_specific_params={"a": 1}, _name_or_path="x")
    files = {name: f"{name} ä".encode() for name in companions.TOKENIZER}
    files["generation_config.json"] = b'{"eos_token_id": [1, 7], "max_new_tokens": 5}'
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert "no tokenizer" not in companions.describe_tokenizer(str(folder))
    copy = tmp_path / "copy"
    save_base(copy, open_base(folder), "huggingface")
    assert {name: (copy / name).read_bytes() for name in files} == files
    settings = json.loads((copy / "config.json").read_text())
    assert (settings["dropout_rate"], settings["task_specific_params"]) == (0.05, {"a": 1})
    assert "_name_or_path" not in settings
    # Of another format's base there is nothing to keep.
    save_base(tmp_path / "other", base, "huggingface")
    assert "no tokenizer was written" in companions.describe_tokenizer(str(tmp_path / "other"))


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_special_ids_of_other_models_are_refused(folder, name):
    path = folder / name
    good = json.loads(path.read_text())
    for ids in ({"eos_token_id": None}, {"eos_token_id": [1, 2]}, {"bos_token_id": 5}):
        path.write_text(json.dumps({**good, **ids}))
        open_base(folder)
    for ids in ({"eos_token_id": 2}, {"decoder_start_token_id": 1}, {"pad_token_id": 1}):
        path.write_text(json.dumps({**good, **ids}))
        (field,) = ids
        with pytest.raises(UserError, match=rf"{name}: {field} is {ids[field]}; here it is"):
            open_base(folder)


def test_the_config_tells_transformers_4_and_5_whether_to_scale(folder, base):
    settings = json.loads((folder / "config.json").read_text())
    tied = base.config.logits_via_embedding
    assert settings["tie_word_embeddings"] is settings["scale_decoder_outputs"] is tied
    # transformers 5 rewrites the one; the other then tells.
    configure(folder, tie_word_embeddings=True)
    same(open_base(folder), base)
    del settings["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(settings))
    same(open_base(folder), base)


def test_one_table_under_several_names_is_one(folder, base):
    def repeat(tensors):
        tensors |= {ENCODER: tensors[SHARED], DECODER: tensors[SHARED]}
        if base.config.logits_via_embedding:
            tensors[HEAD] = tensors[SHARED].copy()
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = (
            np.zeros((32, 3), np.float32)
        )

    edit(folder, repeat)
    same(open_base(folder), base)
    edit(folder, lambda tensors: tensors.pop(SHARED))
    same(open_base(folder), base)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_a_decoder_table_of_its_own_is_refused(folder, refused):
    edit(folder, lambda tensors: tensors.__setitem__(DECODER, tensors[SHARED] + 1))
    refused(folder, DECODER, SHARED, "differs")


def test_an_output_layer_that_contradicts_the_scaling_is_refused(folder, base, refused):
    if base.config.logits_via_embedding:
        edit(folder, lambda tensors: tensors.__setitem__(HEAD, tensors[SHARED] * 2))
        refused(folder, HEAD, '"scale_decoder_outputs": true')
    else:
        configure(folder, scale_decoder_outputs=True)
        refused(folder, HEAD, '"scale_decoder_outputs": true')
        settings = json.loads((folder / "config.json").read_text())
        del settings["scale_decoder_outputs"]
        (folder / "config.json").write_text(json.dumps(settings))
        edit(folder, lambda tensors: tensors.pop(HEAD))
        refused(folder, "no tensor lm_head.weight")


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("d_model", 13),
        ("d_kv", 4),
        ("num_heads", 5),
        ("d_ff", 21),
        ("num_layers", 4),
        ("num_decoder_layers", 1),
        ("vocab_size", 38),
        ("relative_attention_num_buckets", 16),
        ("relative_attention_max_distance", 256),
        ("layer_norm_epsilon", 1e-5),
        ("feed_forward_proj", "gated-gelo"),
        ("feed_forward_proj", "gelu"),
        ("dense_act_fn", "silu"),
        ("model_type", "umt5"),
        ("model_type", "bart"),
        ("d_model", "12"),
        ("d_model", [12]),
    ],
)
def test_a_config_that_disagrees_is_refused_with_both_values(folder, field, value, refused):
    configure(folder, **{field: value})
    message = refused(folder, field.removeprefix("model_type"), str(folder))
    assert str(value) in message or repr(value) in message


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_fewer_tokens_than_rows_are_no_disagreement(folder, base):
    configure(folder, vocab_size=30)
    same(open_base(folder), base)


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_missing_unexpected_and_mismatched_are_listed_at_once(folder, refused):
    def change(tensors):
        tensors.pop("encoder.final_layer_norm.weight")
        tensors["encoder.extra.weight"] = np.zeros(3, np.float32)
        name = "decoder.block.0.layer.2.DenseReluDense.wo.weight"
        tensors[name] = np.zeros((12, 21), np.float32)

    edit(folder, change)
    refused(
        folder,
        "missing (1): encoder/encoder_norm/scale",
        "unexpected (1): encoder.extra.weight",
        "mismatched (1): decoder/layers_0/mlp/wo/kernel (expected [20, 12], found [21, 12])",
    )


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_other_formats_of_weights_say_what_to_do(folder, refused):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "save_pretrained")


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_shards_that_are_not_as_the_index_says(tmp_path, base, refused):
    huggingface.write(tmp_path, base, shard_bytes=2000)
    path = tmp_path / huggingface.SHARD_INDEX
    index = json.loads(path.read_text())
    first = index["weight_map"]["shared.weight"]
    other = {**index["weight_map"], "encoder.final_layer_norm.weight": first}
    path.write_text(json.dumps({**index, "weight_map": other}))
    refused(tmp_path, first, "lacks")
    path.write_text(json.dumps({**index, "weight_map": {"a": "../other.safetensors"}}))
    refused(tmp_path, "weight_map")
    path.write_text(json.dumps(index))
    (tmp_path / first).unlink()
    refused(tmp_path, first, "missing")


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_integers_are_refused(folder, refused):
    edit(
        folder,
        lambda tensors: tensors.__setitem__(
            "encoder.final_layer_norm.weight", np.ones(12, np.int32)
        ),
    )
    refused(folder, "encoder.final_layer_norm.weight", "I32", "float32")


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_architectures_that_transformers_lacks_are_refused(tmp_path, base):
    for change, word in (
        ({"mlp_activations": ("gelu", "relu")}, "gelu, relu"),
        ({"relpos_bias_per_layer": True}, "biases"),
    ):
        other = StoredBase(dataclasses.replace(base.config, **change), "other", base.arrays)
        with pytest.raises(UserError, match=word):
            save_base(tmp_path / "hf", other, "huggingface")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("base", ["1.1"], indirect=True)
def test_load_base_gives_the_tree(folder, base):
    config, params = load_base(folder)
    assert config == base.config
    assert params["encoder"]["layers_0"]["attention"]["out"]["kernel"].shape == (15, 12)
