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

from adalink_jax import sharding
from adalink_jax.checkpoints.store import Store
from adalink_jax.cost import formulas, programs
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method, merge
from adalink_jax.models import decoding
from adalink_jax.models.config import REMATS
from adalink_jax.models.stacking import is_stacked, stack_layers, unstack_layers
from adalink_jax.models.t5 import T5Config, Transformer
from adalink_jax.training import optimizers, state, step

BOTH = ("encoder", "decoder")
CASES = {
    "full": ("full", {}),
    "adalink": ("adalink", {"rank": 3, "routes": 3, "stacks": BOTH}),
    "lora": ("lora", {"rank": 2, "stacks": BOTH, "linears": "*/query", "routes": 3}),
    "lora_of_one_layer": ("lora", {"rank": 2, "stacks": BOTH, "layers": (1,)}),
    "prompt_tuning": ("prompt_tuning", {"length": 4, "bottleneck": 5, "dropout_rate": 0.0}),
}
STEPS = 5


@pytest.fixture(scope="module")
def small(tiny):
    """A T5 of three and two layers with a table of biases in each, of random weights; a batch."""
    config, _, batch = tiny
    config = dataclasses.replace(
        config, num_encoder_layers=3, num_decoder_layers=2, relpos_bias_per_layer=True
    )
    return config, jax.device_get(state.init_base(config, jax.random.key(5))), batch


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
                current, metrics = self.train_step(current, batch)
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
    adapter = state.init_adapter(config, method, base, jax.random.key(3))
    if not whole:
        # Nothing zero, so that every gradient is there from the start.
        leaves = iter(jax.random.split(jax.random.key(4), len(jax.tree.leaves(adapter))))
        adapter = jax.tree.map(
            lambda leaf: leaf + 0.1 * jax.random.normal(next(leaves), leaf.shape), adapter
        )
    with sharding.on_mesh(mesh):
        before = state.create(config, method, base, adapter, optimizer, mesh)
        train_step = step.make_train_step(Transformer(config, method), optimizer, rate, seed=0)
    return Run(config, method, mesh, before, jax.jit(train_step))


@pytest.fixture(scope="module", params=CASES)
def pair(request, small) -> tuple[Run, Run]:
    """One layer after another, and scanned."""
    return tuple(run_of(small, request.param, scan) for scan in (False, True))


@pytest.fixture(scope="module")
def after(pair, small):
    return [run.steps(run.before, small[2], STEPS) for run in pair]


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
def gradients(model, trainable, frozen, batch):
    return jax.value_and_grad(
        lambda trainable: step.loss_fn(model, trainable, frozen, batch, None, 1e-4, 0.0)[0]
    )(trainable)


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
    (plain, scanned), batch = pair, small[2]
    found, expected = (
        forward(run.model, merge(run.before.frozen, run.before.trainable), batch)
        for run in (scanned, plain)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert np.abs(expected).max() > 0.1
    (loss, grads), (expected_loss, expected_grads) = (
        gradients(run.model, run.before.trainable, run.before.frozen, batch)
        for run in (scanned, plain)
    )
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    expected = flat(expected_grads)
    same(flat(grads), expected, atol=1e-4)
    # A layer's gradient is another's in no case.
    assert all(np.any(leaf) for name, leaf in expected.items() if "relpos" not in name)


def test_five_steps_scanned_are_five_steps_unscanned(pair, after):
    (plain, metrics), (scanned, scanned_metrics) = after
    for name, value in metrics.items():
        np.testing.assert_allclose(scanned_metrics[name], value, rtol=1e-3, err_msg=name)
    same(flat(scanned.trainable), flat(plain.trainable), atol=2e-4)
    moved = flat(plain.trainable), flat(pair[0].before.trainable)
    assert max(np.abs(moved[0][name] - moved[1][name]).max() for name in moved[0]) > 1e-2


def named(tree) -> dict[str, np.ndarray]:
    """Every leaf by its path, optimizer state too."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_what_is_saved_is_the_same_and_public(pair, after):
    """Names, shapes and dtypes; and the optimizer's moments are each layer's own."""
    plain, scanned = (named(current.saved()) for current, _ in after)
    assert not any("'layers'" in name for name in scanned)
    same(scanned, plain, rtol=2e-2, atol=1e-3)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pair[1].before.saved_like())
    assert like == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pair[0].before.saved())


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


def test_decoding_scanned_is_decoding_unscanned(pair, small):
    batch, routes = small[2], small[2]["encoder_routes"][:, 0]
    options = np.array([[5, 1, 0], [7, 8, 1], [9, 1, 0]], np.int32)
    inputs = batch["encoder_input_tokens"]
    found = []
    for run in pair:
        params = merge(run.before.frozen, run.before.trainable)
        found.append(
            [
                decoding.greedy(run.model, params, inputs, 6, routes=routes),
                decoding.beam_search(run.model, params, inputs, 6, beam_size=3, routes=routes),
                decoding.score_options(run.model, params, inputs, options, routes),
            ]
        )
    (greedy, beam, scores), (scanned_greedy, scanned_beam, scanned_scores) = found
    np.testing.assert_array_equal(scanned_greedy, greedy)
    np.testing.assert_array_equal(scanned_beam, beam)
    np.testing.assert_allclose(scanned_scores, scores, atol=1e-4)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("case", ["full", "lora_of_one_layer"])
def test_rematerialisation_changes_neither_loss_nor_gradients(case, scan_layers, small):
    """With dropout, whose masks must be drawn again as they were."""
    run = run_of(small, case, scan_layers)
    config = dataclasses.replace(run.config, dropout_rate=0.3)

    def of(remat):
        model = Transformer(dataclasses.replace(config, remat=remat), run.method)
        loss = functools.partial(step.loss_fn, model, z_loss=1e-4, label_smoothing=0.0)

        def summed(trainable):
            return loss(trainable, run.before.frozen, small[2], jax.random.key(2))[0]

        return jax.jit(jax.value_and_grad(summed))(run.before.trainable)

    expected, grads = of("none")
    for remat in ("minimal", "full"):
        loss, found = of(remat)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=remat)
        same(flat(found), flat(grads), atol=1e-4)


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

        def sublayer(self, y, site, ctx):
            if site.block != "attention":
                return jnp.zeros_like(y)
            dropout = nn.Dropout(0.5, deterministic=ctx.deterministic, name="noise")
            return dropout(jnp.ones_like(y))

    ones = {"encoder": {**base["encoder"], "encoder_norm": {"scale": np.ones(16, np.float32)}}}
    encoded = Transformer(config, Noise()).apply(
        {"params": stack_layers({**base, **ones})},
        batch["encoder_input_tokens"],
        enable_dropout=True,
        rngs={"dropout": jax.random.key(0)},
        method="encode",
    )
    # The last norm divides a position by its root mean square: smallest steps are one layer's.
    row = np.asarray(encoded[0, 0])
    counts = row / min(value for value in row if value > 0)
    assert {1.0, 2.0, 3.0} & set(np.round(counts, 4)) >= {1.0, 2.0}


def test_only_chosen_layers_are_adapted_under_a_scan(small):
    """Against the kernel of the one adapted layer with the product added."""
    run = run_of(small, "lora_of_one_layer", True)
    trainable = jax.device_get(run.before.trainable)
    assert set(trainable["encoder"]) == set(trainable["decoder"]) == {"layers_1"}
    folded = run.method.fold(small[1], trainable, 0)
    params = merge(run.before.frozen, run.before.trainable)
    found = forward(run.model, params, small[2])
    expected = forward(Transformer(small[0]), folded, small[2])
    np.testing.assert_allclose(found, expected, atol=1e-5)


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


def test_optimizers_that_mix_parameters_are_refused_where_layers_are_scanned(small):
    run = run_of(small, "full", True)
    mixing = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    mapped = optimizers.per_module(mixing, run.method)
    trainable = run.before.trainable
    with pytest.raises(UserError, match="set scan_layers to False"):
        mapped.update(trainable, mapped.init(trainable), trainable)
    apart = unstack_layers(trainable)
    updates, _ = mapped.update(apart, mapped.init(apart), apart)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.1, rel=1e-4)


def test_masked_optimizers_go_through_stacked_layers(small):
    run = run_of(small, "full", True)

    def kernels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    optimizer = optimizers.per_module(
        optax.chain(optax.masked(optax.adam(0.1), kernels), optax.sgd(0.1)), run.method
    )
    stacked = run.before.trainable
    apart = unstack_layers(stacked)
    updates, _ = optimizer.update(stacked, optimizer.init(stacked), stacked)
    expected, _ = optimizer.update(apart, optimizer.init(apart), apart)
    same(flat(updates), flat(expected), rtol=1e-5)
    saved = run.before.replace(opt_state=optimizer.init(stacked))._training()
    assert named(state._unstacked(saved["opt_state"])).keys() == named(optimizer.init(apart)).keys()


def test_more_than_twelve_layers_are_scanned_unless_said_otherwise():
    def stacks(encoder, decoder, **given):
        config = T5Config(8, num_encoder_layers=encoder, num_decoder_layers=decoder, **given)
        return config.stacks_layers

    assert not stacks(12, 12)
    assert stacks(13, 1) and stacks(1, 13)
    assert stacks(1, 1, scan_layers=True) and not stacks(24, 24, scan_layers=False)
    with pytest.raises(UserError, match="scan_layers is 'yes'; it takes True, False or None"):
        T5Config(8, scan_layers="yes")
    with pytest.raises(UserError, match="remat is 'minimum'.*did you mean 'minimal'"):
        T5Config(8, remat="minimum")


@pytest.mark.parametrize("case", [name for name in CASES if name != "lora_of_one_layer"])
def test_products_are_as_many_scanned_as_unscanned(case, small):
    name, kwargs = CASES[case]
    method, shape = METHODS[name](**kwargs), formulas.Shape(4, 9, 5)
    config = dataclasses.replace(small[0], relpos_bias_per_layer=False)
    plain, scanned = (
        programs.traced_flops(dataclasses.replace(config, scan_layers=scan), method, shape)
        for scan in (False, True)
    )
    assert scanned == plain == dataclasses.replace(plain)
    formula = formulas.flops(config, method, shape)
    assert (scanned.forward, scanned.train) == (formula.forward, formula.train)


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
    shape = formulas.Shape(128, 512, 16)
    for remat, expected in zip(REMATS, RATIOS[name], strict=True):
        found = programs.traced_flops(dataclasses.replace(config, remat=remat), method, shape)
        ratio = found.train / found.forward
        print(f"{name}, remat {remat}: step ÷ forward {ratio:.3f}, elsewhere {expected}")
        assert ratio == pytest.approx(expected, abs=0.05)
