"""Which step is kept, when a run stops, and the average, on states of one number."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax.errors import UserError
from adalink_jax.methods import METHODS
from adalink_jax.runs import training
from adalink_jax.runs.options import Evaluation
from adalink_jax.training import loop
from adalink_jax.training.selection import Selection, tracking
from adalink_jax.training.state import TrainState
from adalink_jax.training.step import _averaged


def at(step: int, value: float = 0.0, **more) -> TrainState:
    return TrainState(jnp.int32(step), {"a": jnp.full((2,), value)}, (), {}, **more)


def after(selection: Selection, scores) -> TrainState:
    """The state after evaluations with these scores, at steps 0, 1 …; the weights are 10·step."""
    state = tracking(at(0), average=False, best=True)
    for step, score in enumerate(scores):
        state = selection.judged(at(step, 10.0 * step, best=state.best), score)
    return state


@pytest.mark.parametrize(
    ("keep", "scores", "step", "waited"),
    [
        ("best", [1.0, 3.0, 2.0], 1, 1),
        ("best", [1.0, 3.0, 3.0, 3.0], 1, 2),  # An equal one is not better.
        ("best", [4.0, 3.0], 0, 1),  # The start counts.
        ("lowest", [1.0, 0.5, 0.7], 1, 1),
        ("best", [np.nan, np.nan, 2.0, np.nan], 2, 1),
        ("best", [np.nan, np.nan], 1, 0),  # Nothing is known, so trained is as good as the start.
        ("best", [np.nan] * 5, 1, 3),  # But waiting for better counts.
        ("best", [np.nan, np.nan, np.nan, 2.0, np.nan], 3, 1),
        ("best", [50.0, 50.0 + 1e-7], 0, 1),  # Equal in a checkpoint's float32.
    ],
)
def test_the_best_is_kept_with_its_step(keep, scores, step, waited):
    state = after(Selection(keep=keep), scores)
    assert (int(state.best["step"]), int(state.best["waited"])) == (step, waited)
    np.testing.assert_array_equal(state.kept["a"], [10.0 * step] * 2)
    known = np.inf if np.isnan(scores[step]) else np.float32(scores[step])
    assert float(state.best["score"]) == known


def test_it_stops_after_so_many_evaluations_without_a_better_score():
    selection, scores = Selection(keep="best", patience=2), [1.0, 3.0, 3.0, 2.0]
    over = [selection.is_over(after(selection, scores[:n])) for n in range(5)]
    assert over == [False, False, False, False, True]
    assert not Selection(keep="best").is_over(after(selection, [1.0] * 9))


def test_what_is_kept_is_a_copy():
    """For the train step gives the memory of its state to the next."""
    state = after(Selection(keep="best"), [1.0])
    step = jax.jit(lambda state: state, donate_argnums=0)
    assert (
        len({x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.trainable, state.kept))})
        == 2
    )
    np.testing.assert_array_equal(step(state).kept["a"], [0.0, 0.0])


def test_the_average_is_of_all_steps_and_not_of_the_start():
    """Of PyTorch's and Adam's form: Σ dⁿ⁻ⁱ·pᵢ / Σ dⁿ⁻ⁱ."""
    values, decay = np.random.default_rng(0).normal(size=9), 0.9
    average = {"a": jnp.float32(100.0)}
    for n, value in enumerate(values, 1):
        average = _averaged(average, {"a": jnp.float32(value)}, jnp.int32(n), decay)
        weights = decay ** np.arange(n)[::-1]
        np.testing.assert_allclose(average["a"], np.average(values[:n], weights=weights), rtol=1e-5)
    state = at(3, average={"a": jnp.ones(2)})
    assert state.kept is state.result is state.average
    assert "average" in state.saved() and "best" not in state.saved()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 3}, "Selection.patience is 3, but KEEP is None.*set KEEP=best"),
        ({"metric": "eval/a"}, "Selection.metric is 'eval/a', but KEEP is None"),
        ({"keep": "best", "patience": 0}, "Selection.patience is 0; it takes a whole number ≥ 1"),
        ({"keep": "beast"}, "Selection.keep is 'beast'; it takes .*; did you mean 'best'"),
        ({"train_examples": 0}, "Selection.train_examples is 0"),
    ],
)
def test_mistakes_are_one_line(given, message):
    with pytest.raises(UserError, match=message):
        Selection(**given)


class Log:
    def __init__(self):
        self.steps: list[int] = []

    def log(self, step, values, times=None):
        if "score" in values:
            self.steps.append(step)

    def sync(self):
        pass


class Store:
    def __init__(self):
        self.steps: list[int] = []

    def save(self, step, tree):
        self.steps.append(step)

    def wait(self):
        pass


@pytest.mark.parametrize(
    ("first", "ends", "evaluated", "saved"),
    [(0, 6, [0, 2, 4, 6], [5, 6]), (3, 4, [4], [4]), (0, 99, [0, 2, 4, 6, 8, 9], [5, 9])],
)
def test_the_loop_evaluates_the_start_and_ends_where_it_is_told(
    capfd, first, ends, evaluated, saved
):
    log, store = Log(), Store()
    state = loop.train_loop(
        at(first),
        lambda state, _: (at(int(state.step) + 1), {"loss": 1.0, "gradient_norm": 1.0}),
        iter(range(99)),
        train_steps=9,
        periods=loop.Periods(eval_period=2, checkpoint_period=5, log_period=100),
        log=log,
        store=store,
        evaluate=lambda state: {"score": 0.0},
        judge=lambda state: (state, int(state.step) == ends),
    )
    assert (log.steps, store.steps, int(state.step)) == (evaluated, saved, min(ends, 9))


@pytest.mark.parametrize(("few_shot", "expected"), [(None, 8), (3, 3), (20, 8)])
def test_training_examples_that_are_scored_are_trained_on(few_shot, expected):
    asked = []

    def new(**settings):
        asked.append(settings.get("few"))
        return types.SimpleNamespace(identity={"mini_cola": {"validation": 1}})

    source = types.SimpleNamespace(
        tasks=("mini_cola",), untrained=(), held_out=None, few_shot=few_shot, pictures=None
    )
    method, selection = METHODS["adalink"](rank=2), Selection(train_examples=8)
    training._Scorer(new, source, method, Evaluation(), selection)  # pyright: ignore
    assert asked == [None, expected]
