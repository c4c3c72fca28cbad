"""Architecture from names and shapes: against T5X's goldens, published sizes and the network."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest

from adalink_jax.checkpoints.architecture import (
    check_architecture,
    check_shapes,
    config_from,
    describe_architecture,
    expected_shapes,
    infer_config,
    shapes_of,
)
from adalink_jax.errors import UserError
from adalink_jax.models.t5 import T5Config, Transformer


def zarr_shapes(checkpoint):
    """Names and shapes from the .zarray files T5X wrote."""
    shapes = {}
    for path in checkpoint.glob("target.*/.zarray"):
        name = path.parent.name.removeprefix("target.").replace(".", "/")
        shapes[name] = tuple(json.loads(path.read_text())["shape"])
    return shapes


@pytest.mark.parametrize("golden", ["t5_1_0_tiny", "t5_1_1_tiny"])
def test_golden_shapes_give_the_golden_architecture_and_back(shared_data, golden):
    folder = shared_data / "golden" / golden
    shapes = zarr_shapes(folder / "checkpoint_0")
    assert shapes
    config = infer_config(shapes)
    written = json.loads((folder / "config.json").read_text())
    written.pop("dropout_rate")
    written |= {"separate_encoder_embedding": False, "relpos_bias_per_layer": False}
    assert describe_architecture(config) == written
    assert expected_shapes(config) == shapes


# Sizes of the published models, as counted by PyTorch (vocabulary 32,128): V, D, N, K, F, layers.
@pytest.mark.parametrize(
    ("gated", "sizes", "published"),
    [
        (False, (32128, 512, 8, 64, 2048, 6), 60_506_624),
        (False, (32128, 768, 12, 64, 3072, 12), 222_903_552),
        (False, (32128, 1024, 128, 128, 65536, 24), 11_307_321_344),
        (True, (32128, 512, 6, 64, 1024, 8), 76_961_152),
        (True, (32128, 768, 12, 64, 2048, 12), 247_577_856),
        (True, (32128, 4096, 64, 64, 10240, 24), 11_135_332_352),
    ],
)
def test_published_parameter_counts(gated, sizes, published):
    vocab_size, emb_dim, num_heads, head_dim, mlp_dim, layers = sizes
    config = T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding=not gated,
    )
    shapes = expected_shapes(config)
    assert sum(map(math.prod, shapes.values())) == published
    assert describe_architecture(infer_config(shapes)) == describe_architecture(config)


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("per_layer", [True, False])
def test_formula_is_what_the_network_makes(tiny, activations, tied, per_layer):
    config = dataclasses.replace(
        tiny,
        mlp_activations=activations,
        logits_via_embedding=tied,
        relpos_bias_per_layer=per_layer,
        separate_encoder_embedding=per_layer,
    )
    tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
    made = jax.eval_shape(
        lambda *inputs: Transformer(config).init(*inputs, enable_dropout=False),
        jax.random.key(0),
        *[tokens] * 3,
    )
    assert shapes_of(made["params"]) == expected_shapes(config)
    assert infer_config(expected_shapes(config)) == config


def test_functions_of_the_mlp_are_taken_where_known(tiny):
    shapes = expected_shapes(tiny)
    silu = infer_config(shapes, activations=("silu", "linear"))
    assert silu.mlp_activations == ("silu", "linear")
    # A wish that the arrays contradict is not taken: check_architecture then names it.
    assert infer_config(shapes, activations=("relu",)).mlp_activations == ("gelu", "linear")


def lose(shapes, *names):
    return {name: shape for name, shape in shapes.items() if name not in names}


def test_broken_sets_of_arrays_are_named_in_one_line(tiny):
    shapes = expected_shapes(tiny)
    query = "encoder/layers_0/attention/query/kernel"
    cases = [
        (lose(shapes, "token_embedder/embedding"), ["token_embedder/embedding"]),
        (lose(shapes, "encoder/encoder_norm/scale"), ["missing (1): encoder/encoder_norm/scale"]),
        ({**shapes, "encoder/adalink/down": (1, 6, 2)}, ["unexpected (1): encoder/adalink/down"]),
        (
            {**shapes, "decoder/layers_0/mlp/wo/kernel": (10, 7)},
            ["decoder/layers_0/mlp/wo/kernel", "[10, 6]", "[10, 7]"],
        ),
        ({**shapes, query: (6, 9)}, [query, "9", "2 heads"]),
        ({**shapes, query: (6, 2, 4)}, [query, "[6, 2, 4]"]),
        (
            {**shapes, "encoder/layers_3/mlp/wi_0/kernel": (6, 10)},
            ["missing (9): encoder/layers_2/", "unexpected (1): encoder/layers_3/mlp/wi_0/kernel"],
        ),
        ({n: s for n, s in shapes.items() if "decoder/layers_" not in n}, ["decoder/layers_0"]),
        ({}, ["token_embedder/embedding"]),
    ]
    for broken, words in cases:
        with pytest.raises(UserError) as caught:
            infer_config(broken, "some/path")
        message = str(caught.value)
        assert message.startswith("some/path: ") and "\n" not in message
        for word in words:
            assert word in message, message


def test_lists_are_cut_and_counted():
    expected = {f"a{i}": (1,) for i in range(5)}
    with pytest.raises(UserError) as caught:
        check_shapes(expected, {"b": (2,)}, "here")
    message = "here: arrays missing (5): a0, a1, a2 and 2 more; unexpected (1): b"
    assert str(caught.value) == message
    check_shapes(expected, dict(reversed(expected.items())), "here")


def test_every_differing_field_is_named_with_both_values(tiny):
    other = dataclasses.replace(tiny, emb_dim=768, mlp_activations=("relu",), dropout_rate=0.0)
    with pytest.raises(UserError) as caught:
        check_architecture(other, tiny, "some/path")
    message = str(caught.value)
    assert "emb_dim (configured 768, checkpoint 6)" in message
    assert "mlp_activations" in message and "relu" in message and "gelu" in message
    assert "num_heads" not in message and "dropout" not in message and "\n" not in message
    check_architecture(dataclasses.replace(tiny, dropout_rate=0.0, dtype="bfloat16"), tiny)


def test_description_goes_through_json_and_bad_ones_are_refused(tiny):
    described = json.loads(json.dumps(describe_architecture(tiny)))
    assert config_from(described, "file") == tiny
    for change, word in [
        ({"emb_dim": "6"}, "emb_dim"),
        ({"emb_dim": -1}, "emb_dim"),
        ({"num_heads": True}, "num_heads"),
        ({"mlp_activations": "gelu"}, "mlp_activations"),
        ({"mlp_activations": ["gelo"]}, "gelo"),
        ({"logits_via_embedding": 1}, "logits_via_embedding"),
        ({"depth": 3}, "depth"),
    ]:
        with pytest.raises(UserError, match=word) as caught:
            config_from({**described, **change}, "the file")
        assert str(caught.value).startswith("the file: ")
    with pytest.raises(UserError, match="missing.*vocab_size"):
        config_from(lose(described, "vocab_size"), "file")
    with pytest.raises(UserError):
        config_from([1], "file")
