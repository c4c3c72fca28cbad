"""A frozen base in bfloat16 or int8: what is stored so, and what the network computes with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from adalink_jax.distributed import sharding
from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models import parameters
from adalink_jax.models.t5 import Transformer
from adalink_jax.tools.cost import counts
from adalink_jax.training import optimizers, state, step
from tests.methods.toys import OF_TEXT, example
from tests.tiers import mostly_slow

ADAPTERS = [name for name in OF_TEXT if not METHODS[name].trains_base]
STORED = ("bfloat16", "int8")
RATE = optimizers.factors(base_learning_rate=0.01)
OPTIMIZER = optimizers.adafactor(RATE, multiply_by_parameter_scale=False, factored=False)


def started(tiny, name: str, frozen_dtype: str):
    """A state before its first step, and the compiled step."""
    config, base, _ = tiny
    method = example(name)
    optimizer = optimizers.per_module(OPTIMIZER, method)
    mesh = sharding.make_mesh()
    with sharding.on_mesh(mesh):
        adapter = parameters.init_adapter(config, method, base, jax.random.key(3))
        current = state.create(
            config, method, base, adapter, optimizer, mesh, frozen_dtype=frozen_dtype
        )
        network = Transformer(config, method)
        train_step = step.compiled(
            lambda rate: step.make_train_step(network, optimizer, rate), current, 0, RATE
        )
        return current, train_step


def logits(config, method, params, batch):
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    apply = jax.jit(Transformer(config, method).apply, static_argnames="enable_dropout")
    return apply({"params": params}, *(batch[name] for name in names), enable_dropout=False)


def values_of(leaf) -> np.ndarray:
    """What a stored leaf means, in float32, by NumPy alone."""
    if hasattr(leaf, "scale"):
        return np.asarray(leaf.qvalue, np.float32) * np.asarray(leaf.scale)
    return np.asarray(leaf, np.float32)


@pytest.mark.parametrize(
    ("name", "frozen_dtype"),
    mostly_slow(
        [(name, dtype) for name in ADAPTERS for dtype in STORED],
        [("adalink", "int8"), ("lora", "bfloat16")],
    ),
)
def test_only_what_is_frozen_is_stored_so_and_the_rest_trains(tiny, name, frozen_dtype):
    current, train_step = started(tiny, name, frozen_dtype)
    stored = {leaf.dtype for leaf in jax.tree.leaves(current.frozen)}
    # Of an int8 base, float32 is a scale for each output.
    of_int8 = {jnp.dtype("int8"), jnp.dtype("float32"), jnp.dtype("bfloat16")}
    assert stored == ({jnp.dtype("bfloat16")} if frozen_dtype == "bfloat16" else of_int8)
    batch = {k: v for k, v in tiny[2].items() if "routes" not in k}
    first = None
    for _ in range(4):
        current, metrics = train_step(current, batch)
        first = first or float(metrics["loss"])
    assert float(metrics["loss"]) < first
    floats = jax.tree.leaves((current.trainable, current.opt_state))
    assert {leaf.dtype for leaf in floats} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@pytest.mark.parametrize("frozen_dtype", STORED)
def test_the_network_computes_with_what_is_stored_and_nothing_else_is_rounded(tiny, frozen_dtype):
    """Against the same weights, rounded beforehand and stored as float32."""
    config, base, batch = tiny
    method = METHODS["adalink"](rank=2)
    current, _ = started(tiny, "adalink", frozen_dtype)
    flat = traverse_util.flatten_dict(current.frozen)
    rounded = traverse_util.unflatten_dict({name: values_of(leaf) for name, leaf in flat.items()})
    found = logits(config, method, merge(current.frozen, current.trainable), batch)
    expected = logits(config, method, merge(rounded, current.trainable), batch)
    # One operation alone is in bfloat16: the layer norms' scales, which here are ones.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Weights are off by up to 2^-9 of themselves, in int8 by 1/255 of the largest; the logits
    # of a T5 by a few times that.
    kernels = traverse_util.flatten_dict(jax.device_get(base))
    for name, leaf in flat.items():
        largest = np.abs(kernels[name]).max(axis=-2, keepdims=True) if leaf.ndim > 1 else 1
        bound = largest / 254 if hasattr(leaf, "scale") else np.abs(kernels[name]) * 2**-8
        assert np.all(np.abs(values_of(leaf) - kernels[name]) <= bound), name
    exact = np.asarray(logits(config, method, merge(base, current.trainable), batch))
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < {"bfloat16": 2**-6, "int8": 2**-5}[frozen_dtype]


@pytest.mark.parametrize(
    ("frozen_dtype", "dtype"),
    mostly_slow(
        [(stored, d) for stored in ("float32", *STORED) for d in ("float32", "bfloat16")],
        [("float32", "bfloat16"), ("int8", "bfloat16")],
    ),
)
def test_no_cast_of_a_scanned_base_is_kept_for_the_backward_pass(tiny, frozen_dtype, dtype):
    """It would be a second base, in the dtype of the activations."""
    # Sizes that no array of activations has.
    sizes = {"num_decoder_layers": 2, "emb_dim": 20, "head_dim": 7, "mlp_dim": 26}
    config = dataclasses.replace(tiny[0], scan_layers=True, dtype=jnp.dtype(dtype), **sizes)
    kernels = {(2, *shape) for shape in ((20, 14), (14, 20), (20, 26), (26, 20))}
    method = METHODS["adalink"](rank=2)
    mesh = sharding.make_mesh()
    with sharding.on_mesh(mesh):
        abstract = state.abstract_state(config, method, OPTIMIZER, mesh, frozen_dtype=frozen_dtype)
        train_step = step.make_train_step(Transformer(config, method), OPTIMIZER, RATE)
        batch = {k: v for k, v in tiny[2].items() if "routes" not in k}
        jaxpr = jax.make_jaxpr(train_step)(abstract, batch, jax.random.key(0)).jaxpr
    # What is stored comes out of the forward scan as it goes in, and is not copied.
    kept = {leaf.dtype for leaf in results_of_scans(jaxpr) if leaf.shape in kernels}
    assert kept == {jnp.dtype(frozen_dtype)}


def results_of_scans(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield from (variable.aval for variable in equation.outvars)
        for inner in counts._inner_jaxprs(equation):
            yield from results_of_scans(inner)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("frozen_dtype", STORED)
def test_shapes_are_told_without_arrays(tiny, frozen_dtype, scan_layers):
    config = dataclasses.replace(tiny[0], scan_layers=scan_layers)
    method = METHODS["adalink"](rank=2)
    mesh, layout = sharding.make_mesh(), sharding.Layout(fully_sharded=True)
    given = (mesh, layout, frozen_dtype)
    with sharding.on_mesh(mesh):
        adapter = parameters.init_adapter(config, method, tiny[1], jax.random.key(0))
        made = state.create(config, method, tiny[1], adapter, OPTIMIZER, *given)
        told = state.abstract_state(config, method, OPTIMIZER, *given)

    def facts(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    assert facts(made) == facts(told)
