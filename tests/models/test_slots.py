"""Rows that begin and end on their own in slots, against greedy decoding of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.methods import METHODS
from adalink_jax.methods.base import merge
from adalink_jax.models import decoding, slots
from adalink_jax.models.stacking import stack_layers
from adalink_jax.models.t5 import Transformer
from tests.methods.toys import blank, example
from tests.tiers import mostly_slow

LENGTH = 6
ROUTED = [name for name in METHODS if example(name).routed and hasattr(example(name), "routes")]


def choice(count, temperature=0.0, top_p=1.0, seed=0):
    return slots.Choice(jnp.full(count, temperature), jnp.full(count, top_p), jnp.full(count, seed))


@pytest.mark.parametrize("name", mostly_slow(ROUTED, ["adalink"]))
@pytest.mark.parametrize("stacked", mostly_slow([False, True], [False]))
def test_rows_that_come_and_go_are_as_alone(tiny, name, stacked):
    config, base, _ = tiny
    method = example(name)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), blank(config, method)
    )
    params = merge(base, tree)
    params = stack_layers(params) if stacked else params
    model = Transformer(config, method)
    inputs = rng.integers(2, config.vocab_size, (5, 7)).astype(np.int32)
    inputs[1, 4:] = inputs[3, 2:] = 0
    routes = np.arange(5) % method.routes
    expected = np.asarray(decoding.greedy(model, params, inputs, LENGTH, routes=routes))
    # Slots of longer inputs, that are filled at different times and used twice.
    state = slots.empty(model, params, 4, 9, LENGTH)
    state = slots.begin(model, params, inputs[:2], state, np.array([2, 0]), routes[:2], choice(2))
    state, first = slots.advance(model, params, state, 2)
    places = np.array([3, 99])  # The second row only fills up the batch.
    state = slots.begin(model, params, inputs[2:4], state, places, routes[2:4], choice(2))
    state, second = slots.advance(model, params, state, 4)
    state = slots.begin(model, params, inputs[3:], state, np.array([2, 0]), routes[3:], choice(2))
    _, third = slots.advance(model, params, state, 6)
    found = np.stack([
        np.concatenate([first[2], second[2]]), np.concatenate([first[0], second[0]]),
        np.concatenate([second[3], third[3]])[:LENGTH], third[2], third[0],
    ])  # fmt: skip
    for row, alone in zip(found.tolist(), expected.tolist(), strict=True):
        end = alone.index(1) + 1 if 1 in alone else LENGTH
        assert row[:end] == alone[:end]


def test_a_slot_keeps_nothing_of_the_row_before(tiny):
    """Not even numbers that are no numbers."""
    config, base, _ = tiny
    model, inputs = Transformer(config), np.full((1, 4), 7, np.int32)
    routes = np.zeros(1, np.int32)
    expected = np.asarray(decoding.greedy(model, base, inputs, LENGTH))[0]
    state = slots.empty(model, base, 1, 4, LENGTH)
    state = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, state
    )
    state = slots.begin(model, base, inputs, state, np.array([0]), routes, choice(1))
    _, tokens = slots.advance(model, base, state, LENGTH)
    np.testing.assert_array_equal(tokens[0], expected)


def test_draws_are_of_the_softmax_and_of_the_most_likely_tokens_alone():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    count = 4000

    def drawn(temperature, top_p):
        rows = slots.Choice(jnp.full(count, temperature), jnp.full(count, top_p), jnp.arange(count))
        tokens = slots._chosen(jnp.tile(logits, (count, 1)), rows, jnp.zeros(count, jnp.int32))
        return np.bincount(tokens, minlength=4) / count

    np.testing.assert_allclose(drawn(1.0, 1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(drawn(1.0, 0.7), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(drawn(1.0, 0.5), [1, 0, 0, 0])
    squared = np.asarray([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(drawn(0.5, 1.0), squared / squared.sum(), atol=0.03)
    np.testing.assert_allclose(drawn(0.0, 1.0), [1, 0, 0, 0])


def test_numbers_that_are_not_finite_are_said(tiny):
    config, base, _ = tiny
    model, inputs = Transformer(config), np.full((2, 4), 7, np.int32)
    broken = jax.tree.map(lambda x: x * jnp.nan, base)
    state = slots.empty(model, base, 2, 4, LENGTH)
    zeros = np.zeros(2, np.int32)
    state = slots.begin(model, broken, inputs, state, np.arange(2), zeros, choice(2))
    _, tokens = slots.advance(model, broken, state, 1)
    assert np.all(tokens == decoding.BROKEN)
