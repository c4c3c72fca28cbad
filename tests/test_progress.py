"""How far work is: on a terminal, in a notebook, in a log."""

import concurrent.futures
import io
import sys
import threading
import types

import pytest
from rich.console import Console

from adalink_jax import progress


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def medium(monkeypatch):
    """Sets where it is shown."""

    def choose(made):
        monkeypatch.setattr(progress, "_medium", made)

    return choose


def count_to(clock, total, seconds, **about):
    with progress.bar("tokenizing", total, "examples", **about) as bar:
        for _ in range(bar.done, total):
            clock.now += seconds
            bar.advance()


def test_a_log_has_a_line_every_half_minute_with_the_time_left(clock, capsys):
    count_to(clock, 100, 1.0)
    out, errors = capsys.readouterr()
    assert out == "" and errors.splitlines() == [
        "tokenizing: 30 of 100 examples, 1:10 left",
        "tokenizing: 60 of 100 examples, 0:40 left",
        "tokenizing: 90 of 100 examples, 0:10 left",
    ]
    count_to(clock, 29, 1.0)
    assert capsys.readouterr().err == ""


def test_work_that_goes_on_is_as_fast_as_now(clock, capsys):
    count_to(clock, 10_000, 30.0, done=9_997)
    assert capsys.readouterr().err.splitlines()[0] == (
        "tokenizing: 9,998 of 10,000 examples, 1:00 left"
    )


def test_without_a_total_there_is_no_guess(clock, capsys):
    with progress.bar("reading", 0, "examples") as bar:
        clock.now += 31
        bar.at(7)
        clock.now += 31
        bar.at(8, "slowly")
    assert capsys.readouterr().err == "reading: 7 examples\nreading: 8 examples, slowly\n"


def test_bars_within_bars_share_the_half_minute(clock, capsys):
    with progress.bar("training", 9, "steps") as outer:
        for step in range(1, 4):
            with progress.bar("scoring", 2, "batches") as inner:
                clock.now += 16
                inner.advance()
            outer.at(step, lambda: "loss 1")
    # Of 48 seconds: after 32, which is within the second scoring; the next would be after 62.
    assert capsys.readouterr().err == "scoring: 1 of 2 batches, 0:16 left\n"
    with pytest.raises(ZeroDivisionError), progress.bar("a", 1), progress.bar("b", 1):
        raise ZeroDivisionError
    assert progress._here.shown is None


def test_what_takes_long_is_said_at_once(clock, capsys):
    with progress.bar("training", 9, "steps") as bar:
        bar.says("compiling 1 of 3 lengths")
        bar.says("evaluating", line=False)
    assert capsys.readouterr().err == "compiling 1 of 3 lengths\n"


def test_a_terminal_shows_bars_below_each_other(clock, medium):
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, force_jupyter=False)
    medium(lambda: progress._Terminal(console))
    with progress.bar("training", 40, "steps") as bar:
        clock.now += 1
        bar.at(3, "loss 0.2500, 8.0 steps/s, 0:05 left")
        bar.says("compiling 2 of 3 lengths (about 15 s)", line=False)
        with progress.bar("scoring mini_sst2", 7, "batches") as inner:
            clock.now += 1
            inner.advance()
        clock.now += 1
        bar.at(40, "loss 0.1250")
    shown = written.getvalue()
    for text in ("3 of 40 steps", "compiling 2 of 3 lengths", "scoring mini_sst2", "loss 0.1250"):
        assert text in shown
    assert "nan" not in shown and shown.rstrip().count("40 of 40 steps") >= 1


def test_a_notebook_has_one_line_that_changes(clock, medium, monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            assert raw
            shown.append(data["text/plain"])

    display = types.SimpleNamespace(display=lambda data, raw, display_id: Handle())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=display))
    medium(progress._Notebook)
    with progress.bar("training", 40, "steps") as bar:
        bar.at(1, "too soon")
        clock.now += 1
        bar.at(20, "loss 0.2500")
        with progress.bar("scoring", 4, "batches") as inner:
            clock.now += 1
            inner.advance()
        bar.says("saving", line=False)
    half, quarter = "█" * 10 + "░" * 10, "█" * 5 + "░" * 15
    assert shown == [
        f"training {half} 20 of 40 steps  loss 0.2500",
        f"training {half} 20 of 40 steps  scoring {quarter} 1 of 4 batches  0:03 left",
        f"training {half} 20 of 40 steps  scoring {quarter} 1 of 4 batches",
        f"training {half} 20 of 40 steps  saving",
        f"training {half} 20 of 40 steps",
    ]


def test_only_the_first_host_speaks(clock, capsys, monkeypatch):
    import jax

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    count_to(clock, 100, 1.0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00 left"), (59.6, "1:00 left"), (3723, "1:02:03 left"), (-1, "0:00 left")],
)
def test_times_that_are_left(seconds, text):
    assert progress.left(seconds) == text


def test_threads_do_not_share_their_bars(monkeypatch, capsys):
    """Each has its own, and one of them alone is shown."""
    monkeypatch.setattr(progress, "_medium", lambda: progress._Lines(seconds=0.0))
    inside = threading.Barrier(2, timeout=60)

    def work(name: str) -> None:
        with progress.bar(name, 2) as outer:
            inside.wait()
            with progress.bar(f"{name}'s part", 1) as inner:
                inner.advance()
            inside.wait()
            outer.advance()

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, name) for name in ("one", "two")]:
            done.result()
    said = capsys.readouterr().err
    assert ("one" in said) != ("two" in said)
    with progress.bar("three", 1) as bar:  # It is free again.
        bar.advance()
    assert "three: 1 of 1" in capsys.readouterr().err
