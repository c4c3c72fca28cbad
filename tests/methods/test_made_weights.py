"""Methods whose matrices are made of others, against the plain methods they are equal to."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.adapters import load
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.methods.linears import kernel_of, with_kernels
from adalink_jax.models.parameters import init_adapter, init_base
from tests.methods.test_oracles import BOTH, CONFIG, place, with_peft
from tests.tiers import mostly_slow

ROUTES = 3


@pytest.fixture(scope="module")
def base():
    return jax.device_get(init_base(CONFIG, jax.random.key(1)))


def random_flat(base, method) -> dict[str, np.ndarray]:
    tree = init_adapter(CONFIG, method, base, jax.random.key(0))
    rng = np.random.default_rng(1)
    flat = traverse_util.flatten_dict(jax.device_get(tree), sep="/")
    return {n: 0.3 * rng.standard_normal(x.shape, np.float32) for n, x in sorted(flat.items())}


def logits(base, method, flat, route=0):
    tree = traverse_util.unflatten_dict(flat, sep="/")
    return load.logits(CONFIG, merge(base, tree), method, route)


def check(base, method, flat, plain, plain_flat, route=0):
    expected = logits(base, plain, plain_flat)
    np.testing.assert_allclose(logits(base, method, flat, route), expected, atol=2e-5)
    assert np.abs(expected - load.logits(CONFIG, base)).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("routes", [1, ROUTES])
def test_compacter_is_a_bottleneck_of_kronecker_products(base, routes):
    method = METHODS["compacter"](rank=4, terms=2, routes=routes)
    flat = random_flat(base, method)
    plain = METHODS["bottleneck"](
        rank=4, blocks=("attention", "mlp"), source="output", activation="gelu"
    )
    for route in range(routes):
        own = {}
        for name, bias in flat.items():
            spot, _, inner = name.rpartition("/compacter/")
            if inner != "down_bias":
                continue
            leaves = {n: flat[f"{spot}/compacter/{n}"][route] for n in
                      ("down_left", "down_right", "up_left", "up_right", "up_bias")}  # fmt: skip
            rule = flat[f"{spot.partition('/')[0]}/compacter/rule"][route]
            for part in ("down", "up"):
                pairs = zip(leaves[f"{part}_left"], leaves[f"{part}_right"], strict=True)
                terms = [np.kron(s, np.outer(a, b)) for s, (a, b) in zip(rule, pairs, strict=True)]
                own[f"{spot}/bottleneck/{part}"] = np.sum(terms, axis=0)[None]
            own[f"{spot}/bottleneck/down_bias"] = bias[route : route + 1]
            own[f"{spot}/bottleneck/up_bias"] = leaves["up_bias"][None]
        check(base, method, flat, plain, own, route)


@pytest.mark.parametrize("routes", mostly_slow([1, ROUTES], [1]))
def test_propetl_is_a_bottleneck_of_masked_weights(base, routes):
    method = METHODS["propetl"](rank=4, kept=0.4, routes=routes)
    flat = random_flat(base, method)
    plain = METHODS["bottleneck"](rank=4, activation="gelu")

    def kept(scores):
        size = np.abs(scores).ravel()
        mask = np.zeros(size.size, np.float32)
        mask[np.argsort(size)[int(0.6 * size.size) :]] = 1
        return mask.reshape(scores.shape)

    for route in range(routes):
        own = {}
        for stack in BOTH:
            scope = f"{stack}/propetl"
            for name in flat:
                spot, _, inner = name.rpartition("/propetl/")
                if not spot.startswith(f"{stack}/layers") or inner != "down_scores":
                    continue
                for part in ("down", "up"):
                    mask = kept(flat[f"{spot}/propetl/{part}_scores"])
                    if routes > 1:
                        mask = np.maximum(mask, kept(flat[f"{scope}/{part}_scores"][route]))
                    own[f"{spot}/bottleneck/{part}"] = (flat[f"{scope}/{part}"] * mask)[None]
                    bias = flat[f"{scope}/{part}_bias"]
                    own[f"{spot}/bottleneck/{part}_bias"] = bias[None]
        check(base, method, flat, plain, own, route)
        stored, tree = method.export(traverse_util.unflatten_dict(flat, sep="/"))
        tree = traverse_util.flatten_dict(tree, sep="/")
        check(base, stored, tree, plain, own, route)


def test_scores_are_trained_as_if_they_were_the_mask():
    from adalink_jax.methods.propetl import kept_mask

    scores = np.array([[[0.3, -2.0], [1.0, -0.1]]], np.float32)
    weights = np.array([[[5.0, 6.0], [7.0, 8.0]]], np.float32)
    mask, gradient = jax.value_and_grad(lambda s: (weights * kept_mask(s, 0.5)).sum())(scores)
    assert mask == 6.0 + 7.0
    np.testing.assert_allclose(gradient, weights * np.sign(scores))
    # Of five weights the authors keep 5 - ⌊0.7 · 5⌋ at a share of 0.3.
    assert kept_mask(np.arange(1.0, 6.0)[None, None], 0.3).sum() == 2


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize(
    "theirs, ours", [("lora", "low_rank"), ("vector", "vector"), ("constant", "scalar")]
)
def test_glora_is_pefts(torch_t5, base, theirs, ours):
    """peft has A and B alone where a layer has no bias."""
    peft = pytest.importorskip("peft")
    config = peft.GloraConfig(r=3, target_modules=["q", "v", "wi_1", "wo"], config_A_B=theirs)
    trained, expected = with_peft(torch_t5, base, config)
    method = METHODS["glora"](
        rank=3, a=ours, b=ours, c="none", e="none", stacks=BOTH,
        linears=("*/query", "*/value", "mlp/wi_1", "mlp/wo"),
    )  # fmt: skip
    leaves = {}
    for name, leaf in trained.items():
        term = "a" if "glora_A" in name else "b"
        inner = {"Xu": "_down", "Xd": "_up"}.get(name.rpartition(".")[2], "")
        leaves[f"{place(name)}/glora/{term}{inner}"] = (
            leaf.T[None] if inner else leaf.reshape(1, -1)
        )
    assert leaves.keys() == random_flat(base, method).keys()
    np.testing.assert_allclose(logits(base, method, leaves), expected, atol=2e-5)
    assert np.abs(expected - load.logits(CONFIG, base)).max() > 0.05


@pytest.mark.parametrize("routes", mostly_slow([1, ROUTES], [1]))
@pytest.mark.parametrize(
    "form",
    [
        {"a": "low_rank", "b": "low_rank", "c": "low_rank", "e": "vector"},
        {"a": "vector", "b": "vector", "c": "vector", "e": "scalar"},
        {"a": "scalar", "b": "none", "c": "none", "e": "none"},
    ],
    ids=lambda form: form["a"],
)
def test_glora_is_other_kernels_and_biases(base, routes, form):
    """y' = x·(W + W∘A + B) + c·W + e: a base with other kernels, under BitFit."""
    method = METHODS["glora"](rank=2, linears=("*attention/*", "mlp/*"), routes=routes, **form)
    flat = random_flat(base, method)
    plain = METHODS["bitfit"](stacks=("encoder",))
    for route in range(routes):
        kernels, biases = {}, {}
        for spot in {name.rpartition("/glora/")[0] for name in flat}:
            own = {n.rpartition("/")[2]: x[route] for n, x in flat.items()
                   if n.startswith(f"{spot}/glora/")}  # fmt: skip
            kernel = kernel_of(base, spot)

            def term(name, own=own):
                return own[f"{name}_down"] @ own[f"{name}_up"] if f"{name}_up" in own else own.get(
                    name, np.zeros(1, np.float32))  # fmt: skip

            kernels[spot] = kernel + kernel * term("a") + term("b")
            bias = term("c") @ kernel if form["c"] != "none" else 0.0
            biases[f"{spot}/bitfit/bias"] = np.broadcast_to(
                bias + term("e"), (1, kernel.shape[1])
            ).astype(np.float32)
        expected = logits(with_kernels(base, kernels), plain, biases)
        np.testing.assert_allclose(logits(base, method, flat, route), expected, atol=1e-4)
        assert np.abs(expected - load.logits(CONFIG, base)).max() > 0.05
