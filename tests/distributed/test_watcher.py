"""What watchers say of a host that is missing, differs, fails, dies, is stopped or stands still.

The runs beside the watchers are no runs: their pipes are in the test's hands.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from adalink_jax.distributed import watcher

# In how many seconds everything here must have happened by itself.
PATIENCE = 60


class Host:
    """A host without JAX: the process beside it, and its pipes in the test's hands."""

    def __init__(
        self,
        address: str,
        index: int,
        count: int,
        wait: float = PATIENCE,
        token: str = "secret",
        program: str = watcher.__file__,
        work: str = "sys.stdin.read()",
    ):
        self.address = address
        # What would be the run; it is killed if it does not end by itself.
        self.run = subprocess.Popen(
            [sys.executable, "-c", f"import os, sys; {work}"], stdin=subprocess.PIPE
        )
        self.watcher = subprocess.Popen(
            [sys.executable, "-I", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.say(
            address=address,
            index=index,
            count=count,
            wait=wait,
            token=token,
            name=f"n{index}",
            pid=self.run.pid,
        )

    def say(self, **message) -> None:
        self.watcher.stdin.write(watcher.line(**message))
        self.watcher.stdin.flush()

    def hear(self) -> dict:
        return json.loads(self.watcher.stdout.readline())

    def die(self) -> None:
        self.watcher.stdin.close()

    def close(self) -> None:
        for process in (self.run, self.watcher):
            process.kill()
            process.wait()
            for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
                pipe.close()

    def last_words(self) -> str:
        """What stands on the terminal when all is over, by itself."""
        self.watcher.wait(timeout=PATIENCE)
        return self.watcher.stderr.read().decode()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def start():
    """Starts hosts of one run: (indices, count) -> hosts."""
    started = []

    def call(indices, count, wait=PATIENCE, **others):
        address = f"127.0.0.1:{free_port()}"
        started.extend(Host(address, index, count, wait, **others) for index in indices)
        return started[-len(indices) :]

    yield call
    for host in started:
        host.close()


@pytest.fixture
def hasty(tmp_path):
    """A watcher that waits some seconds where the real one waits some minutes."""
    text = pathlib.Path(watcher.__file__).read_text(encoding="utf-8")
    hasty = text.replace("GRACE = 5, 40, 5, 1\n", "GRACE = 0.1, 1, 0.5, 0.1\n")
    hasty = hasty.replace("GREETING = 300, 10\n", "GREETING = 3, 1\n")
    hasty = hasty.replace("IDLE = 0.01\n", "IDLE = 0.1\n")
    assert sum(a != b for a, b in zip(text.splitlines(), hasty.splitlines(), strict=True)) == 3
    path = tmp_path / "watcher.py"
    path.write_text(hasty, encoding="utf-8")
    return str(path)


def all_here(group) -> None:
    for host in group:
        assert host.hear()["here"]["names"] == [f"n{i}" for i in range(len(group))]


def test_hosts_gather_and_end_together(start):
    group = start((2, 0, 1), 3)
    group = [group[1], group[2], group[0]]
    all_here(group)
    for index, host in enumerate(group):
        host.say(gather={"index": index})
    for host in group:
        assert host.hear() == {"gathered": [{"index": 0}, {"index": 1}, {"index": 2}]}
    for host in group:
        host.say(done=True)
    for host in group:
        assert host.hear() == {"over": True}
        assert host.last_words() == ""
        assert host.run.poll() is None


def test_missing_hosts_are_named(start):
    for host in start((0, 2), 4, wait=1):
        assert host.hear() == {"end": "of 4 hosts, 1, 3 did not come in 1 s; here: 0 (n0), 2 (n2)"}
        host.die()
        assert host.last_words() == ""  # The run says it.


@pytest.mark.parametrize(("index", "count"), [(1, 3), (5, 2)])
def test_a_host_of_another_run_is_refused(start, index, count):
    (host,) = start((0,), 2, wait=PATIENCE)
    stranger = Host(host.address, index, count)
    try:
        expected = f"n{index} came as host {index} of {count}, but this run has 2 hosts"
        assert stranger.hear() == {"end": expected}
    finally:
        stranger.close()
    assert host.watcher.poll() is None


@pytest.mark.parametrize("token", ["", "secre", "secret2", "\ud83d"])
def test_a_stranger_without_the_token_is_refused(start, token):
    (host,) = start((0,), 2)
    stranger = Host(host.address, 1, 2, token=token)
    try:
        expected = "n1 came with another ADALINK_HOSTS_TOKEN than host 0 has"
        assert stranger.hear() == {"end": expected}
    finally:
        stranger.close()
    # It has taken nobody's place.
    late = Host(host.address, 1, 2)
    try:
        all_here((host, late))
    finally:
        late.close()


# What may come to a port from anybody: of no language, of another one, and of one that is near.
JUNK = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\n",
    b"[" * 100_000 + b"\n",
    b"7\n",
    b'{"hello": {"index": 1, "count": 2, "name": "x"}}\n',
    b'{"hello": {"index": 1e999, "count": 2, "name": "x", "proof": ""}}\n',
    b'{"hello": [], "end": {}, "nonce": []}\n',
)


def test_what_speaks_another_language_is_refused(start):
    (host,) = start((0,), 2)
    for words in JUNK:
        for _ in range(PATIENCE * 5):
            try:
                stranger = socket.create_connection(watched(host.address), timeout=PATIENCE)
                break
            except ConnectionRefusedError:
                time.sleep(0.2)  # The watcher is a process that does not say when it listens.
        with stranger:
            stranger.sendall(words)
            heard = stranger.makefile("rb").read()  # Until it is closed.
            assert heard.count(b"\n") == 1 and b"nonce" in heard  # It is greeted, and no more.
    late = Host(host.address, 1, 2)
    try:
        all_here((host, late))
        for one in (host, late):
            one.say(done=True)
        assert host.last_words() == ""  # No traceback.
    finally:
        late.close()


@pytest.mark.parametrize(
    "words", [b"", *(pytest.param(words, marks=pytest.mark.slow) for words in JUNK)]
)
def test_a_port_of_another_program_is_said_on_all_hosts(hasty, words):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        pair = [Host(address, index, 2, program=hasty) for index in range(2)]
        try:
            connection, _ = other.accept()
            with connection:
                connection.sendall(words)
                assert f"host 0 cannot listen on port {address[10:]}" in pair[0].hear()["end"]
                assert f"what answers at {address} is not host 0" in pair[1].hear()["end"]
            assert [host.last_words() for host in pair] == ["", ""]  # The runs say it.
        finally:
            for host in pair:
                host.close()


def test_the_token_is_never_sent(hasty):
    with socket.create_server(("127.0.0.1", 0)) as spy:
        host = Host(f"127.0.0.1:{spy.getsockname()[1]}", 1, 2, token="the secret", program=hasty)
        connection, _ = spy.accept()
        with connection:
            connection.sendall(watcher.line(nonce="n"))
            heard = connection.makefile("rb").readline()
        host.close()
    assert b"the secret" not in heard
    assert json.loads(heard)["hello"]["proof"] == watcher.proof("the secret", "n")


def watched(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def test_host_0_listens_on_the_coordinators_interface_only(start):
    """All of 127/8 is this machine's, on one interface; what is bound to one answers no other."""
    (host,) = start((0,), 2)
    other = Host(host.address, 1, 2)
    try:
        all_here((host, other))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", watched(host.address)[1]), timeout=PATIENCE)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("host", "resolved", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("node-0", "127.0.1.1", ""),  # Debian's own name for itself; it is another for the others.
        ("balancer", "192.0.2.1", ""),  # Of no machine (RFC 5737).
        ("not-yet", None, ""),
    ],
)
def test_the_interface_that_a_name_stands_for(monkeypatch, host, resolved, expected):
    def getaddrinfo(*_, **__):
        if resolved is None:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert watcher.own_interface(host) == expected


def test_a_missing_coordinator_is_named(start):
    (host,) = start((1,), 2, wait=0.5)
    assert "host 0 did not answer at 127.0.0.1:" in host.hear()["end"]


def test_two_hosts_of_one_place(start):
    group = start(range(2), 2)
    all_here(group)
    late = Host(group[0].address, 1, 2)
    try:
        assert late.hear() == {
            "end": "n1 came as host 1 of 2, but so did n1; does another run have this address?"
        }
    finally:
        late.close()
    assert all(host.watcher.poll() is None for host in group)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_host_that_dies_is_named_and_ends_the_others(start, hasty, victim):
    group = start(range(3), 3, program=hasty)
    all_here(group)
    group[victim].die()
    group[victim].run.kill()
    for index, host in enumerate(group):
        if index != victim:
            assert f"host {victim} (n{victim}) ended without a word" in host.hear()["end"]
            # A run that hangs in a collective is killed.
            assert host.run.wait(timeout=PATIENCE) == -signal.SIGKILL
            host.die()
        assert f"error: host {victim} (n{victim}) ended without a word" in host.last_words()


def test_a_host_whose_watcher_dies_is_named(start):
    group = start(range(2), 2)
    all_here(group)
    group[1].watcher.kill()
    assert "host 1 (n1) ended without a word" in group[0].hear()["end"]


def test_a_failure_is_told_and_its_consequences_are_not(start, hasty):
    group = start(range(3), 3, program=hasty)
    all_here(group)
    group[1].say(mistaken="RANK is 0")
    group[1].die()
    for host in (group[0], group[2]):
        assert host.hear() == {"end": "host 1 (n1) failed: RANK is 0; all hosts end"}
        # Too late to be a reason.
        host.say(failed="RuntimeError: Connection closed by peer")
        host.die()
        assert host.last_words() == "error: host 1 (n1) failed: RANK is 0; all hosts end\n"
    assert group[1].last_words() == ""  # That host's own line says it.


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_is_stopped_is_named(start, hasty, victim):
    group = start(range(2), 2, program=hasty)
    all_here(group)
    for step in range(3):
        group[victim].say(reached=f"step {step}")
    time.sleep(0.5)
    group[victim].run.send_signal(signal.SIGSTOP)
    expected = f"host {victim} (n{victim}) was stopped at step 2, by a signal or a debugger"
    for host in group:
        assert host.hear() == {"end": f"{expected}; all hosts end"}
    assert group[victim].run.wait(timeout=PATIENCE) == -signal.SIGKILL


def test_a_host_that_fails_because_another_is_stopped_is_not_named(start, hasty):
    group = start(range(3), 3, program=hasty)
    all_here(group)
    group[2].run.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    group[0].say(failed="XlaRuntimeError: DEADLINE_EXCEEDED")
    group[1].die()
    assert group[0].hear()["end"].startswith("host 2 (n2) was stopped at its start")


@pytest.mark.slow
def test_hosts_that_are_all_stopped_go_on(start, hasty):
    """As where a scheduler suspends a job, or a user presses Ctrl-Z."""
    group = start(range(2), 2, program=hasty)
    all_here(group)
    runs, watchers = [h.run for h in group], [h.watcher for h in group]
    for processes in (runs, (*runs, *watchers)):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in processes:
                process.send_signal(number)
            time.sleep(2)
    for host in group:
        host.say(gather=1)
    assert [host.hear() for host in group] == [{"gathered": [1, 1]}] * 2


def test_a_host_that_stands_still_is_named(start, hasty):
    group = start(range(2), 2, program=hasty)
    all_here(group)
    group[0].say(reached="step 1")
    group[1].say(reached="step 1")
    group[0].say(reached="step 2")
    expected = "host 1 (n1) has stood still at step 1 for 3 s, while host 0 (n0) is at step 2"
    assert group[0].hear() == {"end": f"{expected}; all hosts end"}


@pytest.mark.slow
def test_a_host_that_compiles_is_waited_for(start, hasty):
    group = [*start((0,), 2, program=hasty)]
    group.append(Host(group[0].address, 1, 2, program=hasty, work="exec('while True: pass')"))
    try:
        all_here(group)
        group[0].say(reached="step 1")
        time.sleep(5)
        for host in group:
            host.say(gather=1)
        assert group[0].hear() == {"gathered": [1, 1]}
    finally:
        group[1].close()


@pytest.mark.slow
def test_a_host_whose_disk_does_not_answer_is_named(start, hasty, tmp_path):
    """The parent of a vfork waits as for a hung disk, until its child has opened the file."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    opened = f"[(os.POSIX_SPAWN_OPEN, 0, {str(fifo)!r}, os.O_RDONLY, 0)]"
    work = f"os.posix_spawn('/bin/true', ['true'], {{}}, file_actions={opened})"
    group = [*start((0,), 2, program=hasty)]
    group.append(Host(group[0].address, 1, 2, program=hasty, work=work))
    try:
        all_here(group)
        expected = "has stood still at its start for 3 s, waiting for a disk or a network"
        assert group[0].hear()["end"] == f"host 1 (n1) {expected}; all hosts end"
    finally:
        os.close(os.open(fifo, os.O_RDWR))
        group[1].close()
