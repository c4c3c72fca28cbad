"""Loss and step against closed formulas."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import Method
from adalink_jax.models import parameters
from adalink_jax.models.t5 import Transformer
from adalink_jax.training import optimizers, state, step
from adalink_jax.training.losses import cross_entropy
from tests.methods.toys import Stabilised


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_against_numpy(label_smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 7)).astype(np.float32) * 3
    targets = rng.integers(0, 7, (2, 3)).astype(np.int32)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    wanted = np.full(logits.shape, label_smoothing / 6)
    np.put_along_axis(wanted, targets[..., None], 1 - label_smoothing, axis=-1)
    loss = -(wanted * (logits - log_z[..., None])).sum(-1)
    if label_smoothing:
        loss += (wanted * np.log(wanted)).sum(-1)  # A perfect prediction costs nothing.
    z = 1e-2 * log_z**2
    got, got_z = cross_entropy(logits, targets, weights, 1e-2, label_smoothing)
    np.testing.assert_allclose(got, ((loss + z) * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(got_z, (z * weights).sum(), rtol=1e-5)


ADALINK = METHODS["adalink"](rank=2)


@pytest.fixture(scope="module")
def run(tiny):
    """Trains for some steps; returns the state and the last step's metrics."""
    config, base, default = tiny
    mesh = sharding.make_mesh()

    @functools.cache
    def started(dropout_rate, parts, method):
        model = Transformer(dataclasses.replace(config, dropout_rate=dropout_rate), method)
        rate = optimizers.factors(base_learning_rate=0.01)
        optimizer = optimizers.adafactor(rate, multiply_by_parameter_scale=False, factored=False)
        optimizer = optimizers.per_module(optimizer, method)
        adapter = parameters.init_adapter(model.config, method, base, jax.random.key(3))
        current = state.create(model.config, method, base, adapter, optimizer, mesh)
        train_step = step.make_train_step(model, optimizer, rate, accumulation_steps=parts)
        return current, jax.jit(train_step)

    def call(steps=2, dropout_rate=0.0, parts=1, seed=0, batch=None, method=ADALINK):
        with sharding.on_mesh(mesh):
            current, train_step = started(dropout_rate, parts, method)
            for _ in range(steps):
                current, metrics = train_step(current, batch or default, jax.random.key(seed))
        return current, metrics

    return call


def test_accumulation_changes_nothing(run, tiny):
    """Parts with different numbers of target tokens: summed, and divided once."""
    whole, metrics = run()
    parts, of_parts = run(parts=2)
    assert (
        metrics["target_tokens"]
        == of_parts["target_tokens"]
        == tiny[2]["decoder_loss_weights"].sum()
    )
    np.testing.assert_allclose(metrics["loss"], of_parts["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], of_parts["gradient_norm"], rtol=1e-4)
    one, other = (jax.tree.leaves(s.trainable) for s in (whole, parts))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_dropout_is_a_function_of_seed_and_step(run):
    losses = [float(run(1, 0.3, seed=seed)[1]["loss"]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    first = run(1, 0.3)[1]["loss"]
    second = run(2, 0.3)[1]["loss"]
    assert abs(first - second) > 1e-3  # Another step, another mask.
    assert float(first) != float(run(1, 0.0)[1]["loss"])


def test_dropout_of_any_name_is_on_while_training(run):
    """Over a base without dropout, a method's own field is enough, whatever it is called."""
    losses = [
        float(run(2, method=Stabilised(rank=2, bottleneck_dropout=rate))[1]["loss"])
        for rate in (0.0, 0.5)
    ]
    assert abs(losses[0] - losses[1]) > 1e-4


def halves(key):
    """The bits of a key as four numbers that float32 holds exactly."""
    bits = jax.random.key_data(key)
    return jnp.concatenate([bits >> 16, bits & 0xFFFF]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Keys(Method):
    """Its parameters are the keys that it is initialised with."""

    scope = "keys"

    def inputs(self, x, ctx):
        dense = nn.Dense(1, False, kernel_init=lambda key, *_: halves(key)[:, None], name="keys")
        dense(jnp.ones(4))
        return x, ctx

    def initialise(self, adapter, base, token_ids, key):
        return {**adapter, "drawn": {"keys": halves(key)}}


def test_no_key_of_a_step_is_one_of_the_initialisation(tiny):
    config, base, _ = tiny
    key = jax.random.key(5)
    found = jax.tree.leaves(parameters.init_adapter(config, Keys(), base, key))
    used = {tuple(np.ravel(leaf).tolist()) for leaf in found}
    network, method = (tuple(halves(one).tolist()) for one in jax.random.split(key))
    assert len(used) == 3 and method in used
    used |= {network, tuple(halves(key).tolist())}
    # What dropout once had.
    assert tuple(halves(jax.random.fold_in(key, 0)).tolist()) == network
    for number in range(4):
        assert tuple(halves(step.dropout_key(key, number)).tolist()) not in used


def test_create_leaves_the_caller_arrays_alone(tiny):
    """The step may donate its state; base and adapter given by the caller stay whole."""
    config, base, batch = tiny
    method = METHODS["full"]()
    rate = optimizers.factors()
    optimizer = optimizers.adafactor(rate, multiply_by_parameter_scale=True, factored=True)
    mesh = sharding.make_mesh()
    before = jax.tree.map(np.array, base)
    with sharding.on_mesh(mesh):
        current = state.create(config, method, base, base, optimizer, mesh)
        train_step = step.make_train_step(Transformer(config, method), optimizer, rate)
        jax.jit(train_step, donate_argnums=0)(current, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, base))


def test_a_method_that_matches_nothing_is_refused(tiny):
    config, base, _ = tiny
    relu_layer = METHODS["lora"](rank=2, linears="mlp/wi")
    with pytest.raises(UserError, match="nothing would train"):
        parameters.init_adapter(config, relu_layer, base, jax.random.key(0))


def test_rates_and_seeds_share_a_program(tiny):
    config, base, batch = tiny
    method, mesh = METHODS["adalink"](rank=2, routes=3), sharding.make_mesh()
    slow, traced = optimizers.factors(base_learning_rate=0.1), []

    def step_of(rate):
        traced.append(rate)
        return step.make_train_step(Transformer(config, method), optax.sgd(rate), rate)

    def after(program, **other):
        with sharding.on_mesh(mesh):
            current = state.create(config, method, base, adapter, optax.sgd(slow), mesh)
            new, metrics = program(current, sharding.place_batch(batch, mesh, 4), **other)
        return new.trainable, float(metrics["learning_rate"])

    adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
    with sharding.on_mesh(mesh):
        current = state.create(config, method, base, adapter, optax.sgd(slow), mesh)
        bound = step.compiled(step_of, current, 0, slow)
    other = jax.tree.map(lambda rate: rate * 2, bound.keywords["rate"])
    (first, rate), (second, twice) = after(bound), after(bound, rate=other)
    assert len(traced) == 1 and np.isclose([rate, twice], [0.1, 0.2]).all()
    for start, one, two in zip(*map(jax.tree.leaves, (adapter, first, second)), strict=True):
        np.testing.assert_allclose(two - start, 2 * (one - start), rtol=1e-4, atol=1e-7)


def test_two_runs_share_a_program_where_their_steps_are_the_same(tiny):
    config, base, batch = tiny
    method, mesh = METHODS["adalink"](rank=2), sharding.make_mesh()
    adapter = parameters.init_adapter(config, method, base, jax.random.key(1))
    traced = []

    def train(run, same, rows=4):
        def step_of(rate):
            traced.append(run)
            return step.make_train_step(Transformer(config, method), optax.sgd(rate), rate)

        rate = optimizers.factors(base_learning_rate=float(run))
        with sharding.on_mesh(mesh):
            current = state.create(config, method, base, adapter, optax.sgd(rate), mesh)
            program = step.compiled(step_of, current, 0, rate, same)
            placed = sharding.place_batch(jax.tree.map(lambda x: x[:rows], batch), mesh, rows)
            return float(program(current, placed)[1]["learning_rate"])

    assert [train(1, "a"), train(2, "a")] == [1, 2] and traced == [1]
    train(3, "a", rows=2)  # A shape that the first run had not: traced by the step of this run.
    assert traced == [1, 3]
    train(4, "b"), train(5, "a"), train(6, None), train(7, None)
    assert traced == [1, 3, 4, 5, 6, 7]


def test_a_schedule_of_the_users_own_is_an_argument_too():
    assert jax.jit(lambda rate: rate(3))(optimizers.rate_argument(lambda step: step / 2)) == 1.5
