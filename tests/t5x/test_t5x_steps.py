"""Training steps in T5X and in this project's runner, from one start: recorded, and live."""

import numpy as np
import pytest

from tests.t5x import recorded
from tests.tiers import mostly_slow

RATE = 1e-3
# As gin/t5x/optimizers/adapter.gin sets them.
RULES = {"routes": "batch", "adapter_embed": "none", "rank": "none", "prompt": "none",
         "adapter_vocab": "none", "image_width": "none", "terms": "none"}  # fmt: skip
UNFACTORED = dict.fromkeys(RULES, "none")
# Name of a run -> its method, the method's settings, and what of Adafactor it sets in T5X. Of
# several routes each has second moments and clipping of its own.
RUNS = {
    "adalink": ("adalink", {"rank": 4}, UNFACTORED),
    "adalink_routes": ("adalink", {"rank": 4, "routes": 3}, RULES),
    "lora_routes": ("lora", {"rank": 2, "routes": 3}, RULES),
    "prompt_routes": (
        "prompt_tuning",
        {"length": 3, "bottleneck": 4, "dropout_rate": 0.0, "routes": 2},
        RULES,
    ),
    "full_scaled": ("full", {}, True),
    "full_unscaled": ("full", {}, False),
}


def method_of(run: str):
    from adalink_jax.methods import METHODS

    return METHODS[RUNS[run][0]](**RUNS[run][1])


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
    """T5X's: Adafactor for the adapter, or, with a bool in place of rules, for everything."""
    from flax import traverse_util
    from t5x import adafactor, optimizers

    from adalink_jax.t5x.optimizers import trainable

    if method.trains_base:
        return adafactor.Adafactor(
            decay_rate=0.8,
            step_offset=0,
            multiply_by_parameter_scale=rules,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        )
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
    """Five steps of T5X's trainer: (method, rules) -> first state, last parameters, losses."""

    def run(method, rules):
        import jax
        from flax import core
        from t5x import partitioning, trainer, utils

        from adalink_jax.methods.base import merge, split

        ours = model(
            "1.1",
            None if method.trains_base else method,
            optimizer(method, rules),
            plain=method.trains_base,  # T5X's own network.
            loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
            z_loss=1e-4,
        )

        steps = list(batches(padded, getattr(method, "routes", 1), 5))
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
            input_types={name: value.dtype for name, value in steps[0].items()},
            partitioner=partitioner,
        )
        state = start.from_scratch(jax.random.PRNGKey(0))
        params = core.unfreeze(jax.device_get(state.params))
        adapter, base = ({}, params) if method.trains_base else split(params, method)
        params = merge(recorded.parameters(base), adapter)
        state = state.replace_params(core.freeze(jax.tree.map(jax.numpy.asarray, params)))
        first = jax.device_get(state.state_dict())
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
        return first, core.unfreeze(jax.device_get(training.train_state.params)), losses

    return run


def in_our_runner(method, adapter, steps, scaled=False):
    """The same steps by this project's training step: what it trained, losses."""
    import jax

    from adalink_jax.distributed import sharding
    from adalink_jax.methods.base import Method
    from adalink_jax.models.parameters import abstract_params
    from adalink_jax.models.t5 import Transformer
    from adalink_jax.training import optimizers, state
    from adalink_jax.training.step import make_train_step

    config = recorded.config("1.1")
    base = recorded.parameters(abstract_params(config, Method())[0])
    rate = optimizers.factors(base_learning_rate=RATE)
    transformation = optimizers.adafactor(
        rate, multiply_by_parameter_scale=scaled, factored=method.trains_base
    )
    if method.trains_base:
        adapter = base
    else:
        transformation = optimizers.per_module(transformation, method)
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


def norms(tree) -> dict[str, np.ndarray]:
    """The norm of every leaf."""
    import jax

    return jax.tree.map(lambda leaf: np.linalg.norm(np.asarray(leaf)), tree)


def differences(method, expected, scaled=False):
    """Of our steps from those recorded: losses (relative), the adapter (to its largest value)."""
    import jax

    stacked = recorded.tree("batches", expected)
    steps = [{name: rows[k] for name, rows in stacked.items()} for k in range(5)]
    adapter = recorded.tree("start", expected)
    last, losses = in_our_runner(method, adapter, steps, scaled)
    loss = np.abs(np.array(losses) / expected["losses"] - 1).max()
    last = norms(last) if method.trains_base else last
    pairs = jax.tree.map(lambda *pair: pair, last, recorded.tree("last", expected))
    pairs = jax.tree.leaves(pairs, is_leaf=lambda node: isinstance(node, tuple))
    adapter = max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs)
    print(f"{method}: loss {loss:.1e}, adapter {adapter:.1e}")
    return loss, adapter


@pytest.mark.parametrize("run", mostly_slow(RUNS, ["adalink_routes"]))
def test_five_steps_are_those_recorded(run):
    expected = recorded.arrays(f"steps_{run}")
    loss, adapter = differences(method_of(run), expected, scaled=RUNS[run][2] is True)
    # Adafactor divides by small numbers: one kind of CPU is 1.3e-4 from another.
    assert loss < 1e-5 and adapter < 5e-4


@pytest.mark.parametrize("run", RUNS)
def test_t5x_trains_and_keeps_moments_of_what_the_method_trains(run):
    """The names in T5X's training state, which are those in its checkpoints."""
    from flax import traverse_util

    from adalink_jax.models.parameters import abstract_params

    method, stated = method_of(run), recorded.values("states")[run]
    flat = traverse_util.flatten_dict(
        dict(abstract_params(recorded.config("1.1"), method)[0]), sep="/"
    )
    trained = {name for name in flat if method.trainable(name)}
    assert set(stated["adapter"]) == flat.keys() - recorded.values("network_1.1").keys()
    assert set(stated["moments"]) == trained and bool(trained)


def recorded_run(in_t5x, padded, method, rules):
    """What T5X does, the names with optimizer state in its training state, and those not T5's."""
    import jax
    from flax import traverse_util

    from adalink_jax.methods.base import split

    first, last, losses = in_t5x(method, rules)
    target = traverse_util.flatten_dict(first["target"], sep="/").keys()
    states = traverse_util.flatten_dict(first["state"]["param_states"], sep="/")
    # Arrays lie below the name of a parameter; without any, its name holds None.
    moments = sorted({name.rpartition("/")[0] for name in states} & target)
    base = recorded.values("network_1.1").keys()
    assert base <= target
    steps = list(batches(padded, getattr(method, "routes", 1), 5))
    stacked = {name: np.stack([batch[name] for batch in steps]) for name in steps[0]}
    found = {"losses": np.array(losses), **recorded.flat("batches", stacked)}
    if method.trains_base:
        return {**found, **recorded.flat("last", norms(last))}, moments, sorted(target - base)
    trees = [split(params, method) for params in (first["target"], last)]
    (started, start_frozen), (theirs, frozen) = trees
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(start_frozen), strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = list(zip(jax.tree.leaves(theirs), jax.tree.leaves(started), strict=True))
    assert all(np.abs(one - other).max() > RATE for one, other in pairs)  # All of it has moved.
    found |= {**recorded.flat("start", started), **recorded.flat("last", theirs)}
    return found, moments, sorted(target - base)


def test_t5x_takes_the_steps_recorded(in_t5x, padded, update_goldens):
    states = {}
    for run, (_, _, rules) in RUNS.items():
        found, moments, adapter = recorded_run(in_t5x, padded, method_of(run), rules)
        states[run] = {"moments": moments, "adapter": adapter}
        update_goldens(f"t5x/steps_{run}.npz", found, 1e-4)
    update_goldens("t5x/states.json", states)


def test_unfactored_routes_would_clip_each_other(in_t5x, padded):
    """Why the gin file says 'batch' of the routes and not 'none'."""
    from adalink_jax.methods.adalink import AdaLink

    method = AdaLink(rank=4, routes=3)
    found, *_ = recorded_run(in_t5x, padded, method, UNFACTORED)
    assert differences(method, found)[1] > 1e-2


def test_the_gin_file_has_these_rules():
    import ast
    import re

    from adalink_jax.config.gin_files import gin_folder

    text = (gin_folder() / "t5x/optimizers/adapter.gin").read_text(encoding="utf-8")
    found = re.search(r"logical_factor_rules = (\{.*?\})", text, re.DOTALL).group(1)
    assert ast.literal_eval(found) == RULES
