"""One matrix over all methods: what every adaptation must keep to.

A method that is added to `METHODS` runs through it unasked, unless it adapts images; `SETTINGS` may
name variants.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.checkpoints import fingerprint, load_adapter, save_adapter, shapes_of
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge, split
from adalink_jax.models import parameters
from adalink_jax.models.t5 import Transformer
from adalink_jax.training import optimizers, state, step
from tests.methods.toys import OF_TEXT, required

SETTINGS = {
    "adalink": [
        {"rank": 3},
        {"rank": 3, "activation": "gelu", "routes": 3, "stacks": ("encoder", "decoder")},
    ],
    "lora": [
        {"rank": 2},
        {"rank": 2, "stacks": ("encoder", "decoder"), "layers": (0,), "dropout_rate": 0.1},
        {"rank": 2, "linears": "*/query", "routes": 3, "alpha": 4.0},
    ],
    # With this length the number of tokens in a batch, 4·(4+9), is no dimension of a kernel.
    "prompt_tuning": [
        {"length": 4, "bottleneck": 5},
        {"length": 4, "reparameterise": False, "routes": 3},
        {"length": 4, "bottleneck": 5, "routes": 3, "generator": "residual_biases"},
        {"length": 4, "bottleneck": 5, "initialisation": "random", "generator": "mlp"},
        {"length": 4, "bottleneck": 3, "initialisation": "random", "generator": "low_rank"},
        {"length": 4, "bottleneck": 2, "routes": 3, "initialisation": "random", "seed": 3,
         "generator": "ulpt"},
        {"length": 4, "routes": 3, "generator": "mpt"},
    ],
}  # fmt: skip
BOTH = ("encoder", "decoder")
SETTINGS |= {
    "translation": [{}, {"routes": 3, "stacks": BOTH}],
    "embedding_lora": [{"rank": 2}, {"rank": 2, "routes": 3, "alpha": 3.0}],
    "position_offsets": [{"rank": 2, "max_length": 17}, {"rank": 2, "max_length": 17, "routes": 3}],
    "invertible": [{}, {"routes": 3, "reduction": 4}],
    "dora": [
        {"rank": 2, "stacks": BOTH, "dropout_rate": 0.1},
        {"rank": 2, "layers": (0,), "routes": 3, "alpha": 4.0},
    ],
    "vera": [{"rank": 3}, {"rank": 3, "layers": (0,), "routes": 3, "linears": "*", "seed": 5}],
    "peanut": [{"rank": 3}, {"rank": 3, "layers": (0,), "routes": 3, "stacks": BOTH}],
    "glora": [
        {"rank": 2},
        {"rank": 2, "routes": 3, "layers": (0,), "b": "vector", "c": "vector", "stacks": BOTH},
    ],
    "input_scaling": [{}, {"routes": 3, "layers": (0,), "linears": "mlp/*"}],
    "ia3": [{}, {"routes": 3, "layers": (0,), "feed_forward": False}],
    "bitfit": [{}, {"routes": 3, "linears": "mlp/*", "layers": (0,)}],
    "norm_tuning": [{}, {"routes": 3, "stacks": "encoder"}],
    "bottleneck": [
        {"rank": 2, "routes": 3},
        {"rank": 2, "blocks": ("attention", "mlp"), "source": "output", "activation": "silu"},
        {"rank": 2, "source": "residual", "zero_up": True, "scale": 4.0, "layers": (0,)},
    ],
    "compacter": [{"rank": 4, "terms": 2}, {"rank": 4, "routes": 3, "layers": (0,)}],
    "propetl": [
        {"rank": 3},
        {"rank": 3, "routes": 3, "kept": 0.5, "layers": (0,)},
        {"rank": 3, "routes": 3, "scored": False, "rate_factors": None},
    ],
    "prefix_tuning": [
        {"length": 3, "routes": 3},
        {"length": 3, "reparameterise": True, "bottleneck": 5, "position": "none"},
        {"length": 3, "blocks": "attention", "layers": (0,)},
    ],
    "llama_adapter": [{"length": 3, "routes": 3, "stacks": BOTH}, {"length": 3, "layers": (0,)}],
    "reft": [
        {"rank": 2, "first": 2, "last": 1, "routes": 3},
        {"rank": 2, "kind": "direft", "layers": (0,)},
    ],
    "compose": [
        required("compose"),
        {
            "parts": (
                {"method": "position_offsets", "rank": 2, "max_length": 17, "routes": 3},
                {"method": "lora", "rank": 2, "layers": (0,), "routes": 3},
                {"method": "prefix_tuning", "length": 2, "reparameterise": True, "bottleneck": 5,
                 "routes": 3},
            ),
            "rate_factors": (("*/up", 2.0),),
        },
        {
            "parts": (
                {"method": "prefix_tuning", "length": 2, "gated": True, "routes": 3},
                {"method": "bottleneck", "rank": 2, "gated": True, "routes": 3},
                {"method": "lora", "rank": 2, "gated": True, "routes": 3, "stacks": BOTH},
            ),
        },
    ],
}  # fmt: skip
CASES = [(name, kwargs) for name in OF_TEXT for kwargs in SETTINGS.get(name, [required(name)])]
# Those with the most in them; routes have tests of their own, and so has what a method computes.
SHORT = [
    ("adalink", SETTINGS["adalink"][1]),
    ("prompt_tuning", SETTINGS["prompt_tuning"][0]),
    *((name, required(name)) for name in OF_TEXT if name not in SETTINGS),
]
STEPS = 3


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method before and after three steps, with everything a test may look at."""

    name: str
    method: Method
    base: dict
    batch: dict
    adapter: dict
    before: state.TrainState
    after: state.TrainState
    jaxpr: str
    forward: object


@pytest.fixture(
    scope="module",
    params=[
        case if case in SHORT else pytest.param(case, marks=pytest.mark.slow) for case in CASES
    ],
    ids=lambda case: f"{case[0]}-{len(case[1])}",
)
def trained(request, tiny) -> Trained:
    config, base, batch = tiny
    name, kwargs = request.param
    method = METHODS[name](**kwargs)
    mesh = sharding.make_mesh()
    model = Transformer(config, method)
    rate = optimizers.factors(base_learning_rate=0.01)
    plain = method.trains_base
    optimizer = optimizers.per_module(
        optimizers.adafactor(rate, multiply_by_parameter_scale=plain, factored=plain), method
    )
    adapter = parameters.init_adapter(config, method, base, jax.random.key(3))
    with sharding.on_mesh(mesh):
        created = state.create(config, method, base, adapter, optimizer, mesh)
        before = jax.device_get(created)
        train_step = step.make_train_step(model, optimizer, rate)
        placed = sharding.place_batch(batch, mesh)
        key = jax.random.key(0)
        traced = jax.jit(train_step).trace(created, placed, key)
        jaxpr, compiled = str(traced.jaxpr), traced.lower().compile()
        after = created
        for _ in range(STEPS):
            after, metrics = compiled(after, placed, key)
    assert np.isfinite(metrics["loss"])

    @jax.jit
    def forward(params, batch):
        arrays = {key: batch[key] for key in batch if key != "decoder_loss_weights"}
        return model.apply({"params": params}, **arrays, enable_dropout=False)

    return Trained(
        name, method, base, batch, adapter, before, jax.device_get(after), jaxpr, forward
    )


def forward(tiny, trained, method, adapter):
    """The logits on the batch of the base with another adapter."""
    arrays = {key: trained.batch[key] for key in trained.batch if key != "decoder_loss_weights"}
    apply = jax.jit(Transformer(tiny[0], method).apply, static_argnames="enable_dropout")
    return apply({"params": merge(trained.base, adapter)}, **arrays, enable_dropout=False)


def flat(tree) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def base_logits(tiny, batch):
    config, base, _ = tiny
    arrays = {key: batch[key] for key in batch if key != "decoder_loss_weights"}
    return Transformer(config).apply({"params": base}, **arrays, enable_dropout=False)


@pytest.fixture(scope="module")
def plain(tiny):
    """The base's logits."""
    return jax.jit(functools.partial(base_logits, tiny))(tiny[2])


@pytest.fixture(scope="module")
def alone(tiny):
    """The base's initialisation from one key, without any method."""
    return _initialised(tiny[0], Method())


def _initialised(config, method) -> dict[str, np.ndarray]:
    init = jax.jit(functools.partial(parameters._variables, config, method))
    return flat(init(jax.random.key(11))["params"])


def test_names_and_initialisation_of_the_base_are_untouched(trained, tiny, alone):
    """Initialising network and method together gives the base's own bits, and one scope more."""
    together = _initialised(tiny[0], trained.method)
    for name, leaf in alone.items():
        np.testing.assert_array_equal(together[name], leaf, err_msg=name)
    extra = together.keys() - alone.keys()
    assert all(map(trained.method.owns, extra))
    assert bool(extra) != trained.method.trains_base


def test_starts_at_the_base_or_says_otherwise(trained, plain):
    logits = trained.forward(merge(trained.base, trained.adapter), trained.batch)
    change = np.abs(logits - plain).max()
    ranges = {"base": (0.0, 0.0), "near": (1e-7, 0.1), "elsewhere": (1e-3, np.inf)}
    least, most = ranges[trained.method.start]
    assert least <= change <= most


def test_frozen_leaves_keep_their_bits_and_trainable_ones_move(trained):
    for name, leaf in flat(trained.after.frozen).items():
        np.testing.assert_array_equal(leaf, flat(trained.base)[name], err_msg=name)
    moved = flat(trained.after.trainable)
    for name, leaf in flat(trained.before.trainable).items():
        # A route without examples in the batch must not move; each of these routes has some.
        changed = np.any(moved[name] != leaf, axis=tuple(range(1, leaf.ndim)))
        if leaf.size == len(leaf) == trained.method.routes:
            continue  # Adafactor moves a lone number by the rate, up and down again.
        if "/key/bitfit/" in name or "/key/glora/c_" in name:
            continue  # A bias of all keys changes no attention: its gradient is rounding alone.
        assert np.all(changed) if trained.method.has_routes(name) else np.any(changed), name
    assert moved.keys() | flat(trained.after.frozen).keys() >= flat(trained.base).keys()


def test_optimizer_state_is_of_trainable_leaves_only(trained):
    size = sum(leaf.size for leaf in jax.tree.leaves(trained.before.trainable))
    state_size = sum(leaf.size for leaf in jax.tree.leaves(trained.before.opt_state))
    leaves = len(jax.tree.leaves(trained.before.trainable))
    routes = trained.method.routes
    # Second moments, and per leaf and route what optax keeps for the factored form and counts.
    assert size <= state_size <= size + routes * (2 * leaves + 2)


def test_no_gradient_of_a_frozen_matrix(trained, tiny):
    """No product in the step's program has the shape of a frozen kernel but the weights' uses.

    A gradient of a kernel [Din, Dout] is a dot_general whose result has that shape.
    """
    # A product may give the transpose of what is asked for.
    shapes = {
        frozenset(leaf.shape) for name, leaf in flat(trained.base).items() if "kernel" in name
    }
    results = {
        frozenset(map(int, line.split("f32[")[1].split("]")[0].split(",")))
        for line in trained.jaxpr.splitlines()
        if " = dot_general[" in line and line.split("f32[")[1].split("]")[0].count(",") == 1
    }
    if trained.method.trains_base:  # There the same search finds every kernel's gradient.
        assert shapes <= results
        return
    if (
        trained.name == "glora"
    ):  # A low-rank factor of a kernel's every number needs such a product.
        return
    own = {frozenset(leaf.shape[1:]) for leaf in jax.tree.leaves(trained.adapter)}
    assert not (results & shapes) - own


def test_save_load_gives_the_same_logits(trained, tiny, plain, tmp_path):
    config, _, _ = tiny
    tree = jax.tree.map(jnp.asarray, trained.after.trainable)
    stored_method, stored = trained.method.export(tree)
    save_adapter(
        tmp_path / "adapter",
        stored,
        method_name=trained.name,
        settings=stored_method.settings(),
        architecture=config,
        base_fingerprint=fingerprint(trained.base),
        route_names=[str(i) for i in range(trained.method.routes)],
        metadata={},
    )
    loaded = load_adapter(tmp_path / "adapter", base_fingerprint=fingerprint(trained.base))
    method = METHODS[loaded.method_name](**loaded.settings)
    assert method == stored_method
    logits = forward(tiny, trained, method, loaded.tree)
    expected = trained.forward(merge(trained.after.frozen, tree), trained.batch)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-3


def test_cached_decoding_is_the_full_forward(trained, tiny):
    config, _, _ = tiny
    model = Transformer(config, trained.method)
    params = jax.tree.map(jnp.asarray, merge(trained.after.frozen, trained.after.trainable))
    batch = trained.batch
    full = trained.forward(params, batch)
    inputs, length = batch["encoder_input_tokens"], batch["decoder_input_tokens"].shape[1]
    routes = batch["encoder_routes"]
    encoded = model.apply(
        {"params": params}, inputs, enable_dropout=False, encoder_routes=routes, method="encode"
    )

    def decode(variables, tokens):
        return model.apply(
            variables,
            encoded,
            inputs,
            tokens,
            tokens,
            enable_dropout=False,
            decode=True,
            max_decode_length=length,
            encoder_routes=routes,
            decoder_routes=routes[:, :1] * jnp.ones_like(tokens),
            mutable=["cache"],
            method="decode",
        )

    _, made = decode({"params": params}, batch["decoder_input_tokens"])
    one = jax.jit(lambda cache, tokens: decode({"params": params, "cache": cache}, tokens))
    cache = made["cache"]
    for i in range(length):
        logits, updated = one(cache, batch["decoder_input_tokens"][:, i : i + 1])
        cache = updated["cache"]
        real = batch["decoder_target_tokens"][:, i] > 0
        np.testing.assert_allclose(logits[real, 0], full[real, i], atol=1e-4)


def test_jit_is_no_jit(trained, tiny):
    config, _, _ = tiny
    params = merge(trained.after.frozen, trained.after.trainable)
    arrays = {key: trained.batch[key] for key in trained.batch if key != "decoder_loss_weights"}
    eager = Transformer(config, trained.method).apply(
        {"params": params}, **arrays, enable_dropout=False
    )
    np.testing.assert_allclose(trained.forward(params, trained.batch), eager, atol=1e-5)


def test_padding_changes_nothing(trained):
    params = merge(trained.after.frozen, trained.after.trainable)
    # Padding of the routes' array is any number: the network gives padding its row's route.
    wider = {
        name: np.pad(x, ((0, 0), (0, 5 if name.startswith("encoder") else 2)))
        for name, x in trained.batch.items()
    }
    real = trained.batch["decoder_target_tokens"] > 0
    padded = trained.forward(params, wider)[:, : real.shape[1]]
    np.testing.assert_allclose(
        padded[real], trained.forward(params, trained.batch)[real], atol=1e-5
    )


def test_split_and_merge_are_inverses(trained):
    params = merge(trained.after.frozen, trained.after.trainable)
    trainable, frozen = split(params, trained.method)
    assert flat(trainable).keys() == flat(trained.after.trainable).keys()
    assert flat(frozen).keys() == flat(trained.after.frozen).keys()
    with pytest.raises(ValueError, match=r"'token_embedder/embedding' is \(48, 16\) in the base"):
        merge(params, {"token_embedder": {"embedding": np.zeros(1)}})


def test_shapes_are_known_before_anything_is_allocated(trained, tiny):
    """Those of the network's own initialisation, at any depth; and those that are stored."""
    deep = dataclasses.replace(tiny[0], num_encoder_layers=3, num_decoder_layers=2)
    shapes, axes = parameters.abstract_params(deep, trained.method)
    key = jax.random.key(0)
    made = jax.eval_shape(functools.partial(parameters._variables, deep, trained.method), key)
    assert shapes_of(shapes) == shapes_of(made["params"]) and axes == made["params_axes"]
    _, stored = trained.method.export(trained.adapter)
    assert shapes_of(parameters.stored_shapes(tiny[0], trained.method)) == shapes_of(stored)


def test_the_form_for_inference_computes_the_same(trained, tiny):
    stored, tree = trained.method.export(trained.after.trainable)
    method, tree = stored.for_inference(tree)
    expected = trained.forward(merge(trained.after.frozen, trained.after.trainable), trained.batch)
    np.testing.assert_allclose(forward(tiny, trained, method, tree), expected, atol=1e-5)
    if method.widens:
        wide, filled = parameters.widened(tiny[0], method, tree, method.size + 3)
        assert wide.size == method.size + 3
        np.testing.assert_allclose(forward(tiny, trained, wide, filled), expected, atol=1e-5)


def test_routes_are_divided_and_stacked_bit_for_bit(trained):
    method, tree = trained.method.export(trained.after.trainable)
    if not method.routed:
        with pytest.raises(UserError, match="no routes"):
            method.one_route(tree, 0)
        return
    parts = [method.one_route(tree, i) for i in range(method.routes)]
    assert all(part.routes == 1 for part, _ in parts)
    assert parts[0][0] == method.with_routes(1)
    stacked, joined = parts[0][0].stack([tree for _, tree in parts])
    assert stacked == method
    jax.tree.map(np.testing.assert_array_equal, joined, dict(tree))


def test_sizes_and_variants_are_methods_of_their_own(trained, tiny):
    method = trained.method
    depths = {"encoder": 2, "decoder": 1}
    assert next(iter(method.variants(depths))) == method
    for variant in method.variants(depths):
        assert jax.tree.leaves(parameters.stored_shapes(tiny[0], variant))
    if method.size is not None:
        assert method.resized(5).size == 5 and method.resized(method.size) == method
    fields = {field.name for field in dataclasses.fields(method)}
    assert {*method.training_only, *filter(None, [method.size_field])} <= fields


def test_registered_as_the_design_says():
    scopes = [cls.scope for cls in METHODS.values()]
    assert len(set(scopes)) == len(scopes)
    for name, cls in METHODS.items():
        assert name == name.lower() == cls.scope
        assert cls.__module__ == f"adalink_jax.methods.{name}"
