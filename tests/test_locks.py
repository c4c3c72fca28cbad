"""Locks: one owner at a time, whoever dies, wherever."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from adalink_jax import files, locks
from adalink_jax.errors import UserError

ROOT = pathlib.Path(locks.__file__).resolve().parents[1]
HOLDS = """
import os, sys, time
from adalink_jax import files
with files.held(sys.argv[1], "FOLDER"):
    {inside}
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Starts a process that holds the folder."""
    started = []

    def start(inside: str = "") -> subprocess.Popen:
        code = HOLDS.format(inside=inside)
        command = [sys.executable, "-c", code, str(tmp_path)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def soon(monkeypatch):
    """A silence of a fifth of a second is that of the dead."""
    monkeypatch.setattr(locks, "_SILENCE", 0.2)


def put(folder: pathlib.Path, content: bytes | dict) -> pathlib.Path:
    path = folder / ".lock"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


ELSEWHERE = {"process": "01234567-7-7", "pid": 7, "host": "node-7", "since": "2026-01-01"}


@pytest.fixture
def dead(tmp_path):
    """The lock of a process of this machine that has ended."""
    machine, pid, started = locks.process().split("-")
    return put(tmp_path, {**ELSEWHERE, "process": f"{machine}-{pid}-{int(started) - 1}"})


def test_the_second_is_told_who_holds_the_folder(tmp_path, owner):
    first = owner()
    with pytest.raises(UserError) as caught:
        files.held(tmp_path, "FOLDER").__enter__()
    about = json.loads((tmp_path / ".lock").read_text())
    assert about["pid"] == first.pid
    assert str(caught.value) == (
        f"FOLDER {tmp_path} is in use by process {first.pid} on {about['host']} since "
        f"{about['since']}; wait for it or end it ({tmp_path}/.lock)"
    )


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_followed_at_once(tmp_path, owner, reaped):
    first = owner()
    first.send_signal(signal.SIGKILL)
    while locks._started(first.pid):
        time.sleep(0.01)
    if reaped:
        first.wait()
    with files.held(tmp_path, "FOLDER") as check:
        check()
    assert os.listdir(tmp_path) == []


def test_a_stopped_owner_holds_its_folder(tmp_path, owner, soon):
    owner().send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="in use by process"):
        files.held(tmp_path, "FOLDER").__enter__()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path, dead):
    with files.held(tmp_path, "FOLDER"):
        pass


def test_a_forked_child_neither_holds_nor_frees(tmp_path, owner):
    owner("if os.fork() == 0: sys.exit()")
    with pytest.raises(UserError, match="in use by process"):
        files.held(tmp_path, "FOLDER").__enter__()


def test_an_owner_elsewhere_is_waited_for_and_refused_if_it_lives(tmp_path, soon, monkeypatch):
    path = put(tmp_path, ELSEWHERE)
    sleep, beats = time.sleep, iter(range(3))

    def beats_later(seconds):
        sleep(seconds)
        if next(beats) == 2:
            os.utime(path, ns=(0, 0))  # Its clock says 1970.

    monkeypatch.setattr(locks.time, "sleep", beats_later)
    with pytest.raises(UserError, match="in use by process 7 on node-7 since 2026-01-01"):
        files.held(tmp_path, "FOLDER").__enter__()
    assert path.exists()


@pytest.mark.parametrize(
    ("content", "when"),
    [(ELSEWHERE, 0), (ELSEWHERE, 2**40), (b"", 0), (b"[" * 9999, 0), (b"[1]", 0), (b"\xff\xfe", 0)],
)
def test_a_silent_or_unknown_owner_is_followed(tmp_path, soon, content, when):
    path = put(tmp_path, content)
    os.utime(path, (when, when))  # Whatever the clocks say.
    with files.held(tmp_path, "FOLDER") as check:
        check()
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_the_owner_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.01)
    with files.held(tmp_path, "FOLDER"):
        before = locks._lock_at(tmp_path / ".lock")
        until = time.monotonic() + 10
        while locks._lock_at(tmp_path / ".lock") == before:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_whose_lock_was_taken_is_told_and_leaves_the_new_one(tmp_path):
    with files.held(tmp_path, "FOLDER") as check:
        (tmp_path / ".lock").unlink()
        put(tmp_path, ELSEWHERE)
        with pytest.raises(UserError, match="is not held by this process any more"):
            check()
    assert json.loads((tmp_path / ".lock").read_text()) == ELSEWHERE


def test_who_finds_a_lock_dead_leaves_that_of_who_was_quicker(tmp_path, dead, owner, monkeypatch):
    lives, quicker = locks._lives, []

    def slowly(*found):
        answer = lives(*found)
        if not answer and not quicker:
            quicker.append(owner())
        return answer

    monkeypatch.setattr(locks, "_lives", slowly)
    with pytest.raises(UserError, match="in use by process") as caught:
        files.held(tmp_path, "FOLDER").__enter__()
    assert f"process {quicker[0].pid} on" in str(caught.value)
    assert json.loads(dead.read_text())["pid"] == quicker[0].pid


def test_while_one_removes_a_dead_lock_no_other_does(tmp_path, dead, monkeypatch):
    lock_at, looked = locks._lock_at, []

    def looking(path):
        looked.append(path)
        if len(looked) == 2:  # Again, before it is removed.
            command = [sys.executable, "-c", HOLDS.format(inside=""), str(tmp_path)]
            other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert f"FOLDER {tmp_path} is in use by process {os.getpid()} on" in other.stderr
        return lock_at(path)

    monkeypatch.setattr(locks, "_lock_at", looking)
    with files.held(tmp_path, "FOLDER"):
        assert len(looked) == 2
    assert os.listdir(tmp_path) == []


def test_what_a_process_killed_while_it_removed_a_dead_lock_left_is_removed(tmp_path, dead):
    left = dead.rename(f"{dead}.0123456789abcdef")
    living = tmp_path / f"{dead.name}.fedcba9876543210"
    living.write_text(json.dumps({**ELSEWHERE, "process": locks.process()}))
    with files.held(tmp_path, "FOLDER"):
        assert {*tmp_path.iterdir()} == {dead, living} and not left.exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_locked_is_a_mistake(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be written: {os.strerror(code)}"):
        files.held(tmp_path, "FOLDER").__enter__()


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    machine, pid, started = locks.process().split("-")
    dead = tmp_path / f".a.json.{machine}-{pid}-{int(started) - 1}.01234567"
    others = [tmp_path / f".a.json.{name}.01234567" for name in (locks.process(), "abcdef01-1-1")]
    for path in (dead, *others):
        path.write_text("half")
    files.write_text(tmp_path / "a.json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", *others])


def test_two_writers_of_one_folder_do_not_mix(tmp_path):
    with files.replaced_folder(tmp_path / "adapter") as first:
        (first / "file").write_text("first")
        with pytest.raises(UserError, match="adapter is in use by process"):
            files.replaced_folder(tmp_path / "adapter").__enter__()
    assert (tmp_path / "adapter" / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["adapter"]


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_killed_while_it_makes_a_lock_nobody_waits_for_it(tmp_path, call, monkeypatch):
    """A lock has its owner from the first moment; what is left beside it goes."""
    code = (
        "import os, signal, sys\nfrom adalink_jax import files\n"
        f"os.{call} = lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with files.held(sys.argv[1], 'FOLDER'): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(time, "sleep", pytest.fail)
    with files.held(tmp_path, "FOLDER"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links_has_locks_too(tmp_path, owner, monkeypatch):
    def link(*paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with files.held(tmp_path, "FOLDER"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        with pytest.raises(UserError, match="in use by process"):
            with files.held(tmp_path, "FOLDER"):
                pass
    assert not list(tmp_path.iterdir())
    owner()
    with pytest.raises(UserError, match="in use by process"), files.held(tmp_path, "FOLDER"):
        pass
