"""The network against T5X's goldens, NumPy and its own promises."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.errors import UserError
from adalink_jax.methods.base import LINEAR_SITES, Memory, Method
from adalink_jax.models.layers import RelativePositionBiases
from adalink_jax.models.parameters import abstract_params
from adalink_jax.models.t5 import T5Config, Transformer

INPUTS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


def logits_of(config, params, batch, method=None, **kwargs):
    model = Transformer(config, method or Method())
    arguments = {name: jnp.asarray(batch[name]) for name in INPUTS}
    return applied(model, params, {**arguments, **kwargs})


@functools.partial(jax.jit, static_argnums=0)
def applied(model, params, arguments):
    return model.apply({"params": params}, **arguments, enable_dropout=False)


@pytest.mark.parametrize("name", ["t5_1_1_tiny", "t5_1_0_tiny"])
def test_goldens_of_t5x(golden, name):
    config, params, expected = golden(name)
    model = Transformer(config)
    encoded = model.apply(
        {"params": params},
        expected["encoder_input_tokens"],
        enable_dropout=False,
        method="encode",
    )
    logits = logits_of(config, params, expected)
    np.testing.assert_allclose(encoded, expected["encoded"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["t5_1_1_tiny", "t5_1_0_tiny"])
def test_bfloat16_activations_stay_near_float32(golden, name):
    config, params, expected = golden(name)
    logits = logits_of(dataclasses.replace(config, dtype="bfloat16"), params, expected)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected["logits"]).max()
    assert 0 < error < 0.05 * np.abs(expected["logits"]).max()


def test_float16_is_refused_with_the_reason():
    with pytest.raises(UserError, match="overflow"):
        T5Config(vocab_size=8, dtype="float16")
    with pytest.raises(UserError, match="float32 or bfloat16"):
        T5Config(vocab_size=8, dtype="int32")


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match="did you mean 'gelu'"):
        T5Config(vocab_size=8, mlp_activations=("gelo", "linear"))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_position_buckets_against_t5(bidirectional):
    """The formula of T5 (Raffel et al. 2020; T5X's layers.py) written out per pair in NumPy."""

    def bucket(offset):
        buckets, result = 32, 0
        distance = -offset
        if bidirectional:
            buckets = 16
            result = 16 if distance < 0 else 0
            distance = abs(distance)
        else:
            distance = max(distance, 0)
        exact = buckets // 2
        if distance < exact:
            return result + distance
        log = np.log(np.float32(distance) / exact + np.finfo(np.float32).eps)
        large = exact + int(log / np.log(128 / exact) * (buckets - exact))
        return result + min(large, buckets - 1)

    table = np.arange(32, dtype=np.float32)[None]
    module = RelativePositionBiases(1, bidirectional, jnp.float32)
    got = module.apply({"params": {"rel_embedding": table}}, 150, 300)
    expected = [[bucket(k - q) for k in range(300)] for q in range(150)]
    np.testing.assert_array_equal(got[0, 0], expected)


def test_parameter_names_shapes_and_axes(tiny, update_goldens):
    config, _, _ = tiny
    for name, cfg in {
        "t5_1_1": config,
        "t5_1_0": dataclasses.replace(config, mlp_activations=("relu",), logits_via_embedding=True),
    }.items():
        params, axes = abstract_params(cfg, Method())
        flat_axes = traverse_util.flatten_dict(dict(axes), sep="/")
        tree = {
            key: [
                str(leaf.dtype),
                *map(
                    "=".join, zip(flat_axes[f"{key}_axes"].names, map(str, leaf.shape), strict=True)
                ),
            ]
            for key, leaf in traverse_util.flatten_dict(dict(params), sep="/").items()
        }
        update_goldens(f"{name}_params.json", tree)


def test_padding_changes_nothing(tiny):
    config, base, batch = tiny
    wider = {
        name: np.pad(batch[name], ((0, 0), (0, 7 if name == INPUTS[0] else 3))) for name in INPUTS
    }
    plain, padded = logits_of(config, base, batch), logits_of(config, base, wider)
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(padded[:, :5][real], plain[real], atol=1e-5)


def test_decoder_is_causal(tiny):
    """The gradient of a position's logits by later inputs is exactly zero."""
    config, base, batch = tiny
    model = Transformer(config)
    table = base["token_embedder"]["embedding"]
    # One token id that stands at the last decoder position only.
    tokens = np.where(batch["decoder_input_tokens"] == 47, 46, batch["decoder_input_tokens"])
    tokens[0, -1] = 47
    inputs = np.where(batch["encoder_input_tokens"] == 47, 46, batch["encoder_input_tokens"])

    def before_last(table):
        params = {**base, "token_embedder": {"embedding": table}}
        logits = model.apply(
            {"params": params}, inputs, tokens, batch[INPUTS[2]], enable_dropout=False
        )
        return jnp.sum(logits[0, :-1] ** 2), jnp.sum(logits[0, -1] ** 2)

    earlier, last = jax.jit(jax.jacrev(before_last))(table)
    assert not np.any(earlier[47])
    assert np.any(last[47])


def test_packed_rows_equal_single_rows(tiny):
    config, base, _ = tiny
    rng = np.random.default_rng(1)
    lengths = [(4, 3), (5, 2)]
    inputs = [rng.integers(3, 48, (1, n)).astype(np.int32) for n, _ in lengths]
    targets = [rng.integers(3, 48, (1, m)).astype(np.int32) for _, m in lengths]
    shifted = [np.pad(t, ((0, 0), (1, 0)))[:, :-1] for t in targets]

    def ids(index):
        return jnp.concatenate(
            [jnp.full((1, n[index]), i + 1) for i, n in enumerate(lengths)], axis=1
        )

    rows = (np.concatenate(parts, 1) for parts in (inputs, shifted, targets))
    packed = logits_of(
        config,
        base,
        dict(zip(INPUTS, rows, strict=True)),
        encoder_segment_ids=ids(0),
        decoder_segment_ids=ids(1),
    )
    single = [
        logits_of(config, base, dict(zip(INPUTS, parts, strict=True)))
        for parts in zip(inputs, shifted, targets, strict=True)
    ]
    np.testing.assert_allclose(packed, jnp.concatenate(single, axis=1), atol=1e-5)


def test_linear_sites_are_those_that_the_network_calls(tiny):
    """A method that writes down every site it is called at."""
    config, base, batch = tiny
    seen: dict[str, set] = {"encoder": set(), "decoder": set()}

    @dataclasses.dataclass(frozen=True)
    class Recorder(Method):
        def linear(self, x, y, kernel, site, ctx):
            seen[site.stack].add(site.linear)
            # Keys and values of cross-attention belong to the encoder's sequence.
            crossing = site.linear in (
                "encoder_decoder_attention/key",
                "encoder_decoder_attention/value",
            )
            assert ctx.stack == ("encoder" if crossing else site.stack)
            assert ctx.mask.shape == x.shape[:2]
            return y

    logits_of(config, base, batch, Recorder())
    relu = dataclasses.replace(config, mlp_activations=("relu",))
    jax.eval_shape(
        lambda: Transformer(relu, Recorder()).init(
            jax.random.key(0), *(batch[name] for name in INPUTS), enable_dropout=False
        )
    )
    assert {stack: set(sites) for stack, sites in LINEAR_SITES.items()} == seen


def test_keys_values_and_sublayer_hooks(tiny):
    """Keys put in front are seen by all queries; a sublayer's output passes through its hook."""
    config, base, batch = tiny

    @dataclasses.dataclass(frozen=True)
    class ZeroKeys(Method):
        """Two keys and values of zeros, which take attention from the real ones."""

        def keys_values(self, x, k, v, site, ctx):
            front = jnp.zeros_like(k[:, :2])
            return None if site.block == "encoder_decoder_attention" else Memory(front, front)

    @dataclasses.dataclass(frozen=True)
    class Silent(Method):
        def sublayer(self, y, x, residual, site, ctx):
            return jnp.zeros_like(y)

    plain = logits_of(config, base, batch)
    assert np.abs(logits_of(config, base, batch, ZeroKeys()) - plain).max() > 1e-3
    # With every block silenced, the logits are those of the decoder's embeddings alone.
    silent = logits_of(config, base, batch, Silent())
    x = base["token_embedder"]["embedding"][batch["decoder_input_tokens"]]
    norm = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    expected = norm * base["decoder"]["decoder_norm"]["scale"]
    expected = expected @ base["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_allclose(silent, expected, atol=1e-5)


def test_lengthening_the_decoder_is_refused(tiny):
    config, base, batch = tiny

    @dataclasses.dataclass(frozen=True)
    class Longer(Method):
        def inputs(self, x, ctx):
            if ctx.stack == "encoder":
                return x, ctx
            return jnp.concatenate([x[:, :1], x], 1), ctx.lengthened(1)

    with pytest.raises(UserError, match="only the encoder's may be lengthened"):
        logits_of(config, base, batch, Longer())
