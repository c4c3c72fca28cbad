"""Training steps in T5X and in this project's runner, from one start."""

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("t5x")

RATE = 1e-3
# As gin/t5x/optimizers/adapter.gin sets them.
RULES = {"routes": "batch", "adapter_embed": "none", "rank": "none", "prompt": "none"}


def batches(padded, routes: int, count: int):
    rng = np.random.default_rng(1)
    for step in range(count):
        batch = padded(6, seed=10 + step)
        if routes > 1:
            rows = rng.integers(0, routes, (6, 1)).astype(np.int32)
            batch["encoder_routes"] = np.repeat(rows, 8, axis=1)
            batch["decoder_routes"] = np.repeat(rows, 6, axis=1)
        yield batch


def optimizer(method, rules):
    from flax import traverse_util
    from t5x import adafactor, optimizers

    from adalink_jax.t5x.optimizers import trainable

    own = traverse_util.ModelParamTraversal(trainable(method))
    inner = adafactor.Adafactor(
        decay_rate=0.8,
        step_offset=0,
        multiply_by_parameter_scale=False,
        logical_factor_rules=rules,
    )
    return optimizers.MultiOptimizer(((own, inner),))


@pytest.fixture
def in_t5x(model, padded, tmp_path):
    """Five steps of T5X's trainer: (method, rules) -> first and last parameters, losses."""

    def run(method, rules):
        import jax
        from t5x import partitioning, trainer, utils

        ours = model(
            "1.1",
            method,
            optimizer(method, rules),
            loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
            z_loss=1e-4,
        )
        steps = list(batches(padded, method.routes, 5))
        partitioner = partitioning.PjitPartitioner(
            num_partitions=1,
            logical_axis_rules=partitioning.standard_logical_axis_rules(
                additional_rules=[(axis, None) for axis in RULES]
            ),
        )
        start = utils.TrainStateInitializer(
            optimizer_def=ours.optimizer_def,
            init_fn=ours.get_initial_variables,
            input_shapes={name: value.shape for name, value in steps[0].items()},
            partitioner=partitioner,
        )
        state = start.from_scratch(jax.random.PRNGKey(0))
        first = jax.device_get(state.params)
        training = trainer.Trainer(
            ours,
            state,
            partitioner,
            eval_names=(),
            summary_dir=str(tmp_path),
            train_state_axes=start.train_state_axes,
            rng=jax.random.PRNGKey(1),
            learning_rate_fn=lambda step: RATE,
            num_microbatches=None,
        )
        losses = []
        with training:
            for k, batch in enumerate(steps):
                metrics = training.train(iter([batch]), 1, start_step=k).result()
                losses.append(float(metrics["loss"].value))
        return first, jax.device_get(training.train_state.params), losses

    return run


def in_our_runner(config, method, first, steps):
    """The same steps by this project's training step: last adapter, losses."""
    import jax

    from adalink_jax.distributed import sharding
    from adalink_jax.methods.base import split
    from adalink_jax.models.t5 import Transformer
    from adalink_jax.training import optimizers, state
    from adalink_jax.training.step import make_train_step

    rate = optimizers.factors(base_learning_rate=RATE)
    plain = optimizers.adafactor(rate, multiply_by_parameter_scale=False, factored=False)
    transformation = optimizers.per_module(plain, method)
    adapter, base = split(first, method)
    mesh, losses = sharding.make_mesh(), []
    with sharding.on_mesh(mesh):
        current = state.create(config, method, base, adapter, transformation, mesh)
        step = make_train_step(Transformer(config, method), transformation, rate)
        step = jax.jit(step)
        for batch in steps:
            weights = batch["decoder_loss_weights"].astype(np.float32)
            batch = {**batch, "decoder_loss_weights": weights}
            current, metrics = step(current, batch, jax.random.key(0))
            losses.append(float(metrics["loss"]))
    return jax.device_get(current.trainable), losses


def compared(in_t5x, model, padded, method, rules):
    """Differences of losses (relative) and of the adapter (to its largest value)."""
    import jax
    from flax import core

    from adalink_jax.methods.base import split

    first, last, losses = in_t5x(method, rules)
    first, last = core.unfreeze(first), core.unfreeze(last)
    config = model("1.1", method).module.config
    steps = batches(padded, method.routes, 5)
    ours, our_losses = in_our_runner(config, method, first, steps)
    theirs, frozen = split(last, method)
    started, start_frozen = split(first, method)
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(start_frozen), strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = list(zip(jax.tree.leaves(theirs), jax.tree.leaves(started), strict=True))
    assert all(np.abs(one - other).max() > RATE for one, other in pairs)  # All of it has moved.
    loss = np.abs(np.array(our_losses) / losses - 1).max()
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    adapter = max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs)
    print(f"{method.scope}, {method.routes} routes: loss {loss:.1e}, adapter {adapter:.1e}")
    return loss, adapter


def test_five_steps_of_adalink_agree(in_t5x, model, padded):
    """One route, no axis factored: as T5X would be told by hand."""
    from adalink_jax.methods.adalink import AdaLink

    none = dict.fromkeys(RULES, "none")
    loss, adapter = compared(in_t5x, model, padded, AdaLink(rank=4), none)
    assert loss < 1e-3 and adapter < 1e-3


@pytest.mark.parametrize("scope", ["adalink", "lora", "prompt_tuning"])
def test_five_steps_with_the_gin_files_rules_agree(scope, in_t5x, model, padded):
    """Several routes as well: each with second moments and clipping of its own."""
    from adalink_jax.methods import METHODS

    fields = {
        "adalink": {"rank": 4, "routes": 3},
        "lora": {"rank": 2, "routes": 3},
        "prompt_tuning": {"length": 3, "bottleneck": 4, "dropout_rate": 0.0, "routes": 2},
    }
    loss, adapter = compared(in_t5x, model, padded, METHODS[scope](**fields[scope]), RULES)
    assert loss < 1e-3 and adapter < 1e-3


def test_unfactored_routes_would_clip_each_other(in_t5x, model, padded):
    """Why the gin file says 'batch' of the routes and not 'none'."""
    from adalink_jax.methods.adalink import AdaLink

    none = dict.fromkeys(RULES, "none")
    _, adapter = compared(in_t5x, model, padded, AdaLink(rank=4, routes=3), none)
    assert adapter > 1e-2


def test_the_gin_file_has_these_rules():
    import ast
    import re

    from adalink_jax.config.gin_files import gin_folder

    text = (gin_folder() / "t5x/optimizers/adapter.gin").read_text(encoding="utf-8")
    found = re.search(r"logical_factor_rules = (\{.*?\})", text, re.DOTALL).group(1)
    assert ast.literal_eval(found) == RULES
