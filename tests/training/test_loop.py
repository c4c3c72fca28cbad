"""The training loop: its times, on a clock that only work moves, and how it is stopped."""

import dataclasses
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from adalink_jax import signals
from adalink_jax.errors import UserError
from adalink_jax.training import loop, pace
from adalink_jax.training.state import TrainState


class Clock:
    """Stands still unless somebody works."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def works(self, seconds: float, answer):
        def work(*_):
            self.now += seconds
            return answer

        return work


@dataclasses.dataclass
class State:
    step: int = 0

    def saved(self) -> None:
        return None

    def finite(self) -> bool:
        return True


class Log:
    def __init__(self):
        self.times: dict[int, dict[str, float]] = {}

    def log(self, step, values, times=None):
        if times:
            self.times[step] = times

    def sync(self):
        pass


class Store:
    def __init__(self, save, wait=lambda: None):
        self.save = save
        self.wait = wait


@pytest.mark.parametrize("first_step", [0, 7])
def test_steps_per_second_counts_steps_and_their_time_only(monkeypatch, first_step):
    clock, log = Clock(), Log()
    monkeypatch.setattr(pace, "time", clock)

    def batches():
        while True:
            clock.now += 0.01
            yield None

    state, metrics = State(first_step), {"loss": 1.0, "gradient_norm": 1.0}
    loop.train_loop(
        state,
        clock.works(0.04, (state, metrics)),
        batches(),
        train_steps=43,
        periods=loop.Periods(eval_period=8, checkpoint_period=4, log_period=10),
        log=log,
        store=Store(clock.works(3.0, None)),
        evaluate=clock.works(5.0, {}),
    )
    assert list(log.times) == [10, 20, 30, 40, 43]
    for times in log.times.values():
        assert times["steps_per_second"] == pytest.approx(20)
        assert times["data_wait"] == pytest.approx(0.2)


def train(state, works, saved, **changes):
    """Trains to step 9 with fakes; a checkpoint every 4 steps."""

    def step(state, batch):
        state = dataclasses.replace(state, step=state.step + 1)
        works(state.step)
        return state, {"loss": 1.0, "gradient_norm": 1.0}

    store = Store(lambda number, tree: saved.append(number), lambda: saved.append("written"))
    return loop.train_loop(
        state,
        step,
        iter(range(99)),
        train_steps=9,
        periods=loop.Periods(eval_period=9, checkpoint_period=4, log_period=3),
        log=Log(),
        store=store,
        evaluate=lambda state: {},
        **changes,
    )


@pytest.mark.parametrize(("step", "expected"), [(3, [3]), (4, [4]), (5, [4, 5])])
def test_a_signal_stops_after_the_step_which_is_saved_once(step, expected, capfd):
    def works(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    saved = []
    with pytest.raises(signals.Stopped, match=f"^stopped at step {step}; the same") as stopped:
        train(State(), works, saved)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert saved == [*expected, "written"]


def test_hosts_stop_where_all_ask(capfd):
    """Another host's signal comes at step 2; the next step that logs, saves or evaluates is 3."""
    asked, saved = [], []

    def agree(number):
        asked.append(number)
        return signal.SIGHUP

    with pytest.raises(signals.Stopped, match="stopped at step 3") as stopped:
        train(State(), lambda number: None, saved, agree=agree)
    assert (stopped.value.code, asked, saved) == (129, [0], [3, "written"])


def test_after_the_last_step_a_signal_changes_nothing(capfd):
    saved = []
    train(
        State(),
        lambda number: os.kill(os.getpid(), signal.SIGTERM) if number == 9 else None,
        saved,
    )
    assert saved == [4, 8, 9, "written"]


def test_what_overflows_is_neither_evaluated_nor_saved(monkeypatch):
    monkeypatch.setattr(State, "finite", lambda state: state.step < 8)
    monkeypatch.setattr(Store, "latest_step", lambda store: 4, raising=False)
    saved = []
    with pytest.raises(UserError, match="what step 8 has trained overflows.*TRAIN_STEPS=4 ends"):
        train(State(), lambda number: None, saved)
    assert saved == [4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
def test_a_state_knows_whether_it_is_finite(value):
    def state(weight=1.0, moment=1.0):
        trainable, moments = ({"a": jnp.array([0.5, x], jnp.float32)} for x in (weight, moment))
        return TrainState(jnp.int32(3), trainable, (jnp.int32(3), moments), {})

    assert state().finite() and state(weight=1e18, moment=1e38).finite()
    assert not state(weight=value).finite()
    assert state(moment=value).finite() == np.isfinite(value)
