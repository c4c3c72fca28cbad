"""What signals do to a command, and to the program of a notebook."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from adalink_jax import cli, signals

ROOT = pathlib.Path(signals.__file__).resolve().parents[1]
# The main thread is where Python's own handlers never run: in a call of C.
BUSY = """
import ctypes, signal, sys, time
from adalink_jax import signals
def busy(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:  # A signal cuts the call short.
        ctypes.CDLL(None).usleep(int(left * 1e6))
with signals.listening():
    print("ready", flush=True)
    {inside}
"""


def start(inside: str = "busy(60)", before: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [*before, sys.executable, "-c", BUSY.format(inside=inside)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_at_once_with_one_line(name, code):
    process = start()
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=20)[1] == f"stopped by {name}\n"
    assert process.returncode == code


def test_what_the_shell_ignores_stays_ignored():
    """As nohup does it."""
    process = start(before=("bash", "-c", "trap '' HUP; exec \"$@\"", "-"))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "stopped by SIGTERM\n"


WAITING = """with signals.waiting() as wish:
        wish.take()
        print("taken", flush=True)
        for _ in range(6000):
            if wish.number: break
            busy(0.01)
        print(wish.number, flush=True)
        busy(60)"""


def test_a_second_ctrl_c_ends_what_waits():
    process = start(WAITING)
    assert process.stdout.readline() == "taken\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "2\n"
    process.send_signal(signal.SIGTERM)  # Impatience is Ctrl-C alone; others come twice anyway.
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == (
        "SIGINT: stopping once the work so far is saved\nstopped by SIGINT\n"
    )
    assert process.returncode == 130


def test_before_there_is_something_to_save_nothing_is_waited_for():
    process = start("with signals.waiting(): busy(60)")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "stopped by SIGTERM\n"
    assert process.returncode == 143


def test_in_a_notebook_the_second_ctrl_c_is_an_exception(capfd):
    before = {number: signal.getsignal(number) for number in signals._SIGNALS}
    with pytest.raises(KeyboardInterrupt):
        with signals.waiting() as wish:
            wish.take()
            os.kill(os.getpid(), signal.SIGINT)
            assert wish.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: stopping once the work so far is saved\n"
    assert {number: signal.getsignal(number) for number in signals._SIGNALS} == before


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
        (signals.Stopped(15, "stopped at step 7"), 143, "stopped at step 7\n"),
    ],
)
def test_commands_say_that_they_were_stopped(monkeypatch, capsys, raised, code, line):
    def stop(*_):
        raise raised

    monkeypatch.setattr(cli, "_run", stop)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == line
