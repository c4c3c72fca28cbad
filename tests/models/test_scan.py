"""Scanned layers against the same layers one after another, and rematerialisation against none."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from adalink_jax.checkpoints.training_state import Store
from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding, parameters
from adalink_jax.models.config import REMATS
from adalink_jax.models.stacking import is_stacked, stack_layers, unstack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.tools.cost.counts import Shape, traced_flops
from adalink_jax.training import optimizers, state, step
from adalink_jax.training.selection import tracking
from tests.methods.toys import OF_TEXT, required
from tests.tiers import mostly_slow
from tests.tools.cost import formulas

BOTH = ("encoder", "decoder")
CASES = {
    "full": ("full", {}),
    "adalink": ("adalink", {"rank": 3, "routes": 3, "stacks": BOTH}),
    "lora_of_one_layer": ("lora", {"rank": 2, "stacks": BOTH, "layers": (1,), "routes": 3}),
    "prompt_tuning": ("prompt_tuning", {"length": 4, "bottleneck": 5, "dropout_rate": 0.0}),
}
# A method that is added to `METHODS` runs through the tests unasked.
CASES |= {name: (name, required(name)) for name in OF_TEXT if name not in dict(CASES.values())}
STEPS = 5
# All have the same logits and gradients; steps are taken with what differs in leaves and optimizer.
STEPPED = ("full", "adalink", "lora_of_one_layer", "prompt_tuning", "prefix_tuning", "propetl")


@pytest.fixture(scope="module")
def small(tiny):
    """A T5 of three and two layers with a table of biases in each, of random weights; a batch."""
    config, _, batch = tiny
    config = dataclasses.replace(
        config, num_encoder_layers=3, num_decoder_layers=2, relpos_bias_per_layer=True
    )
    return config, jax.device_get(parameters.init_base(config, jax.random.key(5))), batch


@dataclasses.dataclass
class Run:
    """One method's training, scanned or not."""

    config: T5Config
    method: Method
    mesh: jax.sharding.Mesh
    before: state.TrainState
    train_step: object

    def steps(self, current, batch, count):
        with sharding.on_mesh(self.mesh):
            for _ in range(count):
                current, metrics = self.train_step(current, batch, jax.random.key(0))
        return current, metrics

    @property
    def model(self):
        return Transformer(self.config, self.method)


def run_of(small, case, scan_layers) -> Run:
    config, base, _ = small
    config = dataclasses.replace(config, scan_layers=scan_layers)
    name, kwargs = CASES[case]
    method, mesh = METHODS[name](**kwargs), sharding.make_mesh()
    rate = optimizers.factors(base_learning_rate=0.01)
    whole = method.trains_base
    # Small enough that the tiny model's kernels are factored.
    rule = optimizers.adafactor(
        rate, multiply_by_parameter_scale=whole, factored=whole, min_dim_size_to_factor=8
    )
    optimizer = optimizers.per_module(rule, method)
    adapter = parameters.init_adapter(config, method, base, jax.random.key(3))
    if not whole:
        # Nothing zero, so that every gradient is there from the start.
        leaves = iter(jax.random.split(jax.random.key(4), len(jax.tree.leaves(adapter))))
        adapter = jax.tree.map(
            lambda leaf: leaf + 0.1 * jax.random.normal(next(leaves), leaf.shape), adapter
        )
    with sharding.on_mesh(mesh):
        before = state.create(config, method, base, adapter, optimizer, mesh)
        before = tracking(before, average=True, best=True)
        train_step = step.make_train_step(
            Transformer(config, method), optimizer, rate, ema_decay=0.5
        )
    return Run(config, method, mesh, before, jax.jit(train_step))


@pytest.fixture(scope="module", params=mostly_slow(CASES, ["lora_of_one_layer"]))
def pair(request, small) -> tuple[Run, Run]:
    """One layer after another, and scanned."""
    return tuple(run_of(small, request.param, scan) for scan in (False, True))


@pytest.fixture(scope="module")
def after(pair, small):
    return [run.steps(run.before, small[2], STEPS) for run in pair]


stepped = pytest.mark.parametrize("pair", mostly_slow(STEPPED, []), indirect=True, scope="module")


def flat(tree) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(unstack_layers(tree)), sep="/")


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, err_msg=name, **tolerance)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    arrays = {name: batch[name] for name in batch if name != "decoder_loss_weights"}
    return model.apply({"params": params}, **arrays, enable_dropout=False)


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradients(model, trainable, frozen, batch):
    def loss(trainable):
        logits = forward(model, merge(frozen, trainable), batch)
        return jnp.sum(jnp.sin(logits) * batch["decoder_loss_weights"][..., None]), logits

    grads, logits = jax.grad(loss, has_aux=True)(trainable)
    return logits, grads


def test_layers_lie_stacked_and_adapters_do_not(pair):
    plain, scanned = pair
    whole = scanned.method.trains_base
    assert is_stacked(scanned.before.trainable) == whole
    assert is_stacked(scanned.before.frozen) != whole
    assert not is_stacked(plain.before.trainable) and not is_stacked(plain.before.frozen)
    same(flat(scanned.before.trainable), flat(plain.before.trainable), rtol=0)
    same(flat(scanned.before.frozen), flat(plain.before.frozen), rtol=0)
    kernel = ("encoder", "layers", "mlp", "wo", "kernel")
    base = scanned.before.trainable if whole else scanned.before.frozen
    leaf = traverse_util.flatten_dict(base)[kernel]
    assert leaf.shape == (3, 24, 16)
    assert leaf.sharding.spec == jax.sharding.PartitionSpec(None, "model", None)


def test_scanned_logits_and_gradients_are_the_unscanned(pair, small):
    (expected, expected_grads), (found, grads) = (
        logits_and_gradients(run.model, run.before.trainable, run.before.frozen, small[2])
        for run in pair
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 0.1
    same(flat(grads), flat(expected_grads), atol=1e-4)
    assert all(np.any(leaf) for name, leaf in flat(grads).items() if "relpos" not in name)
    if pair[1].method.scope == "lora":
        # Against the kernels of the one adapted layer with a route's product added.
        trainable = jax.device_get(pair[1].before.trainable)
        assert set(trainable["encoder"]) == set(trainable["decoder"]) == {"layers_1"}
        folded = pair[1].method.fold(small[1], trainable, 2)
        of_route = forward(Transformer(small[0]), folded, small[2])[1]
        assert set(small[2]["encoder_routes"][1]) == {2}
        np.testing.assert_allclose(found[1], of_route, atol=1e-5)


@stepped
def test_five_steps_scanned_are_five_steps_unscanned(pair, after):
    (plain, metrics), (scanned, scanned_metrics) = after
    for name, value in metrics.items():
        np.testing.assert_allclose(scanned_metrics[name], value, rtol=1e-3, err_msg=name)
    same(flat(scanned.trainable), flat(plain.trainable), atol=2e-4)
    same(flat(scanned.average), flat(plain.average), atol=2e-4)
    moved = flat(plain.trainable), flat(pair[0].before.trainable)
    assert max(np.abs(moved[0][name] - moved[1][name]).max() for name in moved[0]) > 1e-2


def named(tree) -> dict[str, np.ndarray]:
    """Every leaf by its path, optimizer state too."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@stepped
def test_what_is_saved_is_the_same_and_public(pair, after):
    """Names, shapes and dtypes; and the optimizer's moments are each layer's own."""
    plain, scanned = (named(current.saved()) for current, _ in after)
    assert not any("'layers'" in name for name in scanned)
    same(scanned, plain, rtol=2e-2, atol=1e-3)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pair[1].before.saved_like())
    assert like == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pair[0].before.saved())


@stepped
@pytest.mark.parametrize("first", [0, 1], ids=["scanned_from_unscanned", "unscanned_from_scanned"])
def test_a_run_saved_one_way_resumes_the_other(first, pair, after, small, tmp_path):
    batch = small[2]
    store = Store(tmp_path)
    halfway, _ = pair[first].steps(pair[first].before, batch, 2)
    store.save(2, halfway.saved())
    other = pair[1 - first]
    resumed = other.before.restored(store.restore(2, other.before.saved_like()))
    store.close()
    same(named(resumed.saved()), named(halfway.saved()), rtol=0)
    assert jax.tree.map(lambda x: x.sharding, resumed) == jax.tree.map(
        lambda x: x.sharding, other.before
    )
    finished, _ = other.steps(resumed, batch, STEPS - 2)
    assert int(finished.step) == STEPS
    same(flat(finished.trainable), flat(after[first][0].trainable), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["lora_of_one_layer"], indirect=True)
def test_decoding_scanned_is_decoding_unscanned(pair, small):
    """Generation through the cache, whose leaves then have an axis of layers; and scores."""
    batch, routes = small[2], small[2]["encoder_routes"][:, 0]
    options = np.array([[5, 1, 0], [7, 8, 1], [9, 1, 0]], np.int32)
    inputs, found = batch["encoder_input_tokens"], []
    for run, remat in zip(pair, ("none", "full"), strict=True):
        # A training run evaluates with its own configuration.
        model = Transformer(dataclasses.replace(run.config, remat=remat), run.method)
        params = merge(run.before.frozen, run.before.trainable)
        tokens = decoding.beam_search(model, params, inputs, 6, beam_size=3, routes=routes)
        greedy = decoding.greedy(model, params, inputs, 6, routes=routes)
        scores = decoding.score_options(model, params, inputs, options, routes)
        found.append((np.stack([tokens, greedy]), scores))
    (tokens, scores), (scanned_tokens, scanned_scores) = found
    np.testing.assert_array_equal(scanned_tokens, tokens)
    np.testing.assert_allclose(scanned_scores, scores, atol=1e-4)


@pytest.mark.parametrize("remat", mostly_slow(["minimal", "full"], []))
@pytest.mark.parametrize(
    "layers",
    [(3, 2), pytest.param((1, 1), marks=pytest.mark.slow)],
    ids=["scanned", "unscanned"],
)
def test_rematerialisation_changes_neither_loss_nor_gradients(layers, remat, small):
    """Of all parameters; with dropout, whose masks must be drawn again as they were."""
    numbers = {"num_encoder_layers": layers[0], "num_decoder_layers": layers[1]}
    config = dataclasses.replace(small[0], dropout_rate=0.3, **numbers)
    method = METHODS["lora"](rank=2, stacks=BOTH, layers=(0,))
    params, _ = parameters.abstract_params(config, method)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4") / 4, params)
    params = stack_layers(params, np.stack) if layers != (1, 1) else params
    dropout_key = jax.random.key(2)

    def of(remat):
        model = Transformer(dataclasses.replace(config, remat=remat), method)

        def loss(params):
            return step.loss_fn(model, params, {}, small[2], dropout_key, 1e-4, 0.0)[0]

        return jax.jit(jax.value_and_grad(loss))(params)

    (expected, grads), (loss, found) = of("none"), of(remat)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    same(flat(found), flat(grads), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["t5_1_1_tiny", "t5_1_0_tiny"])
def test_goldens_of_t5x_load_into_scanned_layers(golden, name):
    config, params, expected = golden(name)
    config, mesh = dataclasses.replace(config, scan_layers=True), sharding.make_mesh()
    placed = state.place_params(config, Method(), params, mesh)
    assert is_stacked(placed)
    inputs = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    logits = forward(Transformer(config), placed, {key: expected[key] for key in inputs})
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)


def test_each_scanned_layer_draws_its_own_dropout(small):
    """Every layer adds 2 or nothing to a silenced network: with one mask, all layers or none."""
    config, base, batch = small

    @dataclasses.dataclass(frozen=True)
    class Noise(Method):
        def inputs(self, x, ctx):
            return jnp.zeros_like(x), ctx

        def sublayer(self, y, x, residual, site, ctx):
            if site.block != "attention":
                return jnp.zeros_like(y)
            dropout = nn.Dropout(0.5, deterministic=ctx.deterministic, name="noise")
            return dropout(jnp.ones_like(y))

    ones = {"encoder": {**base["encoder"], "encoder_norm": {"scale": np.ones(16, np.float32)}}}
    encode = functools.partial(Transformer(config, Noise()).apply, method="encode")
    encoded = jax.jit(encode)(
        {"params": stack_layers({**base, **ones}, np.stack)},
        batch["encoder_input_tokens"],
        rngs={"dropout": jax.random.key(0)},
    )
    # The last norm divides a position by its root mean square: smallest steps are one layer's.
    row = np.asarray(encoded[0, 0])
    counts = row / min(value for value in row if value > 0)
    assert {1.0, 2.0, 3.0} & set(np.round(counts, 4)) >= {1.0, 2.0}


def test_stacking_and_its_inverse(small):
    _, base, _ = small
    stacked = stack_layers(base, np.stack)
    kernel = stacked["decoder"]["layers"]["self_attention"]["key"]["kernel"]
    np.testing.assert_array_equal(
        kernel[1], base["decoder"]["layers_1"]["self_attention"]["key"]["kernel"]
    )
    assert not any(name.startswith("layers_") for name in stacked["encoder"])
    same(flat(stacked), traverse_util.flatten_dict(base, sep="/"), rtol=0)
    again = stack_layers(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(stacked)


@pytest.fixture
def weights():
    """Trees of two leaves in every part, the layers stacked: parameters and gradients."""
    rng = np.random.default_rng(0)
    shapes = {"encoder": {"layers": (3,)}, "decoder": {"layers": (2,)}, "token_embedder": ()}
    return [
        jax.tree.map(
            lambda size: {
                "kernel": jnp.asarray(rng.normal(size=(*size, 4, 5)), jnp.float32),
                "scale": jnp.asarray(rng.normal(size=(*size, 4)), jnp.float32),
            },
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for _ in range(2)
    ]


def test_optimizers_that_mix_parameters_are_refused_where_layers_are_scanned(weights):
    params, grads = weights
    mixing = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    mapped = optimizers.per_module(mixing, METHODS["full"]())
    with pytest.raises(UserError, match="set scan_layers to False"):
        mapped.update(grads, mapped.init(params), params)
    params, grads = map(unstack_layers, weights)
    updates, _ = mapped.update(grads, mapped.init(params), params)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.1, rel=1e-4)


def test_clipping_and_decay_are_as_unscanned(weights):
    """CLIP_NORM counts all layers together; a stacked scale is a vector, and does not decay."""
    (params, grads), (apart, their_grads) = weights, map(unstack_layers, weights)
    rule = optimizers.per_module(
        optimizers.adamw(lambda _: 0.1, weight_decay=0.5), METHODS["full"](), 1.0
    )
    updates, _ = rule.update(grads, rule.init(params), params)
    expected, _ = rule.update(their_grads, rule.init(apart), apart)
    same(flat(updates), flat(expected), rtol=1e-5)
    free, _ = optax.adamw(0.1, weight_decay=0.0).update(
        jax.tree.map(lambda leaf: leaf / optax.tree.norm(grads), grads),
        optax.adamw(0.1).init(params),
        params,
    )
    decayed = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()) > 1e-3, updates, free)
    assert decayed["encoder"]["layers"] == {"kernel": True, "scale": False}


def test_optimizers_of_parts_go_through_stacked_layers(weights):
    """Their states hold empty nodes where a part is another optimizer's."""
    optimizer = optimizers.per_module(
        optax.partition(
            {"kernel": optax.adamw(0.1), "scale": optax.adafactor(0.1)},
            lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params),
        ),
        METHODS["full"](),
    )
    (params, grads), (apart, their_grads) = weights, map(unstack_layers, weights)
    moments, expected_moments = optimizer.init(params), optimizer.init(apart)
    for _ in range(2):
        updates, moments = optimizer.update(grads, moments, params)
        expected, expected_moments = optimizer.update(their_grads, expected_moments, apart)
    same(flat(updates), flat(expected), rtol=1e-5)
    same(named(state._unstacked(moments)), named(expected_moments), rtol=1e-5)


def test_more_than_twelve_layers_are_scanned_unless_said_otherwise():
    def stacks(encoder, decoder, **given):
        config = T5Config(8, num_encoder_layers=encoder, num_decoder_layers=decoder, **given)
        return config.stacks_layers

    assert not stacks(12, 12)
    assert stacks(13, 1) and stacks(1, 13)
    assert stacks(1, 1, scan_layers=True) and not stacks(24, 24, scan_layers=False)
    with pytest.raises(UserError, match="scan_layers is 'yes'; it takes True or False or None"):
        T5Config(8, scan_layers="yes")
    with pytest.raises(UserError, match="remat is 'minimum'.*did you mean 'minimal'"):
        T5Config(8, remat="minimum")


FLOPS = Shape(4, 9, 5)


@pytest.mark.parametrize("case", ["full", "adalink"])
def test_products_are_as_many_scanned_as_unscanned(case, small):
    name, kwargs = CASES[case]
    config = dataclasses.replace(small[0], relpos_bias_per_layer=False, scan_layers=True)
    found = traced_flops(config, METHODS[name](**kwargs), FLOPS)
    expected = formulas.flops(config, METHODS[name](**kwargs), FLOPS)
    assert (found.forward, found.train) == (expected.forward, expected.train)


def test_a_scan_goes_back_through_all_of_the_decoders_first_layer(small):
    """Where nothing trains below it, its input needs no gradient; a scan treats all layers alike.

    Backwards at width D, here of the heads together too: query, key, value and out, attention's
    four products, and of cross-attention the query with one product.
    """
    config = dataclasses.replace(small[0], relpos_bias_per_layer=False, scan_layers=True)
    method = METHODS["adalink"](rank=3)
    found = traced_flops(config, method, FLOPS)
    expected = formulas.flops(config, method, FLOPS)
    batch, inputs, targets, width = FLOPS.batch, FLOPS.inputs, FLOPS.targets, 16
    linear = 5 * 2 * batch * targets * width**2
    attention = 2 * batch * targets * width * (4 * targets + inputs)
    assert found.forward == expected.forward
    assert found.train - expected.train == linear + attention


# Products of a step ÷ of a forward pass, of another implementation of T5 XXL (plain JAX, scanned).
RATIOS = {"adalink": (2.02, 2.03, 2.84), "full": (3.00, 3.02, 3.82)}


@pytest.mark.slow
@pytest.mark.parametrize("name", RATIOS)
def test_rematerialisation_costs_what_it_should_at_xxl(name):
    """Traced on shapes alone; nothing is allocated."""
    method = METHODS[name](**({"rank": 4} if name == "adalink" else {}))
    config = T5Config(
        vocab_size=32128, emb_dim=4096, num_heads=64, num_encoder_layers=24,
        num_decoder_layers=24, head_dim=64, mlp_dim=10240, mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
    )  # fmt: skip
    shape = Shape(128, 512, 16)
    for remat, expected in zip(REMATS, RATIOS[name], strict=True):
        found = traced_flops(dataclasses.replace(config, remat=remat), method, shape)
        ratio = found.train / found.forward
        print(f"{name}, remat {remat}: step ÷ forward {ratio:.3f}, elsewhere {expected}")
        assert ratio == pytest.approx(expected, abs=0.05)
