"""Optimizers against their papers' formulas, schedules, and updates that keep routes apart."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from adalink_jax.distributed import sharding
from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.models.t5 import Transformer
from adalink_jax.t5x.optimizers import trainable as trained_by_t5x
from adalink_jax.training import optimizers, state, step
from tests.tiers import mostly_slow


@pytest.mark.parametrize(
    "name", mostly_slow(["adafactor_scaled", "adafactor_unscaled"], ["adafactor_scaled"])
)
def test_full_fine_tuning_repeats_the_losses_of_t5x(golden, shared_data, name):
    config, base, batch = golden("t5_1_1_tiny")
    config = dataclasses.replace(config, dropout_rate=0.0)
    with np.load(shared_data / "golden" / "t5_1_1_tiny" / f"{name}.npz") as arrays:
        expected = dict(arrays)
    method = METHODS["full"]()
    rate = optimizers.factors(base_learning_rate=float(expected["learning_rate"]))
    optimizer = optimizers.adafactor(
        rate, multiply_by_parameter_scale=name.endswith("_scaled"), factored=True
    )
    inputs = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    features = {key: batch[key] for key in inputs}
    features["decoder_loss_weights"] = (batch[inputs[2]] > 0).astype(np.float32)
    model = Transformer(config, method)
    mesh = sharding.make_mesh()
    with sharding.on_mesh(mesh):
        current = state.create(config, method, base, base, optimizer, mesh)
        train_step = jax.jit(step.make_train_step(model, optimizer, rate, z_loss=0.0))
        losses = []
        for _ in expected["loss_sum"]:
            current, metrics = train_step(current, features, jax.random.key(0))
            losses.append(metrics["loss"] * metrics["target_tokens"])
    np.testing.assert_allclose(losses, expected["loss_sum"], rtol=1e-5)
    apply = jax.jit(model.apply, static_argnames="enable_dropout")
    logits = apply(
        {"params": current.trainable}, *(batch[key] for key in inputs), enable_dropout=False
    )
    np.testing.assert_allclose(logits, expected["logits_after"], atol=1e-3)


def numpy_adafactor(grads, param, *, scaled, factored, rate, decay=0.8, steps=3):
    """Shazeer & Stern 2018, algorithms 4 and 5, for one matrix."""
    rows, columns, whole = 0.0, 0.0, 0.0
    for t, grad in enumerate(grads[:steps]):
        beta = 1.0 - (t + 1.0) ** -decay
        square = grad.astype(np.float64) ** 2 + 1e-30
        if factored:
            rows = beta * rows + (1 - beta) * square.mean(axis=1)
            columns = beta * columns + (1 - beta) * square.mean(axis=0)
            second = np.outer(rows, columns) / rows.mean()
        else:
            second = whole = beta * whole + (1 - beta) * square
        update = grad / np.sqrt(second)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        scale = max(1e-3, np.sqrt(np.mean(param**2))) if scaled else 1.0
        param = param - rate * scale * update
    return param


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("shape", [(128, 160), (127, 160)])
def test_adafactor_against_numpy(shape, scaled):
    """Both sides of the threshold of factoring."""
    rng = np.random.default_rng(0)
    param = rng.normal(size=shape).astype(np.float32)
    grads = rng.normal(size=(3, *shape)).astype(np.float32) * rng.random((shape[0], 1))
    rate = optimizers.factors(base_learning_rate=0.1)
    optimizer = optimizers.adafactor(rate, multiply_by_parameter_scale=scaled, factored=True)
    value, opt_state = jnp.asarray(param), optimizer.init(param)
    for grad in grads:
        updates, opt_state = optimizer.update(jnp.asarray(grad, jnp.float32), opt_state, value)
        value = value + updates
    factored = min(shape) >= 128
    expected = numpy_adafactor(grads, param, scaled=scaled, factored=factored, rate=0.1)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    other = numpy_adafactor(grads, param, scaled=scaled, factored=not factored, rate=0.1)
    assert np.abs(value - other).max() > 1e-2


def numpy_adam(grads, param, rate, decay, *, b1=0.9, b2=0.999, eps=1e-8):
    """Loshchilov & Hutter 2019, algorithm 2, as PyTorch writes it: the decay first."""
    mean = square = 0.0
    for t, grad in enumerate(grads, 1):
        param = param * (1 - rate * decay)
        mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
        param = param - rate * (mean / (1 - b1**t)) / (np.sqrt(square / (1 - b2**t)) + eps)
    return param


def numpy_sgd(grads, param, rate, decay, *, momentum=0.9):
    trace = 0.0
    for grad in grads:
        trace = momentum * trace + grad
        param = param * (1 - rate * decay) - rate * trace
    return param


def numpy_lion(grads, param, rate, decay, *, b1=0.9, b2=0.99):
    """Chen et al. 2023, algorithm 2."""
    mean = 0.0
    for grad in grads:
        update = np.sign(b1 * mean + (1 - b1) * grad)
        param, mean = param - rate * (update + decay * param), b2 * mean + (1 - b2) * grad
    return param


@pytest.mark.parametrize("route", [None, 2])
@pytest.mark.parametrize(
    ("make", "expected", "decay"),
    [
        (optimizers.adamw, numpy_adam, 0.1),
        (optimizers.adam, numpy_adam, 0.0),
        (lambda rate, **given: optimizers.sgd(rate, momentum=0.9, **given), numpy_sgd, 0.1),
        (optimizers.lion, numpy_lion, 0.1),
    ],
    ids=["adamw", "adam", "sgd", "lion"],
)
def test_optimizers_against_numpy(make, expected, decay, route):
    """Matrices decay and vectors do not, where K modules lie side by side too."""
    rng = np.random.default_rng(2)
    axis = () if route is None else (3,)
    shapes = {"up": (*axis, 4, 5), "bias": (*axis, 5)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    grads = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(3)]
    rule = make(
        optimizers.factors(base_learning_rate=0.02), **({"weight_decay": decay} if decay else {})
    )
    if route is not None:
        rule = optimizers.per_module(rule, METHODS["adalink"](rank=5, routes=3))
    value = {"adalink": jax.tree.map(jnp.float32, params)}
    moments = rule.init(value)
    for grad in grads:
        updates, moments = rule.update({"adalink": jax.tree.map(jnp.float32, grad)}, moments, value)
        value = optax.apply_updates(value, updates)
    for name, param in params.items():
        right = expected([g[name] for g in grads], param, 0.02, decay if name == "up" else 0.0)
        np.testing.assert_allclose(value["adalink"][name], right, rtol=1e-5, atol=1e-6)
        wrong = expected([g[name] for g in grads], param, 0.02, 0.0 if name == "up" else 0.1)
        assert decay == 0 or np.abs(value["adalink"][name] - wrong).max() > 1e-3


def test_gradients_are_clipped_by_the_norm_of_each_module():
    """All leaves of one of K modules together; a norm that is small enough stays."""
    rng = np.random.default_rng(3)
    leaves = {"down": rng.normal(size=(3, 4, 2)), "up": rng.normal(size=(3, 2, 4))}
    sizes = np.array([0.01, 1.0, 100.0])[:, None, None]
    grads = {"adalink": {name: jnp.float32(leaf * sizes) for name, leaf in leaves.items()}}
    rule = optimizers.per_module(optax.sgd(1.0), METHODS["adalink"](rank=2, routes=3), 0.5)
    updates, _ = rule.update(grads, rule.init(grads), grads)
    for k in range(3):
        norm = np.sqrt(sum(np.sum((leaf[k] * sizes[k]) ** 2) for leaf in leaves.values()))
        for name, leaf in leaves.items():
            expected = -leaf[k] * sizes[k] * min(1.0, 0.5 / norm)
            np.testing.assert_allclose(updates["adalink"][name][k], expected, rtol=1e-5)


def test_what_the_routes_of_one_module_would_share_is_clipped_with_the_rest():
    method = METHODS["prompt_tuning"](length=2, generator="mpt")
    shapes = {"prompt": (2, 4), "rows": (1, 2), "columns": (1, 4)}
    grads = {"encoder": {"prompt_tuning": {n: jnp.ones(shape) for n, shape in shapes.items()}}}
    rule = optimizers.per_module(optax.sgd(1.0), method, 0.5)
    updates, _ = rule.update(grads, rule.init(grads), grads)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.5)


def test_routes_do_not_disturb_each_other():
    """One route's update is what it would be alone, whatever the gradients of the others."""
    rng = np.random.default_rng(1)
    rate = optimizers.factors(base_learning_rate=0.1)
    plain = optimizers.adafactor(rate, multiply_by_parameter_scale=True, factored=True)
    mapped = optimizers.per_module(plain, METHODS["adalink"](rank=130, routes=3))
    params = rng.normal(size=(3, 140, 130)).astype(np.float32)
    grads = (rng.normal(size=params.shape) * np.array([1e-3, 1, 1e3])[:, None, None]).astype("f4")
    params_tree, grads_tree = ({"adalink": {"down": leaf}} for leaf in (params, grads))
    updates, _ = mapped.update(grads_tree, mapped.init(params_tree), params_tree)
    for k in range(3):
        alone, _ = plain.update(grads[k], plain.init(params[k]), params[k])
        np.testing.assert_allclose(updates["adalink"]["down"][k], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ("constant", lambda t: 0.3),
        ("constant * linear_warmup", lambda t: 0.3 * min(1, t / 5)),
        ("constant * rsqrt_decay", lambda t: 0.3 / max(t, 5) ** 0.5),
        ("constant*linear_warmup*rsqrt_decay", lambda t: 0.3 * min(1, t / 5) / max(t, 5) ** 0.5),
        ("constant*rsqrt_normalized_decay", lambda t: 0.3 * min(1.0, 5 / max(t, 1)) ** 0.5),
        ("constant*linear_decay", lambda t: 0.3 * max(0, 10 - t) / 10),
        # transformers' get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup.
        (
            "constant*linear_warmup*linear_decay",
            lambda t: 0.3 * (t / 5 if t < 5 else max(0, (10 - t) / 5)),
        ),
        (
            "constant*linear_warmup*cosine_decay",
            lambda t: 0.3 * (t / 5 if t < 5 else (1 + math.cos(math.pi * min(1, (t - 5) / 5))) / 2),
        ),
    ],
)
def test_schedules(factors, expected):
    schedule = optimizers.factors(factors, base_learning_rate=0.3, warmup_steps=5, decay_steps=10)
    found = [float(schedule(t)) for t in range(12)]
    np.testing.assert_allclose(found, [*map(expected, range(12))], rtol=1e-5, atol=1e-7)


def test_mistaken_schedules_are_refused():
    with pytest.raises(UserError, match="did you mean 'rsqrt_decay'"):
        optimizers.factors("constant * rsqrt")
    with pytest.raises(UserError, match="warmup_steps is 0"):
        optimizers.factors("linear_warmup", warmup_steps=0)
    with pytest.raises(UserError, match="decay_steps is not set, where cosine_decay is 0"):
        optimizers.factors("constant * cosine_decay")
    with pytest.raises(UserError, match="decay_steps is 9, so linear_decay would end within the w"):
        optimizers.factors("linear_warmup * linear_decay", warmup_steps=9, decay_steps=9)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (optimizers.adamw, {"weight_decay": -0.1}, "weight_decay is -0.1; it takes a number ≥ 0"),
        (optimizers.adam, {"eps": 0}, "eps is 0; it takes a number > 0"),
        (optimizers.sgd, {"momentum": 1}, "momentum is 1; it takes a number ≥ 0 and < 1"),
        (optimizers.lion, {"b1": -1}, "b1 is -1; it takes a number ≥ 0 and < 1"),
    ],
)
def test_mistaken_settings_of_optimizers_are_refused(make, given, message):
    with pytest.raises(UserError, match=message):
        make(optimizers.factors(), **given)


def test_leaves_have_learning_rates_of_their_own():
    """LoRA+'s, and those of two parts, whose patterns see their own leaves only."""
    plus = METHODS["lora"](rank=2, rate_factors=(("*/up", 16.0), ("*/down", 0.0)))
    prompt = METHODS["prompt_tuning"](length=2, reparameterise=False)
    both = METHODS["compose"](parts=(prompt, plus), rate_factors=(("*/prompt", 3.0), ("*", 0.5)))
    leaves = {name: jnp.ones((1, 2, 2)) for name in ("up", "down")}
    params = {"encoder": {"lora": leaves, "prompt_tuning": {"prompt": jnp.ones((1, 2, 2))}}}
    one = {"encoder": {"lora": leaves}}
    for method, tree, expected in (
        (plus, one, {"up": 16.0, "down": 0.0}),
        (both, params, {"up": 8.0, "down": 0.0, "prompt": 1.5}),
    ):
        rule = optimizers.per_module(optax.sgd(0.1), method)
        updates, _ = rule.update(tree, rule.init(tree), tree)
        found = traverse_util.flatten_dict(updates, sep="/")
        for name, update in found.items():
            factor = expected[name.split("/")[-1]]
            np.testing.assert_allclose(update, -0.1 * factor * np.ones((1, 2, 2)), rtol=1e-6)
        with pytest.raises(UserError, match=r"T5X's optimizers have one learning rate, but"):
            [trained_by_t5x(method)(name, None) for name in found]
    wrong = dataclasses.replace(plus, rate_factors=(("*/upp", 2.0),))
    with pytest.raises(UserError, match=r"LoRA.rate_factors has '\*/upp', which matches no train"):
        optimizers.per_module(optax.sgd(0.1), wrong).init(one)
