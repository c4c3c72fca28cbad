"""How fast a run trains: on a clock that only work moves, with operations counted another way."""

import jax
import numpy as np
import pytest

from adalink_jax import progress
from adalink_jax.methods import METHODS
from adalink_jax.tools.cost.counts import Shape, traced_flops
from adalink_jax.training import flops, loop, pace
from tests.training.test_loop import Clock, Log, State, Store

METRICS = {"loss": 1.0, "gradient_norm": 1.0}


class Timed(Clock):
    """One clock for steps and for bars."""

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Timed()
    for module in (pace, progress):
        monkeypatch.setattr(module, "time", clock)
    return clock


def train(clock, lengths, compiling, measured, log=None, steps=None, scores=(), first=0, **periods):
    """Trains with fakes: 0.04 s a step, `compiling` seconds before the first of each length."""
    met = set()

    def step(state, batch):
        clock.now += 0.04
        if batch.shape not in met:
            met.add(batch.shape)
            clock.now += compiling
        return state, METRICS

    def batches():
        for length in lengths:
            clock.now += 0.01
            yield np.zeros((2, length))

    results = iter(scores)
    chosen = {"eval_period": 10**6, "checkpoint_period": 10**6, "log_period": 10, **periods}
    loop.train_loop(
        State(first),
        step,
        batches(),
        train_steps=first + len(lengths) if steps is None else steps,
        periods=loop.Periods(**chosen),
        log=log or Log(),
        store=Store(clock.works(3.0, None)),
        evaluate=lambda state: (clock.works(5.0, None)(), next(results, {}))[1],
        pace=measured,
    )


def test_rates_are_those_of_the_steps_whatever_compiles(clock):
    lengths = [16, 16, 24, 16] * 20
    measured = []
    for compiling in (0.0, 60.0):
        log = Log()
        work = lambda number: pace.Work(30, 2 * lengths[number], 1e6)  # noqa: E731
        train(clock, lengths, compiling, pace.Pace(work, 2, peak=1e8), log)
        measured.append(log.times)
    fast, slow = measured
    assert list(fast) == list(slow) == list(range(10, 81, 10))
    for step, times in fast.items():
        assert times == pytest.approx(slow[step])
        assert times["steps_per_second"] == pytest.approx(20)
        assert times["data_wait"] == pytest.approx(0.2)
        assert times["tokens_per_second"] == pytest.approx(600)
        assert times["mfu"] == pytest.approx(20 * 1e6 / 1e8)
    padded = [2 * length for length in lengths[30:40]]
    assert fast[40]["padding"] == pytest.approx(1 - 300 / sum(padded))


def test_a_log_says_what_is_compiled_and_never_what_is_not_known(clock, capsys):
    lengths = [8] * 40 + [16] * 40 + [24] * 1000
    scores = [{"eval/a/score": 80.0, "eval/b/score": 90.0, "eval/glue_average": 1.0}] * 9
    measured = pace.Pace(lambda number: pace.Work(6, 8), 3)
    train(clock, lengths, 60.0, measured, scores=scores, eval_period=500)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling 1 of 3 lengths"
    told = [line for line in lines if line.startswith("compiling")]
    assert told[1:] == [f"compiling {n} of 3 lengths (about 60 s)" for n in (2, 3)]
    assert not [line for line in lines if "nan" in line.lower()]
    # The steps alone make the rate. Two evaluations of five seconds are ahead.
    number = int(lines[-1].split()[1])
    left = progress.left((1080 - number) * 0.05 + 2 * 5.0)
    assert 500 < number < 1000 and lines[-1] == (
        f"training: {number} of 1,080 steps, loss 1.0000, 20.0 steps/s, {left}, score 85.00, "
        "120 tokens/s, padding 25%, data wait 20%"
    )


def test_a_lap_in_which_every_step_compiles_has_no_rate(clock):
    log = Log()
    train(clock, [8, 16, 24, 24], 9.0, pace.Pace(lambda number: pace.Work(1, 2)), log, log_period=1)
    assert list(log.times) == [4] or log.times[1] == log.times[2] == {}
    assert log.times[4]["steps_per_second"] == pytest.approx(20)


def test_memory_where_the_device_tells(clock, monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 1, "peak_bytes_in_use": 3 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    log = Log()
    train(clock, [8] * 10, 1.0, pace.Pace(), log)
    assert log.times[10]["device_memory"] == 3 * 2**30
    assert "tokens_per_second" not in log.times[10] and "mfu" not in log.times[10]


@pytest.mark.parametrize("name", ["adalink", "full"])
def test_operations_of_a_step_are_those_that_are_traced(tiny, name):
    """All products of the network's own jaxpr, but for the method's own and what is not needed."""
    config = tiny[0]
    method = METHODS[name](**({"rank": 1} if name == "adalink" else {}))
    traced = traced_flops(config, method, Shape(3, 40, 6))
    counted = flops.step_flops(config, 3, 40, 6, method.trains_base)
    assert counted == pytest.approx(traced.train - traced.method, rel=0.03)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v6 lite", 918e12), ("TPU v4", 275e12),
        ("cpu", None), ("NVIDIA GeForce RTX 4090", None), ("NVIDIA L40", None), ("TPU v7", None),
        ("NVIDIA A1000", None),
    ],
)  # fmt: skip
def test_peaks_are_of_devices_that_are_known(kind, peak):
    assert flops.peak_flops(kind) == peak
