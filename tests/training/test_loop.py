"""The training loop's times, on a clock that only training, evaluating and saving move."""

import dataclasses

import pytest

from adalink_jax.training import loop


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


class Log:
    def __init__(self):
        self.times: dict[int, dict[str, float]] = {}

    def log(self, step, values, times=None):
        if times:
            self.times[step] = times

    def sync(self):
        pass


class Store:
    def __init__(self, save):
        self.save = save


@pytest.mark.parametrize("first_step", [0, 7])
def test_steps_per_second_counts_steps_and_their_time_only(monkeypatch, first_step):
    clock, log = Clock(), Log()
    monkeypatch.setattr(loop, "time", clock)

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
