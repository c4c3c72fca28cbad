"""Decoding against uncached loops, enumeration in NumPy, and T5X's own logits."""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.methods import AdaLink, LoRA, PromptTuning
from adalink_jax.methods.base import Method
from adalink_jax.models import decoding
from adalink_jax.models.t5 import T5Config, Transformer
from tests.tiers import mostly_slow

EOS = 1
METHODS = {
    "base": Method(),
    "adalink": AdaLink(rank=2, routes=3, stacks=("encoder", "decoder")),
    "lora": LoRA(rank=2, stacks=("encoder", "decoder")),
    "prompt_tuning": PromptTuning(length=3, bottleneck=4, initialisation="random"),
}
# Rows of different length, the third one a filler.
INPUTS = jnp.array(
    [[3, 5, 2, 6, 1, 0], [4, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [6, 6, 3, 2, 4, 1]], jnp.int32
)
ROUTES = jnp.array([0, 2, 0, 1], jnp.int32)


def build(vocab_size=7, method=METHODS["base"], seed=0):
    """A tiny T5 whose parameters, adapter included, are all random and far from uniform."""
    config = T5Config(
        vocab_size=vocab_size,
        emb_dim=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=4,
        mlp_dim=16,
        mlp_activations=("gelu", "linear"),
    )
    model = Transformer(config, method)
    tokens = jnp.ones((1, 4), jnp.int32)
    routes = {"encoder_routes": tokens, "decoder_routes": tokens}
    key = jax.random.key(0)
    shapes = jax.eval_shape(
        lambda: model.init(key, tokens, tokens, tokens, enable_dropout=False, **routes)
    )["params"]
    flat = traverse_util.flatten_dict(shapes, sep="/")
    rng = np.random.default_rng(seed)
    flat = {name: jnp.asarray(rng.normal(size=s.shape), jnp.float32) for name, s in flat.items()}
    return model, traverse_util.unflatten_dict(flat, sep="/")


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    peak = logits.max(-1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))


@functools.partial(jax.jit, static_argnums=0)
def full_logits(model, params, inputs, targets, routes):
    shifted = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return model.apply(
        {"params": params},
        inputs,
        shifted,
        jnp.ones_like(targets),
        enable_dropout=False,
        encoder_routes=jnp.broadcast_to(routes[:, None], inputs.shape),
        decoder_routes=jnp.broadcast_to(routes[:, None], targets.shape),
    )


def full_log_probs(model, params, inputs, targets, routes=None):
    """log p(token | prefix, input) [B,L,V] of whole target sequences, without a cache."""
    routes = jnp.zeros(len(inputs), jnp.int32) if routes is None else jnp.asarray(routes)
    return log_softmax(full_logits(model, params, inputs, jnp.asarray(targets, jnp.int32), routes))


def uncached_greedy(model, params, inputs, length, routes=None):
    """Greedy decoding that runs the whole network for every token."""
    inputs = np.asarray(inputs)
    tokens = np.zeros((len(inputs), length), np.int32)
    ended = ~inputs.any(axis=1)
    for i in range(length):
        log_probs = full_log_probs(model, params, jnp.asarray(inputs), tokens, routes)
        tokens[:, i] = np.where(ended, 0, log_probs[:, i].argmax(-1))
        ended |= tokens[:, i] == EOS
    return tokens


@pytest.mark.parametrize("name", mostly_slow(METHODS, ["adalink"]))
def test_greedy_is_the_uncached_loop(name):
    model, params = build(method=METHODS[name], seed=3)
    tokens = decoding.greedy(model, params, INPUTS, 8, routes=ROUTES)
    np.testing.assert_array_equal(tokens, uncached_greedy(model, params, INPUTS, 8, ROUTES))
    assert not np.asarray(tokens[2]).any()


def test_greedy_rows_end_at_their_own_eos():
    model, params = build(seed=7)
    tokens = np.asarray(decoding.greedy(model, params, INPUTS, 8))
    ended = (tokens == EOS).any(axis=1)
    assert ended.any() and not ended[[0, 1, 3]].all(), "the seed shows both kinds of rows"
    for row in tokens[ended]:
        assert not row[np.argmax(row == EOS) + 1 :].any()
    np.testing.assert_array_equal(tokens, uncached_greedy(model, params, INPUTS, 8))


@pytest.mark.parametrize("name", mostly_slow(["t5_1_0_tiny", "t5_1_1_tiny"], ["t5_1_1_tiny"]))
def test_greedy_on_golden_checkpoints(golden, name):
    config, params, expected = golden(name)
    model, inputs = Transformer(config), jnp.asarray(expected["encoder_input_tokens"])
    tokens = decoding.greedy(model, params, inputs, 6)
    np.testing.assert_array_equal(tokens, uncached_greedy(model, params, inputs, 6))


@pytest.mark.parametrize("name", ["t5_1_0_tiny", "t5_1_1_tiny"])
def test_scores_are_those_of_t5x(golden, name):
    config, params, expected = golden(name)
    targets = expected["decoder_target_tokens"]
    chosen = np.take_along_axis(log_softmax(expected["logits"]), targets[..., None], -1)[..., 0]
    inputs = jnp.asarray(expected["encoder_input_tokens"])
    scores = decoding.score_options(Transformer(config), params, inputs, jnp.asarray(targets))
    # T5X's logits of row b are for its own target, so the diagonal.
    np.testing.assert_allclose(
        np.diagonal(scores), np.sum(chosen * (targets > 0), axis=1), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(-np.trace(scores), expected["loss_sum"], rtol=1e-5)


def enumerate_outputs(model, params, row, length, alpha, route, miscounted=0):
    """The best of all outputs that end within `length`, by scoring every one of them."""
    inner = [token for token in range(model.config.vocab_size) if token != EOS]
    outputs = [
        [*prefix, EOS] for n in range(length) for prefix in itertools.product(inner, repeat=n)
    ]
    padded = np.array([output + [0] * (length - len(output)) for output in outputs])
    inputs, routes = jnp.tile(row, (len(outputs), 1)), jnp.full(len(outputs), route)
    log_probs = full_log_probs(model, params, inputs, padded, routes)
    scores = [
        sum(log_probs[i, j, token] for j, token in enumerate(output))
        / ((5 + len(output) + miscounted) / 6) ** alpha
        for i, output in enumerate(outputs)
    ]
    return padded[int(np.argmax(scores))]


@pytest.mark.parametrize(
    ("name", "seed", "alpha"),
    mostly_slow(
        [("base", 48, 0.6), ("base", 62, 3.0), ("adalink", 44, 0.6), ("prompt_tuning", 72, 0.6)],
        [("base", 62, 3.0), ("adalink", 44, 0.6)],
    ),
)
def test_wide_beam_search_finds_the_best_of_all_outputs(name, seed, alpha):
    model, params = build(vocab_size=4, method=METHODS[name], seed=seed)
    inputs, length = INPUTS % 4, 4
    # Twice 54 beams are all 27 · 4 continuations of all unfinished outputs: nothing is dropped.
    tokens = decoding.beam_search(
        model, params, inputs, length, beam_size=54, length_penalty=alpha, routes=ROUTES
    )
    best, miscounted = (
        [
            enumerate_outputs(model, params, inputs[b], length, alpha, ROUTES[b], by)
            for b in (0, 1, 3)
        ]
        for by in (0, 1)
    )
    assert not np.array_equal(best, miscounted), "the seed shows a penalty of another length"
    np.testing.assert_array_equal(np.asarray(tokens)[[0, 1, 3]], best)
    assert not np.asarray(tokens[2]).any()


def reference_beam_search(model, params, row, beams, alpha, length, eos):
    """T5X's beam search over Python lists, with no early end and no cache."""
    live, finished = [((), 0.0)], []
    for n in range(1, length + 1):
        padded = np.array([[*prefix] + [0] * (length - len(prefix)) for prefix, _ in live])
        log_probs = full_log_probs(model, params, jnp.tile(row, (len(live), 1)), padded)
        candidates = [
            ((*prefix, token), score + log_probs[i, n - 1, token])
            for i, (prefix, score) in enumerate(live)
            for token in range(model.config.vocab_size)
        ]
        candidates.sort(key=lambda c: -c[1])
        top = candidates[: 2 * beams]
        finished += [(s / ((5 + n) / 6) ** alpha, p) for p, s in top if p[-1] == eos]
        live = [(p, s) for p, s in top if p[-1] != eos][:beams]
    best = max(finished)[1] if finished else live[0][0]
    return np.array([*best] + [0] * (length - len(best)))


# No row ever ends at an EOS outside of the vocabulary.
@pytest.mark.parametrize(
    ("seed", "beams", "eos"),
    mostly_slow([(27, 2, EOS), (22, 3, EOS), (27, 2, 99)], [(22, 3, EOS), (27, 2, 99)]),
)
def test_narrow_beam_search_is_the_reference(seed, beams, eos):
    model, params = build(vocab_size=11, seed=seed)
    tokens = decoding.beam_search(model, params, INPUTS, 6, beam_size=beams, eos_id=eos)
    for b in (0, 1, 3):
        expected = reference_beam_search(model, params, INPUTS[b], beams, 0.6, 6, eos)
        np.testing.assert_array_equal(tokens[b], expected)


def test_one_beam_is_greedy():
    model, params = build(seed=3)
    np.testing.assert_array_equal(
        decoding.beam_search(model, params, INPUTS, 8, beam_size=1),
        decoding.greedy(model, params, INPUTS, 8),
    )


def test_rows_do_not_depend_on_the_rest_of_the_batch():
    model, params = build(vocab_size=11, seed=22)
    together = decoding.beam_search(model, params, INPUTS, 6, beam_size=3)
    for b in range(len(INPUTS)):
        alone = decoding.beam_search(model, params, INPUTS[b : b + 1], 6, beam_size=3)
        np.testing.assert_array_equal(together[b], alone[0])


OPTIONS = jnp.array([[3, 1, 0, 0], [5, 2, 4, 1], [1, 0, 0, 0], [3, 4, 1, 0], [6, 1, 0, 0]])


# The bytes of two options' logits. All options at once, two at a time, one at a time.
TWO = 2 * 4 * 4 * 4 * 7


@pytest.mark.parametrize(
    ("name", "chunk_bytes"),
    mostly_slow(
        [*((name, decoding.LOGITS_BYTES) for name in METHODS), ("lora", TWO), ("lora", 1)],
        [("adalink", decoding.LOGITS_BYTES), ("lora", TWO)],
    ),
)
def test_scores_are_those_of_a_forward_pass_per_option(name, chunk_bytes, monkeypatch):
    monkeypatch.setattr(decoding, "LOGITS_BYTES", chunk_bytes)
    decoding.score_options.clear_cache()
    model, params = build(method=METHODS[name], seed=1)
    scores = decoding.score_options(model, params, INPUTS, OPTIONS, routes=ROUTES)
    assert scores.shape == (4, 5) and scores.dtype == jnp.float32
    for c, option in enumerate(np.asarray(OPTIONS)):
        log_probs = full_log_probs(model, params, INPUTS, np.tile(option, (4, 1)), ROUTES)
        length = int((option > 0).sum())
        expected = log_probs[:, np.arange(length), option[:length]].sum(axis=1)
        np.testing.assert_allclose(scores[:, c], expected, rtol=2e-5, atol=2e-5)
    decoding.score_options.clear_cache()


def test_routes_per_row_and_per_token_choose_the_same_module():
    model, params = build(method=METHODS["adalink"], seed=4)
    per_token = jnp.tile(ROUTES[:, None], (1, INPUTS.shape[1]))
    np.testing.assert_array_equal(
        decoding.score_options(model, params, INPUTS, OPTIONS, ROUTES),
        decoding.score_options(model, params, INPUTS, OPTIONS, per_token),
    )
    # Route 2 alone is the model that has only module 2.
    single = Transformer(model.config, dataclasses.replace(model.method, routes=1))
    chosen = {
        stack: {**params[stack], "adalink": jax.tree.map(lambda x: x[2:], params[stack]["adalink"])}
        for stack in ("encoder", "decoder")
    }
    np.testing.assert_allclose(
        decoding.score_options(model, params, INPUTS, OPTIONS, jnp.full(4, 2)),
        decoding.score_options(single, {**params, **chosen}, INPUTS, OPTIONS),
        rtol=1e-5,
    )


@pytest.mark.parametrize("generate", [decoding.greedy, decoding.beam_search])
def test_logits_that_are_not_finite_break_their_own_row(generate):
    model, params = build(method=METHODS["adalink"], seed=3)
    damaged = jax.tree.map(lambda leaf: leaf, params)
    down = damaged["encoder"]["adalink"]["down"]
    damaged["encoder"]["adalink"]["down"] = down.at[ROUTES[3]].set(jnp.nan)
    expected = np.asarray(generate(model, params, INPUTS, 8, routes=ROUTES))
    found = np.asarray(generate(model, damaged, INPUTS, 8, routes=ROUTES))
    np.testing.assert_array_equal(found[:3], expected[:3])
    assert decoding.BROKEN in found[3] and decoding.BROKEN not in expected


@dataclasses.dataclass(frozen=True)
class Counting(Method):
    """Counts how often each stack runs."""

    runs: ClassVar[list[str]] = []

    def inputs(self, x, ctx):
        jax.debug.callback(lambda _, stack=ctx.stack: self.runs.append(stack), x[0, 0, 0])
        return x, ctx


@pytest.mark.parametrize(
    "generate",
    [
        decoding.greedy,
        pytest.param(
            lambda *args: decoding.beam_search(*args, beam_size=2), marks=pytest.mark.slow
        ),
    ],
    ids=["greedy", "beam"],
)
def test_generation_encodes_once_and_stops_when_all_rows_ended(generate):
    _, params = build(seed=14)
    model = Transformer(build()[0].config, Counting())
    tokens = np.asarray(generate(model, params, INPUTS, 40))
    jax.effects_barrier()
    longest = int((tokens > 0).sum(axis=1).max())
    steps = Counting.runs.count("decoder")
    assert Counting.runs.count("encoder") == 1
    Counting.runs.clear()
    ended = (tokens == EOS).any(axis=1)
    assert ended[[0, 1, 3]].all(), "the seed ends every row"
    assert longest <= steps < 40
    if generate is decoding.greedy:
        assert steps == longest


def test_bad_arguments_are_refused():
    model, params = build()
    with pytest.raises(ValueError, match="beam_size 0"):
        decoding.beam_search(model, params, INPUTS, 4, beam_size=0)
    with pytest.raises(ValueError, match="length_penalty -1"):
        decoding.beam_search(model, params, INPUTS, 4, length_penalty=-1.0)
    with pytest.raises(ValueError, match="max_length is 0"):
        decoding.greedy(model, params, INPUTS, 0)


@pytest.mark.slow
@pytest.mark.reference
def test_greedy_is_that_of_transformers(golden, torch_t5):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    config, params, expected = golden("t5_1_1_tiny")
    reference = torch_t5(config, params)
    inputs = torch.tensor(expected["encoder_input_tokens"], dtype=torch.long)
    generated = reference.generate(
        inputs, attention_mask=inputs > 0, max_new_tokens=8, do_sample=False, num_beams=1
    )[:, 1:].numpy()
    tokens = decoding.greedy(Transformer(config), params, jnp.asarray(inputs.numpy()), 8)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : generated.shape[1]], generated)
