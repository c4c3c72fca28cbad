"""Prompt tuning against virtual tokens of the plain network, and its initialisations."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.methods.seeded import seeded_uniform
from adalink_jax.models.parameters import init_adapter
from adalink_jax.models.t5 import Transformer
from adalink_jax.training import optimizers

# The first numbers of row 3 of the two matrices that the largest seed makes.
FROZEN = np.float32(
    [[-0.9432522058486938, -0.763784646987915], [-0.7299394607543945, -0.49533212184906006]]
)
TOKENS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")


def make(tiny, token_ids=(), **kwargs):
    config, base, _ = tiny
    method = METHODS["prompt_tuning"](**{"length": 3, "bottleneck": 4, **kwargs})
    adapter = init_adapter(config, method, base, jax.random.key(0), token_ids)
    return method, adapter, adapter["encoder"]["prompt_tuning"]


def test_prompts_are_virtual_tokens_bit_for_bit(tiny):
    """P more rows in the table and P virtual tokens in front give the same bits."""
    config, base, batch = tiny
    method, adapter, scope = make(tiny, reparameterise=False, initialisation="random")
    inputs = [batch[name] for name in TOKENS]

    def logits(model, params, tokens):
        return jax.jit(
            lambda params: model.apply(
                {"params": params}, tokens, *inputs[1:], enable_dropout=False
            )
        )(params)

    prompted = logits(Transformer(config, method), merge(base, adapter), inputs[0])
    table = np.concatenate([base["token_embedder"]["embedding"], scope["prompt"][0]])
    wider = dataclasses.replace(config, vocab_size=config.vocab_size + 3)
    virtual = np.broadcast_to(config.vocab_size + np.arange(3, dtype=np.int32), (4, 3))
    plain = logits(
        Transformer(wider),
        {
            **base,
            "token_embedder": {"embedding": table},
            "decoder": {
                **base["decoder"],
                # More rows in the table ask for as many columns of logits, which are cut below.
                "logits_dense": {
                    "kernel": np.pad(base["decoder"]["logits_dense"]["kernel"], ((0, 0), (0, 3)))
                },
            },
        },
        np.concatenate([virtual, inputs[0]], axis=1),
    )
    np.testing.assert_array_equal(prompted, plain[..., : config.vocab_size])


def formula(name, leaves):
    """What a generator gives, in NumPy."""
    p, w1, w2, scale = (leaves.get(leaf) for leaf in ("prompt", "w1", "w2", "scale"))
    if name == "low_rank":
        return leaves["codes"] @ leaves["basis"]
    if name == "ulpt":
        codes = leaves["codes"]
        limit = np.sqrt(6 / (codes.shape[1] + len(scale)))
        frozen = np.asarray(seeded_uniform(9, codes.shape[1], len(scale)))[0] * limit
        assert 0.9 * limit < np.abs(frozen).max() <= limit
        return codes @ frozen * scale + leaves["shift"]
    residual = np.maximum(p @ w1 + leaves.get("b1", 0), 0) @ w2 + leaves.get("b2", 0)
    normed = residual - residual.mean(-1, keepdims=True)
    normed /= np.sqrt(residual.var(-1, keepdims=True) + 1e-6)
    return p + normed * scale + leaves["bias"]


@pytest.mark.parametrize("name", ["residual", "residual_biases", "low_rank", "ulpt"])
def test_generators_against_numpy(tiny, name):
    """What is exported is the formula's result."""
    method, adapter, _ = make(tiny, generator=name, initialisation="random", seed=9)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), adapter)
    scope = adapter["encoder"]["prompt_tuning"]
    leaves = {leaf: np.asarray(x[0], np.float64) for leaf, x in scope.items()}
    exported, tree = method.export(adapter)
    prompt = tree["encoder"]["prompt_tuning"]["prompt"][0]
    np.testing.assert_allclose(prompt, formula(name, leaves), atol=1e-4)
    assert not exported.reparameterise


def test_what_is_exported_gives_the_same_logits(tiny):
    config, base, batch = tiny
    method, adapter, _ = make(tiny)
    exported, tree = method.export(adapter)
    inputs = [batch[name] for name in TOKENS]
    one, other = (
        jax.jit(functools.partial(Transformer(config, m).apply, enable_dropout=False))(
            {"params": merge(base, t)}, *inputs
        )
        for m, t in ((method, adapter), (exported, tree))
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.reference
def test_multi_task_prompts_are_pefts(torch_t5, tiny):
    """The prompts themselves: peft's forward pass drops the decoder's input here."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    config = peft.MultitaskPromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1, num_tasks=2
    )
    model = peft.get_peft_model(torch_t5(*tiny[:2]), config).eval()
    parts = {"embedding.weight": "prompt", "task_cols": "rows", "task_rows": "columns"}
    leaves, generator = {}, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                part = next(ours for theirs, ours in parts.items() if name.endswith(theirs))
                leaves[part] = parameter.numpy().copy()
        expected = model.get_prompt(batch_size=2, task_ids=torch.tensor([0, 1])).numpy()
    leaves["rows"], leaves["columns"] = leaves["rows"][:, :, 0], leaves["columns"][:, 0]
    method = METHODS["prompt_tuning"](length=3, routes=2, generator="mpt")
    _, stored = method.export({"encoder": {"prompt_tuning": leaves}})
    np.testing.assert_allclose(stored["encoder"]["prompt_tuning"]["prompt"], expected, atol=1e-6)


def test_what_routes_share_is_trained_as_one(tiny):
    """The shared prompt as if alone; a route's factors as if the other routes were not."""
    _, adapter, scope = make(tiny, generator="mpt", routes=3)
    method = METHODS["prompt_tuning"](length=3, generator="mpt", routes=3)
    assert {leaf: x.shape for leaf, x in scope.items()} == {
        "prompt": (3, 16), "rows": (3, 3), "columns": (3, 16),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: rng.exponential(1, x.shape).astype(np.float32), adapter)

    def plain(rate):
        return optimizers.adafactor(rate, multiply_by_parameter_scale=True, factored=False)

    def updates(optimizer, gradients, params):
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    rate = optimizers.factors()
    found = updates(optimizers.per_module(plain(rate), method), gradients, adapter)
    found, own = found["encoder"]["prompt_tuning"], gradients["encoder"]["prompt_tuning"]
    whole = updates(plain(rate), own["prompt"], scope["prompt"])
    np.testing.assert_allclose(found["prompt"], whole, rtol=1e-5)
    one = updates(plain(rate), own["columns"][1], scope["columns"][1])
    np.testing.assert_allclose(found["columns"][1], one, rtol=1e-5)


def test_the_frozen_matrix_is_the_same_for_all_time():
    """Adapters of VeRA depend on it; and smaller matrices are parts of larger ones."""
    large = np.asarray(seeded_uniform(2**32 - 1, 50, 40))
    np.testing.assert_array_equal(seeded_uniform(2**32 - 1, 7, 30), large[:, :7, :30])
    np.testing.assert_array_equal(large[:, 3, :2], FROZEN)
    assert abs(large.mean()) < 0.05 and abs(large.var() - 1 / 3) < 0.02
    assert abs(np.corrcoef(large[0].ravel(), large[1].ravel())[0, 1]) < 0.1


def test_initialisations(tiny):
    table = np.asarray(tiny[1]["token_embedder"]["embedding"])
    prompt = make(tiny)[2]["prompt"][0]
    assert all(any(np.array_equal(row, entry) for entry in table[3:]) for row in prompt)
    prompt = make(tiny, [[5, 6], [7]], initialisation="class_labels")[2]["prompt"][0]
    np.testing.assert_allclose(prompt[0], (table[5] + table[6]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(prompt[1], table[7])
    prompt = make(tiny, [[9, 8]], initialisation="text", text="any")[2]["prompt"][0]
    np.testing.assert_array_equal(prompt, table[[9, 8, 9]])
    prompt = make(tiny, initialisation="random")[2]["prompt"][0]
    assert np.abs(prompt).max() <= 0.5


def test_which_texts_are_wanted():
    cls = METHODS["prompt_tuning"]
    assert cls().texts(["a", "b"]) == ()
    assert cls(initialisation="class_labels").texts(["a", "b"]) == ("a", "b")
    assert cls(initialisation="text", text="Say which:").texts(["a"]) == ("Say which:",)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length is 0"),
        ({"initialisation": "vocab"}, "takes one of random"),
        ({"initialisation": "text"}, "goes with"),
        ({"text": "any"}, "goes with"),
        ({"generator": "ulpt"}, "has no vectors that could start from it"),
        ({"dropout_rate": -0.1}, "dropout_rate is -0.1"),
    ],
)
def test_mistakes_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        METHODS["prompt_tuning"](**kwargs)


def test_labels_of_a_task_without_labels(tiny):
    with pytest.raises(UserError, match="the task has no labels"):
        make(tiny, [], initialisation="class_labels")


def test_packed_rows_are_refused(tiny):
    config, base, batch = tiny
    method, adapter, _ = make(tiny)
    with pytest.raises(UserError, match="set packing to False"):
        Transformer(config, method).apply(
            {"params": merge(base, adapter)},
            *(batch[name] for name in TOKENS),
            encoder_segment_ids=np.ones_like(batch["encoder_input_tokens"]),
            decoder_segment_ids=np.ones_like(batch["decoder_input_tokens"]),
            enable_dropout=False,
        )
